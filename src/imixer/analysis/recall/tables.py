"""Write down what memories recall, and print it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from imixer.analysis.recall.capacity import BIT_ERROR, Capacity
from imixer.analysis.recall.measure import RETRIEVED, Recall, share_with_error
from imixer.analysis.recall.study import LOOK_UP, SETS, RecallShare
from imixer.analysis.statistics import spread
from imixer.tables import Grid, markdown, on_screen, plus_minus
from imixer.writing import write_csv, write_json, write_text

_MANY = 20
# What the tables of the study show, by what is varied and whether patterns are gray.
_SHOWN = {
    ("load", False): (5, 10, 20, 100, 500),
    ("load", True): (5, 10, 20, 100, 500),
    ("noise", False): (0.0, 0.1, 0.3),
    ("noise", True): (0.0, 0.3, 0.6),
    ("half hidden", False): (5, 20, 100, 500),
    ("half hidden", True): (5, 20, 100, 500),
}
_HEADINGS = {"load": "{:.0f} stored", "noise": "noise {:.1f}", "half hidden": "half of {:.0f}"}


# One memory


def write_recall(recall: Recall, settings: dict[str, Any], folder: Path) -> None:
    """Write `recall.csv`, a row per query, and `recall.json`.

    Args:
        recall: What was recalled.
        settings: Settings of the memory and of the queries, for the JSON file.
        folder: Folder to write into.
    """
    rows = query_rows(recall)
    write_csv(folder / "recall.csv", rows)
    share, error = share_with_error(recall.retrieved)
    summary = {
        **settings,
        "retrieved_share": share,
        "retrieved_share_uncertainty": error,
        "look_up_share": share_with_error(recall.looked_up)[0],
        "energy": recall.verdict,
        "energies": recall.retrieval.energies.T.tolist(),
        "queries": rows,
    }
    write_json(folder / "recall.json", summary, non_finite="null")


def query_rows(recall: Recall) -> list[dict[str, Any]]:
    """Collect the numbers of each query."""
    rows: list[dict[str, Any]] = []
    retrieval = recall.retrieval
    for i, own in enumerate(recall.own.tolist()):
        steps = int(retrieval.steps[i])
        rows.append(
            {
                "query": i,
                "pattern": own,
                "name": recall.names[own],
                "overlap_before": round(float(recall.before[i]), 6),
                "overlap_after": round(float(recall.after[i]), 6),
                "retrieved": bool(recall.retrieved[i]),
                "nearest_to_query": bool(recall.looked_up[i]),
                "steps": steps,
                "converged": bool(retrieval.converged[i]),
                "energy_before": float(retrieval.energies[0, i]),
                "energy_after": float(retrieval.energies[steps, i]),
            }
        )
    return rows


def recall_table(recall: Recall) -> Table:
    """Make the table of the screen, a row for each of the first 20 queries."""
    made = Table("query", "made from", "overlap before", "after", "steps", "retrieved", "by look-up", box=None)
    for column in made.columns[2:5]:
        column.justify = "right"
    for row in query_rows(recall)[:_MANY]:
        made.add_row(
            str(row["query"] + 1),
            f"{row['pattern']}: {row['name']}",
            f"{recall.before[row['query']]:.3f}",
            f"{recall.after[row['query']]:.3f}",
            f"{row['steps']}{'' if row['converged'] else ', not at rest'}",
            "yes" if row["retrieved"] else "no",
            "yes" if row["nearest_to_query"] else "no",
        )
    return made


def show_recall(recall: Recall, folder: Path, console: Console) -> None:
    """Print the table, the shares of queries that were retrieved, and the files.

    Args:
        recall: What was recalled.
        folder: Folder that it was written into.
        console: Console to print on.
    """
    console.print(recall_table(recall))
    queries = len(recall.own)
    if queries > _MANY:
        console.print(f"... and {queries - _MANY} more in {folder / 'recall.csv'}")
    share, error = share_with_error(recall.retrieved)
    looked_up, _ = share_with_error(recall.looked_up)
    retrieved = plus_minus(100 * share, 100 * error, 0, unit="%")
    console.print(
        f"{recall.memory.kind} memory of {len(recall.patterns)}: retrieved {retrieved} of {queries} queries (own "
        f"pattern nearest, overlap {RETRIEVED} or more), a look-up of the nearest pattern {looked_up:.0%}; "
        f"{int(recall.retrieval.converged.sum())} came to rest"
    )
    console.print(
        f"overlap (cosine) with the own pattern: {_spread(recall.before)} before, {_spread(recall.after)} after "
        "(mean +- std over the queries)"
    )
    console.print(f"energy: {recall.verdict}")
    _print_files(folder, ("png", "csv", "json"), console)


def _spread(values: Tensor) -> str:
    summary = spread(values)
    return plus_minus(summary["mean"], summary["std"], 3)


def _print_files(folder: Path, suffixes: Sequence[str], console: Console) -> None:
    files = (folder / f"recall.{suffix}" for suffix in suffixes)
    console.print(f"written: {', '.join(str(file) for file in files if file.exists())}", soft_wrap=True)


# All kinds of memories


def write_memory_study(shares: Sequence[RecallShare], folder: Path) -> None:
    """Write `recall.csv` and `recall.json`, a row per share, and `recall.md`, a table per set of patterns.

    Args:
        shares: What `measure_memories` returned.
        folder: Folder to write into.
    """
    rows = [asdict(share) for share in shares]
    write_csv(
        folder / "recall.csv", [{**row, "mean": f"{row['mean']:.4f}", "std": f"{row['std']:.4f}"} for row in rows]
    )
    write_json(folder / "recall.json", rows)
    write_text(folder / "recall.md", "\n".join(markdown(memory_table(shares, patterns)) for patterns in SETS))


def memory_table(shares: Sequence[RecallShare], patterns: str) -> Grid:
    """Choose some shares of one set of patterns, in per cent: a row per memory.

    Args:
        shares: What `measure_memories` returned.
        patterns: Set of patterns, a name in `SETS`.
    """
    of_set = [share for share in shares if share.patterns == patterns]
    gray = patterns == "digits, gray"
    columns = list(dict.fromkeys((s.varied, s.x) for s in of_set if s.x in _SHOWN[s.varied, gray]))
    rows = []
    for memory in [*SETS[patterns], LOOK_UP]:
        row = {(share.varied, share.x): share for share in of_set if share.memory == memory}
        rows.append((memory, *(plus_minus(100 * row[c].mean, 100 * row[c].std, 0) for c in columns)))
    return Grid((patterns, *(_HEADINGS[varied].format(x) for varied, x in columns)), tuple(rows), 1)


def show_memory_study(shares: Sequence[RecallShare], folder: Path, console: Console) -> None:
    """Print a table per set of patterns, where energies rose, and the files.

    Args:
        shares: What `measure_memories` returned.
        folder: Folder that they were written into.
        console: Console to print on.
    """
    for patterns in SETS:
        console.print(on_screen(memory_table(shares, patterns), ""))
        console.print()
    console.print(f"per cent of the queries retrieved, mean +- std over {shares[0].draws} draws")
    with_energy = [share for share in shares if share.memory != LOOK_UP]
    rose = [share for share in with_energy if not share.energy_decreases]
    where = "".join(f"; {share.memory}, {share.patterns}, {share.varied} {share.x:g}" for share in rose)
    console.print(f"the energy rose in {len(rose)} of {len(with_energy)} cells{where}")
    _print_files(folder, ("png", "md", "csv", "json"), console)


# Capacity


def write_capacity(capacities: Sequence[Capacity], folder: Path) -> None:
    """Write `recall.csv` and `recall.json`, a row per memory and length, and `recall.md`.

    Args:
        capacities: What `measure_capacity` returned.
        folder: Folder to write into.
    """
    rows = [asdict(capacity) for capacity in capacities]
    shown = {"mean": ".1f", "std": ".1f", "theory": ".1f"}
    write_csv(
        folder / "recall.csv",
        [{key: format(value, shown[key]) if key in shown else value for key, value in row.items()} for row in rows],
    )
    write_json(folder / "recall.json", rows)
    write_text(folder / "recall.md", markdown(capacity_table(capacities)))


def capacity_table(capacities: Sequence[Capacity]) -> Grid:
    """List the patterns stored, and those of theory, a row per memory and length."""
    rows = tuple(
        (c.memory, str(c.length), plus_minus(c.mean, c.std, 1), f"{c.theory:,.1f}", f"{c.mean / c.theory:.2f}")
        for c in capacities
    )
    return Grid(("energy", "N", "patterns stored", "theory", "stored / theory"), rows, 1)


def show_capacity(capacities: Sequence[Capacity], folder: Path, console: Console) -> None:
    """Print the table, what counts as stored, and the files.

    Args:
        capacities: What `measure_capacity` returned.
        folder: Folder that they were written into.
        console: Console to print on.
    """
    console.print(on_screen(capacity_table(capacities), ""))
    console.print(
        f"patterns of random signs of which {BIT_ERROR:.2%} of the bits lie in no minimum, mean +- std over "
        f"{capacities[0].draws} draws; theory of `exponential`: 2^(N/2), up to which no bit is wrong"
    )
    _print_files(folder, ("png", "md", "csv", "json"), console)
