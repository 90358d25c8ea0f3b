"""Draw the Markdown page of a GPU check from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imixer.escaping import for_markdown
from imixer.gpu_check.journal import Record, last_attempts
from imixer.gpu_check.part_list import PARTS
from imixer.tables import Grid, markdown


def draw_page(records: Sequence[Record]) -> str:
    """Draw the page of what has been written down so far.

    Args:
        records: The records of the journal, in order.
    """
    records = last_attempts(records)
    begun: dict[str, Any] = next((record["begun"] for record in records if "begun" in record), {})
    named = [r["row"]["value"] for r in records if r.get("row", {}).get("what") == "device"]
    title = "Dry run of the GPU check" if begun.get("dry_run") else f"Minutes on {named[0] if named else 'a GPU'}"
    lines = [f"# {for_markdown(title)}", ""]
    lines += [f"`{begun.get('command', '')}`, begun {begun.get('date', '')}.", "", markdown(_ends(records))]
    for part in PARTS:
        own = [record for record in records if record.get("part") == part.name]
        if any({"table", "note", "page"} & record.keys() for record in own):
            lines += [f"## {part.title}", "", *_part(own)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _ends(records: Sequence[Record]) -> Grid:
    """List the parts, and how far each has come."""
    ended = {record["part"]: record for record in records if "ended" in record}
    running = {record["part"] for record in records if "part" in record} - ended.keys()
    rows = [
        (
            part.title,
            ended[part.name]["ended"] if part.name in ended else "cut off" if part.name in running else "not begun",
            f"{ended[part.name]['seconds']:.0f}" if part.name in ended else "",
        )
        for part in PARTS
    ]
    return Grid(("part", "how it ended", "seconds"), tuple(rows), text=2)


def _part(records: Sequence[Record]) -> list[str]:
    """Draw the tables of a part, in the order in which they began, and its sentences."""
    tables: dict[str, list[dict[str, Any]]] = {}
    notes = []
    for record in records:
        if "table" in record:
            tables.setdefault(record["table"], []).append(record["row"])
        elif "note" in record:
            notes.append(record["note"])
    lines = []
    for title, rows in tables.items():
        lines += [f"**{for_markdown(title)}**", "", markdown(_grid(rows))]
    for note in notes:
        lines += [for_markdown(note), ""]
    pages = [record["page"] for record in records if "page" in record]
    return [*lines, *pages[-1:], ""]


def _grid(rows: Sequence[dict[str, Any]]) -> Grid:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    first = next(
        (i for i, name in enumerate(columns) if any(isinstance(r.get(name), float) for r in rows)), len(columns)
    )
    cells = tuple(tuple(_cell(row.get(name)) for name in columns) for row in rows)
    return Grid(tuple(name.replace("_", " ") for name in columns), cells, text=first)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
