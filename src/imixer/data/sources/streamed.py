"""Rows of shards that are fetched by groups, through a cache on the local disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from imixer.data.config import DataConfig
from imixer.data.sampler import Windows
from imixer.data.sources.group_cache import GIGABYTE, GroupCache, default_cache_dir
from imixer.data.sources.image_files import expand_user
from imixer.data.sources.rows import Rows
from imixer.errors import InputError

_SAMPLE, _SAMPLE_GROUPS = 2000, 8


@dataclass(frozen=True)
class Group:
    """Consecutive rows of one shard, which are fetched together.

    Args:
        file: The shard.
        number: Number of the group in it.
        first_row: Number of the first row in it.
        rows: Number of rows.
        size: Bytes that the images take.
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
        folder = default_cache_dir() if config.cache_dir is None else expand_user(config.cache_dir)
        versions = "\n".join(f"{file}\t{version}" for file, version in source.versions.items())
        self.cache = GroupCache(Path(folder), 2 * self.window, _digest(versions))
        rows = [group.rows for group in source.groups]
        self.sizes = np.array([group.size for group in source.groups], dtype=np.int64)
        self.group_of_row = np.repeat(np.arange(len(rows)), rows)
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        largest = max(source.groups, key=lambda group: group.size)
        if largest.size > self.window:
            raise InputError(
                f"{largest.file} has {largest.rows:,} images in one group of {largest.size / GIGABYTE:.3g} GB, more "
                f"than half of data.cache_gb {config.cache_gb:g}; give {2.1 * largest.size / GIGABYTE:.2g}, or write "
                "smaller groups"
            )

    def encoded(self, row: int) -> bytes | None:
        """Return the encoded image of a row, and fetch its group before if it is not in the cache."""
        group = int(self.group_of_row[row])
        return self.cache.read(group, row - int(self._starts[group]), lambda: self.source.fetch(group))

    def name(self, row: int) -> str:
        """Name a row by file and number, for messages."""
        group = int(self.group_of_row[row])
        place = self.source.groups[group]
        return f"{place.file} row {place.first_row + row - int(self._starts[group])}"

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
        self.cache.hold(group, lambda: self.source.fetch(group))

    def windows(self, chosen: NDArray[np.int64]) -> Windows:
        """Return the groups of some rows, and how much of them is read at a time.

        Args:
            chosen: Numbers of the rows.
        """
        return Windows(self.group_of_row[chosen], self.sizes, self.window)

    def sample(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Choose rows of a few groups, always the same, so that looking at them does not fetch everything.

        Args:
            chosen: Numbers of the rows to choose from.
        """
        groups = self.group_of_row[chosen]
        taken: list[NDArray[np.int64]] = []
        for group in np.random.default_rng(0).permutation(np.unique(groups)):
            if len(taken) == _SAMPLE_GROUPS or sum(map(len, taken)) >= _SAMPLE:
                break
            taken.append(chosen[groups == group])
        return np.concatenate(taken)

    def fingerprint(self) -> str:
        """Return what tells these rows from others, wherever the files lie."""
        groups = "\n".join(str((group.file.name, *astuple(group)[1:])) for group in self.source.groups)
        return _digest(groups + _digest(self.labels.tobytes().hex()))

    def note(self) -> str:
        """Say in a sentence what is streamed, and where it is kept."""
        total, groups = self.sizes.sum() / GIGABYTE, len(self.sizes)
        return (
            f"streamed: {groups:,} {'group' if groups == 1 else 'groups'} of rows, {total:.3g} GB, through a cache of "
            f"{2 * self.window / GIGABYTE:g} GB in {self.cache.folder}, and shuffled within half of it"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
