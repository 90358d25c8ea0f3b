"""Write files that are whole or not there, whenever the process or the machine dies: text, JSON, CSV, folders."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from imixer.escaping import for_csv

NonFinite = Literal["refuse", "null"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to, which then takes its place.

    What was written is forced to the disk before and after the renaming. If anything goes wrong, the temporary file is
    removed and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.writing")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, non_finite: NonFinite = "refuse") -> None:
    """Write a whole JSON file, or nothing; see `json_text`."""
    write_text(path, json_text(value, non_finite=non_finite) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a whole CSV file, or nothing; see `csv_text`."""
    write_text(path, csv_text(list(rows[0]), ([row.get(name) for name in rows[0]] for row in rows)))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write as CSV, text escaped so that no spreadsheet computes it.

    Args:
        header: What each column is called.
        rows: Text, numbers, truth values, and None for an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(for_csv, header))
    writer.writerows(map(for_csv, row) for row in rows)
    return text.getvalue()


def make_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a whole folder of files, or none; one that exists is left alone.

    Args:
        path: The folder.
        fill: Writes the files into the folder it is given.
    """
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.writing")
    for left in sorted(temporary.rglob("*"), reverse=True):
        left.unlink() if left.is_file() else left.rmdir()
    temporary.mkdir(exist_ok=True)
    fill(temporary)
    for file in temporary.iterdir():
        _sync(file)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Force a file's contents, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(
    value: Any, *, non_finite: NonFinite = "refuse", indent: int | None = 2, default: Callable[[Any], Any] | None = None
) -> str:
    """Write as JSON.

    Args:
        value: Dictionaries, lists, tuples, texts, numbers, truth values and None.
        non_finite: `refuse` numbers that are not finite; or write `null`, where they mean that there is none, such as a
            bound that does not exist.
        indent: Blanks per level; None for one line.
        default: Makes one of these of anything else.

    Raises:
        ValueError: If a number is not finite and is to be refused; the message says where it stands.
    """
    if non_finite == "null":
        value = _nulled(value)
    elif (place := _first_non_finite(value, "")) is not None:
        raise ValueError(f"{place} is not a finite number, which JSON cannot hold")
    return json.dumps(value, indent=indent, allow_nan=False, default=default)


def _nulled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nulled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nulled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_non_finite(value: Any, place: str) -> str | None:
    """Where the first number that is not finite stands, such as `blocks[3].bound`."""
    if isinstance(value, dict):
        inside = [(item, f"{place}.{key}" if place else str(key)) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        inside = [(item, f"{place}[{i}]") for i, item in enumerate(value)]
    else:
        return (place or "the value") if isinstance(value, float) and not math.isfinite(value) else None
    return next((found for item, where in inside if (found := _first_non_finite(item, where)) is not None), None)
