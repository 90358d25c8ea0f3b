"""Read small files that a power cut, an editor or a stranger may have damaged: JSON, tables of numbers.

Whatever is wrong with a file is said in one line that names it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imixer.errors import InputError

_LARGEST = 64 * 2**20  # bytes, of any file that is read whole
_NULLS = "a power cut may have left it so"


def read_text(file: Path, largest: int = _LARGEST) -> str:
    """Read a text file.

    Args:
        file: The file.
        largest: The largest size, in bytes.

    Raises:
        InputError: If the file is missing, cannot be read, is too large, or is no text.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(largest + 1)
    except FileNotFoundError as error:
        raise InputError(f"file {file} does not exist") from error
    except (OSError, ValueError) as error:  # the latter of names that no file can have
        raise InputError(f"{file} cannot be read, {getattr(error, 'strerror', None) or error}") from error
    if len(content) > largest:
        raise InputError(f"{file} is larger than {largest // 2**20} MB, which no such file is; give another")
    if content and not content.strip(b"\0"):
        raise InputError(f"{file} holds {len(content)} zero bytes and nothing else; {_NULLS}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text file: byte {error.start} is not of UTF-8") from error


def read_json(file: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        file: The file.
        keys: The keys that the object must have.

    Raises:
        InputError: If the file cannot be read, is not JSON, holds no object, or lacks a key.
    """
    content = parse_json(read_text(file), str(file))
    if not isinstance(content, dict):
        raise InputError(f"{file} is damaged: it holds no JSON object")
    if missing := [key for key in keys if key not in content]:
        raise InputError(f"{file} is damaged: it has no {missing[0]}")
    return content


def parse_json(text: str, name: str) -> Any:
    """Parse JSON.

    Args:
        text: The JSON.
        name: The name of it in messages.

    Raises:
        InputError: If it is not JSON, or has a number that is not finite.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is damaged: {' '.join(str(error).split())}") from error


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not a finite number, which JSON cannot hold")
    return value


def is_number(value: object) -> bool:
    """Say whether a value that was read from JSON or YAML is a number, which true and false are not."""
    return type(value) in (int, float)


def read_rows(file: Path, columns: Sequence[str]) -> tuple[list[dict[str, str]], int]:
    """Read a CSV file of numbers, without the rows that are damaged.

    A last line without a line break is being written by another process, and counts as no row. A file that is missing
    has no rows.

    Args:
        file: The file. Its first line names the columns.
        columns: The columns that must be there.

    Returns:
        The rows, whose cells are texts that are numbers; and the number of damaged lines. If the first line is damaged,
        all are.

    Raises:
        InputError: If the file is there and cannot be read.
    """
    if not file.exists():
        return [], 0
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST)
    except OSError as error:
        raise InputError(f"{file} cannot be read, {error.strerror}") from error
    *lines, rest = content.split(b"\n")
    whole = [_cells(line) for line in lines]
    damaged = int(b"\0" in rest)
    if not whole:
        return [], damaged
    header = whole[0] or []
    if not set(columns) <= set(header) or len(set(header)) != len(header):
        return [], len(whole) + damaged
    rows = []
    for cells in whole[1:]:
        if cells is None or len(cells) != len(header) or not all(map(_is_number, cells)):
            damaged += 1
        else:
            rows.append(dict(zip(header, cells, strict=True)))
    return rows, damaged


def _cells(line: bytes) -> list[str] | None:
    """Split a line into cells; None if it is damaged."""
    try:
        return next(csv.reader([line.decode("utf-8")]), [""]) if b"\0" not in line else None
    except (UnicodeDecodeError, csv.Error):
        return None


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell)) or cell in ("nan", "inf", "-inf")
    except ValueError:
        return False
