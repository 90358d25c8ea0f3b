"""Recalls on the screen."""

from pathlib import Path
from typing import Any, List

from rich.console import Console
from rich.table import Table

from imixer.analysis.recall import RETRIEVED, Recall, share
from imixer.analysis.recall_study import SETS, Cell, table

_MANY = 20


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
    _written(folder, console, "recall.png", "recall.csv", "recall.json")


def report_study(cells: List[Cell], folder: Path, console: Console) -> None:
    """A table per set of patterns.

    Args:
        cells: What `study` measured.
        folder: Where it was written.
        console: Where to print.
    """
    for patterns in SETS:
        head, rows = table(cells, patterns)
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
    _written(folder, console, "recall.png", "recall.md", "recall.csv", "recall.json")


def _word(right: Any) -> str:
    return "yes" if right else "no"


def _spread(values: Any) -> str:
    return f"{values.mean():.3f} +- {values.std(correction=min(1, len(values) - 1)):.3f}"


def _written(folder: Path, console: Console, *names: str) -> None:
    console.print("written: " + ", ".join(str(folder / name) for name in names), soft_wrap=True)
