"""Write files atomically: whenever the process or the machine dies, a file is whole or as it was before.

For text, JSON and CSV there is one function each. `replacing` is for whatever else writes to a path, such as
`torch.save` or matplotlib, and `make_folder` for several files that belong together. `check_output_file` and
`check_output_folder` say before a long computation whether its results can be written.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from uuid import uuid4

from imixer.errors import InputError
from imixer.escaping import for_csv, middle_cut

NonFinite = Literal["refuse", "null"]
_TEMPORARY = ".writing"  # suffix of what is not whole yet
_MOST_LETTERS = 200  # of a path in a message


def check_output_file(file: Path, option: str, *, replace: bool = False) -> None:
    """Check that a file can be written, before what it is to hold is computed.

    Args:
        file: The file.
        option: What messages begin with: the option that names the file.
        replace: Whether a file that is there may be replaced.

    Raises:
        InputError: If it exists and may not be replaced, it is a folder, or no file can be written to its folder.
    """
    folder, shown = file.absolute().parent, middle_cut(str(file), _MOST_LETTERS)
    try:
        there = file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        there = None
    except (OSError, ValueError) as error:  # too long a name, say
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option}: {shown} cannot be written, {reason}; give another name") from error
    if file.is_dir():
        raise InputError(f"{option}: {shown} is a folder; give another name or remove it")
    if there is not None and not replace:
        raise InputError(f"{option}: {shown} exists, and nothing is overwritten; give another name or remove it")
    if not folder.is_dir():
        where = middle_cut(str(folder), _MOST_LETTERS)
        raise InputError(f"{option}: {shown} cannot be written, there is no folder {where}")
    check_output_folder(folder, option)


def check_output_folder(folder: Path, option: str) -> None:
    """Check that files can be written to a folder, which is made if it is not there.

    Args:
        folder: The folder.
        option: What messages begin with: the option that names the folder, or a file in it.

    Raises:
        InputError: If it lies under a file or a link to nowhere, or may not be written to.
    """
    path = folder.absolute()
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    shown = middle_cut(str(folder), _MOST_LETTERS)
    if not there.is_dir():
        what = "a file" if there.exists() else "a link to nowhere"
        raise InputError(f"{option}: {shown} cannot be made, {there} is {what}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option}: nothing can be written to {there}, which is not yours to change")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically by one that is written under a temporary name beside it.

    What was written is forced to the disk before and after the renaming. If anything goes wrong, the temporary file is
    removed and `path` is as it was.

    Args:
        path: The file.

    Yields:
        The temporary file to write to, which has another suffix.
    """
    temporary = path.with_name(f".{_short(path)}.{uuid4().hex}{_TEMPORARY}")
    try:
        with _naming(path):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def is_temporary(path: Path) -> bool:
    """Tell whether a file is one that is being written now, or whose writing was killed."""
    return path.name.startswith(".") and path.suffix == ".writing"


@contextmanager
def moved_into_place(path: Path) -> Iterator[Path]:
    """Write a file under its own name in a temporary folder, and move it into place when it is whole.

    Choose it over `replacing` for libraries that go by the name of the file, or write further files beside it, which
    are moved too. If anything goes wrong, nothing of it is left.

    Args:
        path: The file.

    Yields:
        The path to write to.
    """
    beside = path.absolute().parent
    with _naming(path), TemporaryDirectory(prefix=f".{_short(path)}.", suffix=_TEMPORARY, dir=beside) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        files = sorted(Path(folder).iterdir(), key=lambda file: file == temporary)  # itself last: then all is there
        for file in files:
            _sync(file)
            os.replace(file, path.with_name(file.name))
    _sync(beside)


def _short(path: Path) -> str:
    """Shorten a name, so that a temporary one, which is longer, is allowed wherever the name itself is."""
    return path.name[:32]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of the system about a temporary file name the file or folder that was to be written."""
    try:
        yield
    except OSError as error:
        if _TEMPORARY not in str(error.filename):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, non_finite: NonFinite = "refuse") -> None:
    """Write a JSON file atomically, with a line break at its end.

    Args:
        path: The file.
        value: Dictionaries, lists, tuples, texts, numbers, truth values and None.
        non_finite: What to do about numbers that are not finite; see `json_text`.

    Raises:
        ValueError: If a number is not finite and is to be refused.
    """
    write_text(path, json_text(value, non_finite=non_finite) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file atomically. Without rows it is empty.

    Args:
        path: The file.
        rows: A mapping of column to cell for each line. The first one names the columns; cells are as in `csv_text`.
    """
    header = list(rows[0]) if rows else []
    write_text(path, csv_text(header, ([row.get(name) for name in header] for row in rows)))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a table as CSV. Text is escaped so that no spreadsheet computes it.

    Args:
        header: The name of each column; without any there is no header line.
        rows: Cells of text, numbers, truth values, and None for an empty one.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(map(for_csv, header))
    writer.writerows(map(for_csv, row) for row in rows)
    return text.getvalue()


def make_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder of files atomically. A folder that exists is left alone.

    If anything goes wrong, nothing of it is left.

    Args:
        path: The folder.
        fill: A function that writes the files into the folder it is given.
    """
    if path.exists():
        return
    temporary = path.with_name(f".{_short(path)}.{uuid4().hex}{_TEMPORARY}")  # of this writer alone
    try:
        with _naming(path):
            temporary.mkdir()
            fill(temporary)
            for file in temporary.rglob("*"):
                _sync(file)
            _move_unless_there(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(path.parent)


def _move_unless_there(folder: Path, path: Path) -> None:
    """Move a folder into place, unless another writer was first."""
    try:
        os.replace(folder, path)
    except OSError:
        if not path.is_dir():
            raise


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
    """Format a value as JSON, which knows neither NaN nor infinity.

    Args:
        value: Dictionaries, lists, tuples, texts, numbers, truth values and None.
        non_finite: What to do about numbers that are not finite: `refuse` them, or write `null`. Choose `null` where
            such a number means that there is none, such as a bound that does not exist.
        indent: Blanks per level; None for one line.
        default: A function that turns any other object into one of these.

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
    """Locate the first number that is not finite, such as `blocks[3].bound`."""
    if isinstance(value, dict):
        inside = [(item, f"{place}.{key}" if place else str(key)) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        inside = [(item, f"{place}[{i}]") for i, item in enumerate(value)]
    else:
        return (place or "the value") if isinstance(value, float) and not math.isfinite(value) else None
    places = (_first_non_finite(item, where) for item, where in inside)
    return next((each for each in places if each is not None), None)
