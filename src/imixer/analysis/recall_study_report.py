"""`imixer recall --compare`: all kinds of memory measured, written down and told on the screen."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.recall_figures import draw_study
from imixer.analysis.recall_study import LOOK_UP, SETS, Cell, study
from imixer.json_text import json_text
from imixer.training.figures import drawn
from imixer.training.run_directory import check_out, create_run

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
    _write(cells, folder)
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
    rose = [cell for cell in cells if not cell.falls]
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


def _write(cells: list[Cell], folder: Path) -> None:
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
