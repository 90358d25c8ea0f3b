"""Rows of shards that are fetched by groups, through a cache on the local disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import PurePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from imixer.data.config import DataConfig
from imixer.data.sampler import Windows
from imixer.data.sources.group_cache import GIGABYTE, GroupCache, cache_dir, stored_size
from imixer.data.sources.rows import Rows
from imixer.data.sources.storage import RemotePath
from imixer.errors import InputError


@dataclass(frozen=True)
class Group:
    """Consecutive rows of one shard, which are fetched together.

    Args:
        file: The shard.
        number: Number of the group in it.
        first_row: Number of the first row in it.
        rows: Number of rows.
        size: Bytes that the images take together.
        place: First byte in the shard, and the one behind the last.
    """

    file: PurePath
    number: int
    first_row: int
    rows: int
    size: int
    place: tuple[int, int]


class GroupSource(Protocol):
    """Where groups are fetched from: the shards of one layout, as they were when they were opened."""

    @property
    def groups(self) -> Sequence[Group]:
        """Return the groups of all shards, in order."""
        ...

    @property
    def versions(self) -> dict[PurePath, str]:
        """Return what tells each shard from another of its name."""
        ...

    def fetch(self, group: int) -> Sequence[bytes | None]:
        """Fetch the encoded images of a group; None stands for a missing one."""
        ...

    def groups_with_gaps(self) -> Sequence[int]:
        """List the groups that are known to have rows without an image."""
        ...

    def name(self, group: int, image: int) -> str:
        """Name an image of a group, for messages."""
        ...

    @property
    def single_reads(self) -> bool:
        """Return whether an image is read as fast as its group: there is no cache then."""
        ...

    def read(self, group: int, image: int) -> bytes | None:
        """Read an image of a group, where `single_reads` says so. None: the row has none."""
        ...


class StreamedRows(Rows):
    """Encoded images that are fetched by groups and kept in a cache for a while.

    Choose it over `EncodedRows` for images that do not fit the memory, or lie elsewhere. It pickles to worker
    processes, which share the cache.

    Args:
        source: Where groups are fetched from.
        labels: Label of each row (rows,).
        config: Size and folder of the cache.

    Raises:
        InputError: If a group is larger than a window of the cache.
    """

    def __init__(self, source: GroupSource, labels: NDArray[np.int64], config: DataConfig) -> None:
        super().__init__(labels)
        self.source = source
        self.window = int(config.cache_gb * GIGABYTE / 2)  # one that is read, and one that is fetched meanwhile
        self.cache: GroupCache | None = None
        if not source.single_reads:
            cut = " ".join(str(group.rows) for group in source.groups)  # which may follow the size of the cache
            content = _digest(f"{self._versions()}\n{cut}")
            self.cache = GroupCache(cache_dir(config.cache_dir), 2 * self.window, content)
        rows = [group.rows for group in source.groups]
        self.sizes = np.array([stored_size(group.rows, group.size) for group in source.groups], dtype=np.int64)
        self.group_of_row = np.repeat(np.arange(len(rows)), rows)
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        largest = int(np.argmax(self.sizes))
        if (size := int(self.sizes[largest])) > self.window:
            raise InputError(
                f"{source.groups[largest].file} has {rows[largest]:,} images in one group of {size / GIGABYTE:.3g} GB, "
                f"more than half of data.cache_gb {config.cache_gb:g}; give {2.1 * size / GIGABYTE:.2g}, or write "
                "smaller groups"
            )

    def encoded(self, row: int) -> bytes | None:
        """Return the encoded image of a row, and fetch its group before if it is not in the cache."""
        group, image = self._locate(row)
        if self.cache is None:
            return self.source.read(group, image)
        return self.cache.read(group, image, lambda: self.source.fetch(group))

    def name(self, row: int) -> str:
        """Name a row by file and number or key, for messages."""
        return self.source.name(*self._locate(row))

    def _locate(self, row: int) -> tuple[int, int]:
        group = int(self.group_of_row[row])
        return group, row - int(self._starts[group])

    def without_bytes(self) -> list[int]:
        """List the rows that are known to have no image, of groups that say that they have such rows."""
        rows = [
            int(row)
            for group in self.source.groups_with_gaps()
            for row in range(self._starts[group], self._starts[group + 1])
        ]
        return [row for row in rows if self.encoded(row) is None]

    def hold(self, group: int) -> None:
        """Fetch a group into the cache if it is not there.

        Raises:
            InputError: If it cannot be fetched or kept.
        """
        if self.cache is not None:
            self.cache.hold(group, lambda: self.source.fetch(group))

    def windows(self, chosen: NDArray[np.int64]) -> Windows:
        """Return the groups of some rows, and how much of them is read at a time.

        Args:
            chosen: Numbers of the rows.
        """
        return Windows(self.group_of_row[chosen], self.sizes, self.window)

    def fingerprint(self, sample: NDArray[np.int64]) -> str:
        """Return what tells these rows from others, wherever the files lie.

        Args:
            sample: Numbers of the rows whose images are told apart too.
        """
        groups = "\n".join(str((group.file.name, *astuple(group)[1:])) for group in self.source.groups)
        images = hashlib.sha256()
        for row in sample:
            images.update(self.encoded(int(row)) or b"")
        return _digest(groups + _digest(self.labels.tobytes().hex()) + images.hexdigest())

    def object_versions(self) -> str:
        """Return what tells the objects at a URL from others of their names. Empty: they are files, or do not say."""
        remote = all(isinstance(group.file, RemotePath) for group in self.source.groups)
        return _digest(self._versions()) if remote else ""

    def _versions(self) -> str:
        return "\n".join(f"{file}\t{version}" for file, version in self.source.versions.items())

    def note(self) -> str:
        """Say in a sentence what is streamed, and where it is kept."""
        total, groups = self.sizes.sum() / GIGABYTE, len(self.sizes)
        streamed = f"streamed: {groups:,} {'group' if groups == 1 else 'groups'} of images, {total:.3g} GB, "
        if self.cache is None:
            return streamed + f"straight from the disk, and shuffled within {self.window / GIGABYTE:g} GB"
        return streamed + (
            f"through a cache of {2 * self.window / GIGABYTE:g} GB in {self.cache.folder}, and shuffled within half of "
            "it"
        )


class HeldRows(Rows):
    """Encoded images of all groups, in memory.

    Choose it over `StreamedRows` for images that fit the memory.

    Args:
        source: Where groups are fetched from, once.
        labels: Label of each row (rows,).
    """

    def __init__(self, source: GroupSource, labels: NDArray[np.int64]) -> None:
        super().__init__(labels)
        self._images: list[bytes | None] = []
        self._names: list[str] = []
        for number, group in enumerate(source.groups):
            self._images += source.fetch(number)
            self._names += [source.name(number, image) for image in range(group.rows)]

    def encoded(self, row: int) -> bytes | None:
        """Return the encoded image of a row. None: it has none."""
        return self._images[row]

    def name(self, row: int) -> str:
        """Name a row by file and number or key, for messages."""
        return self._names[row]

    def without_bytes(self) -> list[int]:
        """List the rows that have no image."""
        return [row for row, image in enumerate(self._images) if image is None]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
