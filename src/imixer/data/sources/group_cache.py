"""Encoded images on the local disk, some groups of a larger data set at a time, for all processes of the machine."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from imixer.data.sources.decoding import error_reason
from imixer.data.sources.image_files import expand_user
from imixer.errors import InputError

GIGABYTE = 1_000_000_000
_LOCKS = 64
_POLL_S = 0.01
_SUFFIX, _PART = ".images", ".part"


def cache_dir(setting: str | None) -> Path:
    """Return the folder for groups of images: the one that is set, or else `imixer` in the user's cache folder.

    Raises:
        InputError: If it names a home that does not exist.
    """
    if setting is not None:
        return expand_user(setting)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imixer"


def index_dir(setting: str | None) -> Path:
    """Return the folder for the indices of tar files, below that for images. They are small, and stay."""
    return cache_dir(setting) / "indices"


class GroupCache:
    """A folder that holds groups of encoded images, up to a size. What was fetched longest ago makes place.

    Choose it for data that are larger than memory. A group is one file, which is complete or not there. So loader
    processes and processes of a run share it, and one that is killed leaves nothing half. What is being written counts
    as written. What the folder holds changes how long images take, and never which ones they are.

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
        try:
            return _read_image(self.file(group), image)
        except (FileNotFoundError, EOFError):  # EOF: the machine lost power before the disk had it
            images = self.hold(group, fetch)
            # once more from the disk where another process had fetched it, and anew if it has made place already
            return images[image] if images is not None else self.read(group, image, fetch)

    def hold(self, group: int, fetch: Callable[[], Sequence[bytes | None]]) -> Sequence[bytes | None] | None:
        """Fetch a group if it is not there, and count it as fetched now.

        Args:
            group: Number of the group.
            fetch: Reads the encoded images of the group; None stands for a missing one.

        Returns:
            The group's images. None: it was there.

        Raises:
            InputError: If the group is larger than the cache, or the folder cannot be written.
        """
        file = self.file(group)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{group % _LOCKS}.lock", poll_interval=_POLL_S):
                if _is_whole(file):
                    os.utime(file)
                    return None
                images = fetch()
                part = file.with_name(f"{group}-{os.getpid()}-{threading.get_ident()}{_PART}")
                with self._reserved(part, stored_size(len(images), sum(len(each or b"") for each in images))) as stream:
                    _write_images(stream, images)
                    with FileLock(
                        self.folder / "place.lock", poll_interval=_POLL_S
                    ):  # else a count may miss both names
                        os.replace(part, file)
                return images
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "lower data.cache_gb, or name a larger place" if full else "name another place"
            raise InputError(
                f"cannot keep images in {self.folder}: {error_reason(error)}; {remedy} with data.cache_dir"
            ) from error

    @contextmanager
    def _reserved(self, part: Path, size: int) -> Iterator[BinaryIO]:
        """Open a file for which there is place, and take that at once: other processes must not count on it too."""
        if size > self.limit:
            raise InputError(
                f"a group of images takes {size / GIGABYTE:.3g} GB, more than data.cache_gb {self.limit / GIGABYTE:g}; "
                f"give {2.1 * size / GIGABYTE:.2g} or more"
            )
        while True:
            with FileLock(self.folder / "place.lock", poll_interval=_POLL_S):
                if self._make_place(size):
                    stream = open(part, "wb")  # noqa: SIM115 - closed below
                    fcntl.flock(stream, fcntl.LOCK_EX)  # until it is closed, also by a kill
                    os.truncate(stream.fileno(), size)
                    break
            time.sleep(_POLL_S)  # others are writing, and need no further place
        with stream:
            yield stream

    def _make_place(self, wanted: int) -> bool:
        """Remove what was fetched longest ago until there is place for so many bytes; return whether there is."""
        entries = []
        for folder in os.scandir(self.folder):
            if folder.is_dir(follow_symlinks=False):
                entries += [_seen(entry) for entry in os.scandir(folder) if entry.name.endswith((_SUFFIX, _PART))]
        there = sorted(each for each in entries if each is not None)
        total = sum(size for _, size, _ in there)
        for _, size, path in there:
            is_part = path.endswith(_PART)
            if total + wanted <= self.limit and not is_part:
                continue
            if is_part and _is_being_written(path):
                continue
            Path(path).unlink(missing_ok=True)
            total -= size
        return total + wanted <= self.limit


def stored_size(images: int, size: int) -> int:
    """Count the bytes that a group takes in the cache.

    Args:
        images: Number of its images.
        size: Bytes of all of them.
    """
    return size + 8 * (images + 1)


def _seen(entry: os.DirEntry[str]) -> tuple[float, int, str] | None:
    """Return time, size and path of a file. None: another process has removed it."""
    try:
        seen = entry.stat()
    except FileNotFoundError:
        return None
    return seen.st_mtime, seen.st_size, entry.path


def _is_being_written(path: str) -> bool:
    """Tell whether the writer of a part of a file lives: it holds a lock on it."""
    try:
        with open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _write_images(stream: BinaryIO, images: Sequence[bytes | None]) -> None:
    """Write images one after the other, behind the place where each ends; a missing one has no length."""
    ends = np.cumsum([8 * (len(images) + 1)] + [len(each or b"") for each in images], dtype="<i8")
    stream.write(ends.tobytes())
    for each in images:
        stream.write(each or b"")
    stream.flush()


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
