"""Files that are whole or not there, whenever the process or the machine dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


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
