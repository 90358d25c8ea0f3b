"""Encoded images on the local disk, some groups of a larger data set at a time, for all processes of the machine."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from imixer.data.sources.decoding import error_reason
from imixer.errors import InputError

GIGABYTE = 1_000_000_000
_LOCKS = 64
_ABANDONED_S = 3600.0  # age of a part of a file whose writer was killed
_SUFFIX, _PART = ".images", ".part"


def default_cache_dir() -> Path:
    """Return the folder for groups of images where none is set: `imixer` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imixer"


class GroupCache:
    """A folder that holds groups of encoded images, up to a size. What was fetched longest ago makes place.

    Choose it for data that are larger than memory. A group is one file, which is complete or not there. So loader
    processes and processes of a run share it, and one that is killed leaves nothing half. What the folder holds
    changes how long images take, and never which ones they are.

    Args:
        folder: The folder, made when needed.
        limit: Bytes that all groups in it may take.
        key: Name for the data set, another one whenever its files are others.
    """

    def __init__(self, folder: Path, limit: int, key: str) -> None:
        self.folder = folder
        self.limit = limit
        self.key = key

    def file(self, group: int) -> Path:
        """Return where a group lies when it is there."""
        return self.folder / self.key / f"{group}{_SUFFIX}"

    def read(self, group: int, image: int, fetch: Callable[[], Sequence[bytes | None]]) -> bytes | None:
        """Read an image, and fetch its group before if it is not there.

        Args:
            group: Number of the group.
            image: Number of the image in it.
            fetch: Reads the encoded images of the group; None stands for a missing one.

        Returns:
            The encoded image. None: the row has none.

        Raises:
            InputError: If the folder cannot be written.
        """
        while True:
            try:
                return _read_image(self.file(group), image)
            except (FileNotFoundError, EOFError):  # EOF: the machine lost power before the disk had it
                self.hold(group, fetch)

    def hold(self, group: int, fetch: Callable[[], Sequence[bytes | None]]) -> None:
        """Fetch a group if it is not there, and count it as fetched now.

        Args:
            group: Number of the group.
            fetch: Reads the encoded images of the group; None stands for a missing one.

        Raises:
            InputError: If the folder cannot be written.
        """
        file = self.file(group)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{group % _LOCKS}.lock"):
                if _is_whole(file):
                    os.utime(file)
                    return
                images = fetch()
                part = file.with_name(f"{group}-{os.getpid()}-{threading.get_ident()}{_PART}")
                self._make_place(sum(len(each or b"") for each in images))
                _write_images(part, images)
                os.replace(part, file)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "lower data.cache_gb, or name a larger place" if full else "name another place"
            raise InputError(
                f"cannot keep images in {self.folder}: {error_reason(error)}; {remedy} with data.cache_dir"
            ) from error

    def _make_place(self, wanted: int) -> None:
        """Remove what was fetched longest ago until there is place for so many bytes."""
        entries = []
        for folder in os.scandir(self.folder):
            if folder.is_dir(follow_symlinks=False):
                entries += [_seen(entry) for entry in os.scandir(folder) if entry.name.endswith((_SUFFIX, _PART))]
        there = sorted(each for each in entries if each is not None)
        total = sum(size for _, size, _ in there)
        for fetched, size, path in there:
            if path.endswith(_PART) and time.time() - fetched < _ABANDONED_S:
                continue
            if total + wanted <= self.limit and not path.endswith(_PART):
                return
            Path(path).unlink(missing_ok=True)
            total -= size


def _seen(entry: os.DirEntry[str]) -> tuple[float, int, str] | None:
    """Return time, size and path of a file. None: another process has removed it."""
    try:
        seen = entry.stat()
    except FileNotFoundError:
        return None
    return seen.st_mtime, seen.st_size, entry.path


def _write_images(file: Path, images: Sequence[bytes | None]) -> None:
    """Write images one after the other, behind the place where each ends; a missing one has no length."""
    ends = np.cumsum([8 * (len(images) + 1)] + [len(each or b"") for each in images], dtype="<i8")
    with open(file, "wb") as stream:
        stream.write(ends.tobytes())
        for each in images:
            stream.write(each or b"")


def _read_image(file: Path, image: int) -> bytes | None:
    with open(file, "rb", buffering=0) as stream:
        begin, end = np.frombuffer(_exactly(stream.fileno(), 16, 8 * image), dtype="<i8").tolist()
        return _exactly(stream.fileno(), end - begin, begin) or None


def _exactly(descriptor: int, length: int, offset: int) -> bytes:
    if len(text := os.pread(descriptor, length, offset)) < length:
        raise EOFError
    return text


def _is_whole(file: Path) -> bool:
    """Tell whether a group is there with all its bytes."""
    try:
        with open(file, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < 8:
                return False
            (first,) = np.frombuffer(_exactly(stream.fileno(), 8, 0), dtype="<i8").tolist()
            (last,) = np.frombuffer(_exactly(stream.fileno(), 8, first - 8), dtype="<i8").tolist()
            return last == size
    except (OSError, EOFError):
        return False
