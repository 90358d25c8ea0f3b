"""`imixer recall`: images stored and retrieved, written down and told on the screen."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from imixer.analysis.recall.figures import draw_recall, draw_study
from imixer.analysis.recall.images import corrupt, digit_patterns, image_patterns, known_half
from imixer.analysis.recall.measure import RETRIEVED, Recall, retrieve, share
from imixer.analysis.recall.study import LOOK_UP, SETS, Cell, study
from imixer.errors import InputError
from imixer.escaping import for_csv
from imixer.hopfield.memory import AssociativeMemory, binarised
from imixer.hopfield.memory_kinds import BINARY
from imixer.plotting import drawn
from imixer.progress import announce
from imixer.training.run.directory import check_out, create_run
from imixer.writing import json_text

_MANY = 20
_MOST = {"patterns": 100_000, "queries": 10_000, "steps": 1_000_000, "size": 4_096}  # more would never end


def recall(
    images: Sequence[str] = (),
    *,
    memory: str = "modern",
    patterns: int | None = None,
    noise: float | None = None,
    mask: str = "none",
    queries: int = 6,
    steps: int = 50,
    size: int = 32,
    seed: int = 0,
    out: str | None = None,
    **options: Any,
) -> tuple[Recall, Path]:
    """Store images, corrupt some, retrieve them; write `recall.png`, `recall.csv` and `recall.json`.

    Args:
        images: Files or folders to store, as gray squares. Default: handwritten digits of 8 x 8 pixels.
        memory: Kind of memory. Those of +-1 store +1 where a pixel is above the image's mean.
        patterns: How many to store. Default: 20 digits, or all images.
        noise: Share of the pixels whose sign changes, of binary kinds; of the others the standard deviation of Gaussian
            noise, black to white being 1. Default: 0.3, or 0 with a mask.
        mask: Half that is hidden: `none`, `top`, `bottom`, `left` or `right`. The other is clamped if it has no noise.
        queries: How many to retrieve.
        steps: Largest number of steps.
        size: Side in pixels to which `images` are resized.
        seed: Of the choice of patterns and of the noise.
        out: Directory to write. Default: the next free `runs/recall-<memory>-<number>`.
        **options: Of the memory.

    Raises:
        InputError: If anything given is impossible.
    """
    noise = (0.0 if mask != "none" else 0.3) if noise is None else noise
    counts = {"patterns": patterns, "queries": queries, "steps": steps, "size": size}
    for name, value in counts.items():
        if value is not None and not 1 <= value <= _MOST[name]:
            raise InputError(f"{name} is {value}; give 1 or more, at most {_MOST[name]:,}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; give 0 or more, below 2**63")
    most = 1.0 if memory in BINARY else math.inf
    if not 0 <= noise <= most:
        what = "a share of flipped pixels from 0 to 1" if memory in BINARY else "a standard deviation of 0 or more"
        raise InputError(f"noise is {noise}; give {what}")
    check_out(out)
    generator = torch.Generator().manual_seed(seed)
    if images:
        stored, names = image_patterns(images, size, patterns)
    else:
        stored, names = digit_patterns(20 if patterns is None else patterns, generator)
    try:
        built = AssociativeMemory(stored, memory, binarise=memory in BINARY, **options)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(str(error)) from error
    stored = binarised(stored) if memory in BINARY else stored
    own = torch.randperm(len(stored), generator=generator)[torch.arange(queries) % len(stored)]
    known = known_half(mask, tuple(stored.shape[1:]))
    query = corrupt(stored[own], noise, memory in BINARY, generator)
    announce(f"retrieving {len(query):,} of {len(stored):,} images")
    found = retrieve(built, stored, own, query, known, clamp=noise == 0, steps=steps, names=names)
    _require_finite(found)
    folder = create_run(out, "recall", memory).path
    settings = dict(memory=memory, options=built.options, patterns=len(stored), noise=noise, mask=mask, seed=seed)
    _write(found, settings, folder)
    drawn(folder / "recall.png", lambda path: draw_recall(found, path))
    return found, folder


def report_recall(found: Recall, folder: Path, console: Console) -> None:
    """A row per query, and the shares.

    Args:
        found: What was recalled.
        folder: Where it was written.
        console: Where to print.
    """
    way = found.retrieval
    queries = len(found.own)
    shown = Table("query", "made from", "overlap before", "after", "steps", "retrieved", "by look-up", box=None)
    for column in shown.columns[2:5]:
        column.justify = "right"
    for i, own in enumerate(found.own.tolist()[:_MANY]):
        steps = f"{int(way.steps[i])}{'' if way.converged[i] else ', not at rest'}"
        row = [str(i + 1), f"{own}: {found.names[own]}", f"{found.before[i]:.3f}", f"{found.after[i]:.3f}", steps]
        shown.add_row(*row, _word(found.retrieved[i]), _word(found.looked_up[i]))
    console.print(shown)
    if queries > _MANY:
        console.print(f"... and {queries - _MANY} more in {folder / 'recall.csv'}")
    p, uncertainty = share(found.retrieved)
    looked_up, _ = share(found.looked_up)
    kind, stored, resting = found.memory.kind, len(found.patterns), int(way.converged.sum())
    console.print(
        f"{kind} memory of {stored}: retrieved {p:.0%} +- {uncertainty:.0%} of {queries} queries (own pattern nearest, "
        f"overlap {RETRIEVED} or more), a look-up of the nearest pattern {looked_up:.0%}; {resting} came to rest"
    )
    console.print(
        f"overlap (cosine) with the own pattern: {_spread(found.before)} before, {_spread(found.after)} after "
        "(mean +- std over the queries)"
    )
    console.print(f"energy: {found.verdict}")
    files = (folder / f"recall.{kind}" for kind in ("png", "csv", "json"))
    console.print(f"written: {', '.join(str(file) for file in files if file.exists())}", soft_wrap=True)


def _require_finite(found: Recall) -> None:
    """Refuse what was retrieved by numbers that are none."""
    way = found.retrieval
    for i, steps in enumerate(way.steps.tolist()):
        finite = way.energies[: int(steps) + 1, i].isfinite()
        if not finite.all():
            raise InputError(
                f"the energy of query {i + 1} is not finite from step {int((~finite).int().argmax())} on; "
                "give a smaller --order or --beta"
            )
        if not way.retrieved[i].isfinite().all():
            raise InputError(f"what query {i + 1} retrieves is not finite; give a smaller --order or --beta")


def _word(right: Any) -> str:
    return "yes" if right else "no"


def _spread(values: Any) -> str:
    return f"{values.mean():.3f} +- {values.std(correction=min(1, len(values) - 1)):.3f}"


def _write(found: Recall, settings: dict[str, Any], folder: Path) -> None:
    rows: list[dict[str, Any]] = []
    way = found.retrieval
    for i, own in enumerate(found.own.tolist()):
        steps = int(way.steps[i])
        rows.append(
            {
                "query": i,
                "pattern": own,
                "name": for_csv(found.names[own]),
                "overlap_before": round(float(found.before[i]), 6),
                "overlap_after": round(float(found.after[i]), 6),
                "retrieved": bool(found.retrieved[i]),
                "nearest_to_query": bool(found.looked_up[i]),
                "steps": steps,
                "converged": bool(way.converged[i]),
                "energy_before": float(way.energies[0, i]),
                "energy_after": float(way.energies[steps, i]),
            }
        )
    with (folder / "recall.csv").open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    p, uncertainty = share(found.retrieved)
    summary = {
        **settings,
        "retrieved_share": p,
        "retrieved_share_uncertainty": uncertainty,
        "look_up_share": share(found.looked_up)[0],
        "energy": found.verdict,
        "energies": way.energies.T.tolist(),
        "queries": rows,
    }
    (folder / "recall.json").write_text(json_text(summary, non_finite="null") + "\n", encoding="utf-8")


# What the table shows, by what is varied and whether patterns are gray.
_SHOWN = {
    ("load", False): (5, 10, 20, 100, 500),
    ("load", True): (5, 10, 20, 100, 500),
    ("noise", False): (0.0, 0.1, 0.3),
    ("noise", True): (0.0, 0.3, 0.6),
    ("half hidden", False): (5, 20, 100, 500),
    ("half hidden", True): (5, 20, 100, 500),
}


def compare(*, out: str | None = None, **options: Any) -> tuple[list[Cell], Path]:
    """`study` all kinds, and write `recall.png`, `recall.md`, `recall.csv` and `recall.json`.

    Args:
        out: Directory to write. Default: the next free `runs/recall-study-<number>`.
        options: Of `study`.

    Returns:
        What was measured, and the directory.

    Raises:
        InputError: As there, or if `out` exists.
    """
    check_out(out)
    cells = study(**options)
    folder = create_run(out, "recall", "study").path
    _write_study(cells, folder)
    drawn(folder / "recall.png", lambda path: draw_study(cells, path))
    return cells, folder


def report_study(cells: list[Cell], folder: Path, console: Console) -> None:
    """A table per set of patterns.

    Args:
        cells: What was measured.
        folder: Where it was written.
        console: Where to print.
    """
    for patterns in SETS:
        head, rows = _table(cells, patterns)
        shown = Table(*head, box=None)
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in rows:
            shown.add_row(*(text.replace("±", "+-") for text in row))
        console.print(shown)
        console.print()
    rose = [cell for cell in cells if not cell.energy_decreases]
    console.print(f"per cent of the queries retrieved, mean +- std over {cells[0].draws} draws")
    where = "".join(f"; {c.memory}, {c.patterns}, {c.against} {c.x:g}" for c in rose)
    console.print(f"the energy rose in {len(rose)} of {len(cells)} cells{where}")
    files = (folder / f"recall.{kind}" for kind in ("png", "md", "csv", "json"))
    console.print(f"written: {', '.join(str(file) for file in files if file.exists())}", soft_wrap=True)


def _table(cells: list[Cell], patterns: str) -> tuple[list[str], list[list[str]]]:
    """A choice of the numbers of one set of patterns, in per cent: headings, and a row per memory."""
    here = [cell for cell in cells if cell.patterns == patterns]
    columns = [(cell.against, cell.x) for cell in here if cell.x in _SHOWN[cell.against, patterns == "digits, gray"]]
    columns = list(dict.fromkeys(columns))
    names = {"load": "{:.0f} stored", "noise": "noise {:.1f}", "half hidden": "half of {:.0f}"}
    rows = []
    for memory in [*SETS[patterns], LOOK_UP]:
        row = {(cell.against, cell.x): cell for cell in here if cell.memory == memory}
        rows.append([memory, *(f"{row[c].mean * 100:.0f} ± {row[c].std * 100:.0f}" for c in columns)])
    return [patterns, *(names[against].format(x) for against, x in columns)], rows


def _write_study(cells: list[Cell], folder: Path) -> None:
    rows = [asdict(cell) for cell in cells]
    with (folder / "recall.csv").open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "mean": f"{row['mean']:.4f}", "std": f"{row['std']:.4f}"})
    (folder / "recall.json").write_text(json_text(rows) + "\n", encoding="utf-8")
    lines = []
    for patterns in SETS:
        head, body = _table(cells, patterns)
        rule = ["---"] * len(head)
        lines += [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)] + [""]
    (folder / "recall.md").write_text("\n".join(lines), encoding="utf-8")
