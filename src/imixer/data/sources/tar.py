"""Tar shards of images, as webdataset writes them: `KEY.jpg` beside `KEY.cls` or `KEY.json`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath

import pyarrow as pa

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sources.group_cache import GIGABYTE, index_dir
from imixer.data.sources.parquet_columns import LabelSource, ShardLabels, read_labels
from imixer.data.sources.shard_data import RowsOfLabels, is_streamed, open_rows
from imixer.data.sources.shard_files import ShardFiles
from imixer.data.sources.storage import RemotePath, read_range, require_version
from imixer.data.sources.streamed import Group, HeldRows, StreamedRows
from imixer.data.sources.tar_index import Label, TarIndex, load_index
from imixer.errors import InputError
from imixer.escaping import few_names
from imixer.progress import with_progress

_READERS = 8  # files that are indexed at once: most of the time they wait
_LARGEST_GROUP = 64_000_000  # bytes: fetched in one request, and few enough that windows hold many
_LEAST_GROUPS = 8  # of a window


@dataclass(frozen=True)
class _Samples:
    """Consecutive samples of tar files, a `GroupSource`.

    Args:
        groups: The samples that are fetched together.
        versions: What tells each file from another of its name.
        indices: The samples of each file.
        single_reads: Whether images are read one by one, from files on this machine.
    """

    groups: Sequence[Group]
    versions: dict[PurePath, str]
    indices: dict[PurePath, TarIndex]
    single_reads: bool

    def fetch(self, group: int) -> Sequence[bytes | None]:
        place = self.groups[group]
        first, end = place.place
        text = self._read(place.file, first, end)
        index = self.indices[place.file]
        return [
            None if index.offsets[row] < 0 else text[index.offsets[row] - first :][: index.sizes[row]]
            for row in range(place.first_row, place.first_row + place.rows)
        ]

    def groups_with_gaps(self) -> Sequence[int]:
        return [
            number
            for number, group in enumerate(self.groups)
            if min(self.indices[group.file].offsets[group.first_row : group.first_row + group.rows]) < 0
        ]

    def name(self, group: int, image: int) -> str:
        place = self.groups[group]
        return f"{self.indices[place.file].keys[place.first_row + image]} of {place.file}"

    def read(self, group: int, image: int) -> bytes | None:
        place = self.groups[group]
        index, row = self.indices[place.file], place.first_row + image
        offset = index.offsets[row]
        return None if offset < 0 else self._read(place.file, offset, offset + index.sizes[row])

    def _read(self, file: PurePath, first: int, end: int) -> bytes:
        text = read_range(file, first, end)
        require_version(file, self.versions[file])
        if len(text) < end - first:
            raise InputError(f"{file} ends at byte {first + len(text):,}, before its images do; fetch it again")
        return text


class _ByIndex:
    """A reader of tar shards by their indices, from memory or streamed.

    Args:
        config: Size and folder of the cache.
        streamed: Whether images are fetched when they are asked for.
    """

    def __init__(self, config: DataConfig, streamed: bool) -> None:
        self.config, self.streamed = config, streamed
        self.source = LabelSource("member cls", "write the class of each image there")
        self._in_words: bool | None = None
        self._first: tuple[PurePath, str] | None = None  # a training file, and where its labels stand

    def __call__(self, files: Sequence[PurePath]) -> tuple[list[ShardLabels], RowsOfLabels]:
        """Index some shards."""
        remote = isinstance(files[0], RemotePath)
        folder = index_dir(self.config.cache_dir) if self.streamed or remote else None
        with ThreadPoolExecutor(_READERS) as pool:
            each = ([index] for index in pool.map(partial(load_index, folder=folder), files))
            loaded = with_progress(each, len(files), "indexing tar files", patience=5.0)
            indices = dict(zip(files, loaded, strict=True))
        window = self.config.cache_gb * GIGABYTE / 2
        limit = int(min(_LARGEST_GROUP, window / _LEAST_GROUPS))
        groups = [group for file, index in indices.items() for group in _groups(file, index, limit)]
        versions = {file: index.version for file, index in indices.items()}
        source = _Samples(groups, versions, indices, self.streamed and not remote)
        labels = self._labels(indices)
        if others := {file.name: index.others for file, index in indices.items() if index.others}:
            counted = f"{sum(others.values()):,} of {few_names(list(others))}"
            note = f"members that are no image and no label are not read: {counted}"
            self.source = replace(self.source, notes=(*self.source.notes, note))
        if self.streamed:
            return labels, lambda of_rows: StreamedRows(source, of_rows, self.config)
        return labels, lambda of_rows: HeldRows(source, of_rows)

    def _labels(self, indices: dict[PurePath, TarIndex]) -> list[ShardLabels]:
        """Read the labels as words if any is one, in any file."""
        self._require_one_place(indices)
        if self._in_words is None:  # as the training files decide
            place = next(iter(indices.values())).label_place
            self.source = LabelSource(place, self.source.remedy, () if place == "member cls" else (_told(place),))
            self._in_words = any(isinstance(label, str) for index in indices.values() for label in index.labels)
        return [
            read_labels(_column(index.labels, self._in_words), pa.schema([]), index.label_place, file)
            for file, index in indices.items()
        ]

    def _require_one_place(self, indices: dict[PurePath, TarIndex]) -> None:
        """Require that all files have labels in the place where the first training file has them."""
        for file, index in indices.items():
            first, place = self._first = self._first or (file, index.label_place)
            if index.label_place != place:
                raise InputError(
                    f"{first} has labels in {place}, and {file} in {index.label_place}; write them in one place"
                )


def _told(place: str) -> str:
    return f"labels are those of {place}"


def _column(labels: Sequence[Label], in_words: bool) -> pa.ChunkedArray:
    in_words = in_words or any(isinstance(label, str) for label in labels)
    return pa.chunked_array([pa.array([str(each) for each in labels] if in_words else labels)])


def _groups(file: PurePath, index: TarIndex, limit: int) -> list[Group]:
    """Cut the samples of a file into groups of consecutive ones, whose part of the file is within a limit."""
    groups: list[Group] = []
    first_row = size = 0
    first = end = -1

    def close(row: int) -> None:
        if row > first_row:
            groups.append(Group(file, len(groups), first_row, row - first_row, size, (max(first, 0), max(end, 0))))

    for row, (offset, length) in enumerate(zip(index.offsets, index.sizes, strict=True)):
        if offset < 0:
            continue
        if first >= 0 and offset + length - first > limit:
            close(row)
            first_row, first, size = row, -1, 0
        first = offset if first < 0 else first
        end, size = offset + length, size + length
    close(len(index.offsets))
    return groups


def open_tar(root: PurePath, shards: ShardFiles, config: DataConfig) -> ImageData:
    """Open the images of tar shards, held in memory as encoded bytes, or streamed.

    Members in a row that are called alike up to the first dot are a sample: an image, and its class in `cls`, or else
    in a field of `json` such as `label`. An index of each file is built once, and kept beside the cache if the images
    are streamed or elsewhere. Without held-out shards, `val_fraction` of each class is held out. Only `check: full`
    decodes all images first.

    Args:
        root: The folder that the data set is named after.
        shards: The files, as `find_shards` finds them.
        config: How they are read and split.

    Raises:
        InputError: If a file is unreadable or no tar file, a sample has no label or two images, a label is no class or
            none of the training split, files have labels in different places, an image that was looked at is
            unreadable, all of them are alike, there is one class only, or too few images to split.
    """
    return open_rows(root, shards, config, _ByIndex(config, is_streamed(shards, config)))
