"""Parquet shards with encoded images, as Hugging Face publishes them."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sources.decoding import error_reason, special_file
from imixer.data.sources.parquet_columns import (
    Columns,
    LabelSource,
    ShardLabels,
    find_columns,
    read_labels,
    require_columns,
)
from imixer.data.sources.rows import Rows
from imixer.data.sources.shard_data import RowsOfLabels, is_streamed, open_rows
from imixer.data.sources.shard_files import ShardFiles
from imixer.data.sources.storage import RemotePath, file_version, read_file, require_version
from imixer.data.sources.streamed import Group, StreamedRows
from imixer.errors import InputError

_T = TypeVar("_T")

_READERS = 8  # threads that read labels: most of the time they wait


@dataclass(frozen=True)
class _Chunk:
    """Consecutive rows of one file.

    Args:
        file: Where they come from.
        first_row: Number of the first one in the file.
        images: Encoded images, an arrow array of bytes.
    """

    file: str
    first_row: int
    images: Any


class EncodedRows(Rows):
    """Encoded images and labels of some shards, in memory. They are cheap to pickle to worker processes that fork.

    Args:
        chunks: The encoded images, in order.
        labels: Label of each row (rows,).
    """

    def __init__(self, chunks: Sequence[_Chunk], labels: NDArray[np.int64]) -> None:
        super().__init__(labels)
        self._chunks = list(chunks)
        self._starts = np.cumsum([0] + [len(chunk.images) for chunk in chunks])[:-1].tolist()

    def _locate(self, row: int) -> tuple[_Chunk, int]:
        chunk = bisect.bisect_right(self._starts, row) - 1
        return self._chunks[chunk], row - self._starts[chunk]

    def without_bytes(self) -> list[int]:
        """List the rows that have no image."""
        return [
            start + int(row)
            for start, chunk in zip(self._starts, self._chunks, strict=True)
            if chunk.images.null_count
            for row in np.flatnonzero(chunk.images.is_null().to_numpy(zero_copy_only=False))
        ]

    def name(self, row: int) -> str:
        """Name a row by file and number, for messages."""
        chunk, offset = self._locate(row)
        return f"{chunk.file} row {chunk.first_row + offset}"

    def encoded(self, row: int) -> Any:
        """Return the encoded image of a row, as a buffer. None: it has none."""
        chunk, offset = self._locate(row)
        return chunk.images[offset].as_buffer()


def with_parquet(file: PurePath, work: Callable[[pq.ParquetFile], _T], metadata: Any = None) -> _T:
    """Do work on a parquet file, and name the file if it cannot be read."""
    if not isinstance(file, RemotePath) and (kind := special_file(Path(file))):
        raise InputError(f"cannot read parquet file {file}: it is {kind}, not a file; remove it")

    def on_stream(stream: IO[bytes]) -> _T:
        try:
            with pq.ParquetFile(stream, metadata=metadata) as shard:
                return work(shard)
        except pa.ArrowException as error:
            raise InputError(f"cannot read parquet file {file}: {error_reason(error)}; fetch it again") from error

    if isinstance(file, RemotePath):
        return read_file(file, on_stream)
    try:
        with pq.ParquetFile(file, metadata=metadata) as shard:
            return work(shard)
    except InputError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read parquet file {file}: {error_reason(error)}; fetch it again") from error


class _ColumnReader:
    """What readers of parquet shards share: the columns that the first shard chooses for all."""

    columns: Columns | None = None

    @property
    def source(self) -> LabelSource:
        assert self.columns is not None  # there is a file
        return self.columns.source


class _InMemory(_ColumnReader):
    """A reader of shards that takes all of them into memory."""

    def __call__(self, files: Sequence[PurePath]) -> tuple[list[ShardLabels], RowsOfLabels]:
        """Read some shards, all from the columns that are chosen in the first one."""
        chunks: list[_Chunk] = []
        labels: list[ShardLabels] = []
        for file in files:
            shard_chunks, shard_labels = with_parquet(file, partial(self._read, file))
            chunks += shard_chunks
            labels.append(shard_labels)
        return labels, lambda of_rows: EncodedRows(chunks, of_rows)

    def _read(self, file: PurePath, shard: pq.ParquetFile) -> tuple[list[_Chunk], ShardLabels]:
        schema = shard.schema_arrow
        self.columns = self.columns or find_columns(schema, file)
        require_columns(self.columns, schema, file)
        image, label = self.columns.image, self.columns.label
        table = shard.read(columns=[image, label])
        labels = read_labels(table.column(label), schema, label, file)
        chunks: list[_Chunk] = []
        first_row = 0
        for chunk in table.column(image).chunks:
            chunks.append(_Chunk(str(file), first_row, image_bytes(chunk, image, file)))
            first_row += len(chunk)
        return chunks, labels


def image_bytes(chunk: Any, column: str, file: PurePath) -> Any:
    """Take the bytes out of a column of images, and refuse one that has paths only."""
    images = pc.struct_field(chunk, "bytes") if pa.types.is_struct(chunk.type) else chunk
    if len(images) and images.null_count == len(images):
        _refuse_paths(chunk, column, file)
    return images


@dataclass(frozen=True)
class _Footer:
    """The last part of a parquet file, and what it says.

    Args:
        version: What tells the file from another of its name.
        metadata: arrow's metadata.
        labels: The labels of all rows.
    """

    version: str
    metadata: Any
    labels: ShardLabels


@dataclass(frozen=True)
class _RowGroups:
    """The row groups of parquet files, a `GroupSource`."""

    column: str
    groups: Sequence[Group]
    versions: dict[PurePath, str]
    footers: dict[PurePath, Any]
    with_gaps: Sequence[int]

    def fetch(self, group: int) -> Sequence[bytes | None]:
        place = self.groups[group]

        def read(shard: pq.ParquetFile) -> Sequence[bytes | None]:
            # threads of arrow's may not survive in forked loader processes
            column = shard.read_row_group(place.number, columns=[self.column], use_threads=False).column(self.column)
            return [each for chunk in column.chunks for each in image_bytes(chunk, self.column, place.file).to_pylist()]

        try:
            images = with_parquet(place.file, read, self.footers[place.file])
        except InputError:
            require_version(place.file, self.versions[place.file])  # has more to say where the file is another
            raise
        require_version(place.file, self.versions[place.file])
        return images

    def groups_with_gaps(self) -> Sequence[int]:
        return self.with_gaps

    def name(self, group: int, image: int) -> str:
        place = self.groups[group]
        return f"{place.file} row {place.first_row + image}"

    single_reads = False

    def read(self, group: int, image: int) -> bytes | None:
        return self.fetch(group)[image]


class _ByRowGroup(_ColumnReader):
    """A reader of shards that takes labels only, and fetches images by row group when they are asked for.

    Args:
        config: Size and folder of the cache.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __call__(self, files: Sequence[PurePath]) -> tuple[list[ShardLabels], RowsOfLabels]:
        """Read the labels of some shards, all from the columns that are chosen in the first one."""
        first = self._footer(files[0])
        with ThreadPoolExecutor(_READERS) as pool:
            footers = [first, *pool.map(self._footer, files[1:])]
        assert self.columns is not None  # there is a file
        groups: list[Group] = []
        with_gaps: list[int] = []
        for file, footer in zip(files, footers, strict=True):
            first_row = 0
            for number in range(footer.metadata.num_row_groups):
                row_group = footer.metadata.row_group(number)
                chunk = _bytes_of(row_group, self.columns.image)
                if row_group.num_rows == 0:
                    continue
                if chunk.statistics is not None and chunk.statistics.null_count:
                    with_gaps.append(len(groups))
                place = (chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size)
                groups.append(Group(file, number, first_row, row_group.num_rows, chunk.total_uncompressed_size, place))
                first_row += row_group.num_rows
        source = _RowGroups(
            self.columns.image,
            groups,
            {file: footer.version for file, footer in zip(files, footers, strict=True)},
            {file: footer.metadata for file, footer in zip(files, footers, strict=True)},
            with_gaps,
        )
        return [footer.labels for footer in footers], lambda of_rows: StreamedRows(source, of_rows, self.config)

    def _footer(self, file: PurePath) -> _Footer:
        def read(shard: pq.ParquetFile) -> _Footer:
            schema = shard.schema_arrow
            self.columns = self.columns or find_columns(schema, file)
            require_columns(self.columns, schema, file)
            label = self.columns.label
            labels = read_labels(shard.read(columns=[label]).column(label), schema, label, file)
            return _Footer(version, shard.metadata, labels)

        version = file_version(file)  # before it is read: what replaces it later is another
        return with_parquet(file, read)


def _bytes_of(row_group: Any, column: str) -> Any:
    """Return the metadata of the column of encoded images, alone or in a struct."""
    columns = [row_group.column(number) for number in range(row_group.num_columns)]
    return next(each for each in columns if each.path_in_schema in (column, f"{column}.bytes"))


def _refuse_paths(chunk: Any, column: str, file: PurePath) -> None:
    """Refuse rows that have paths instead of bytes, by an InputError."""
    if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("path") >= 0:
        path = next((each for each in pc.struct_field(chunk, "path").to_pylist() if each), None)
        if path is not None:
            raise InputError(
                f"column {column} of {file} holds paths, such as {path}, and no image bytes; write the bytes into the "
                "shards, or give the folder of the images"
            )


def open_parquet(root: PurePath, shards: ShardFiles, config: DataConfig) -> ImageData:
    """Open the images of parquet shards, held in memory as encoded bytes, or streamed by row group.

    Images come from the column `image` or `img`, else from the only one of bytes. Labels come from `label`, `labels` or
    `fine_label`, else from the only integer column, else from the only one of another kind. Class names come from the
    Hugging Face metadata, else from the labels. Shards that number the classes differently are matched by the names.
    Without held-out shards, `val_fraction` of each class is held out. Only `check: full` decodes all rows first.

    Args:
        root: The folder that the data set is named after.
        shards: The files, as `find_shards` finds them.
        config: How they are read and split.

    Raises:
        InputError: If a file is unreadable or lacks a column, a label is no class or none of the training split, a row
            has no image, an image that was looked at is unreadable, all of them are alike, there is one class only, or
            too few images to split.
    """
    reader = _ByRowGroup(config) if is_streamed(shards, config) else _InMemory()
    return open_rows(root, shards, config, reader)
