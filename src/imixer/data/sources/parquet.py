"""Parquet shards with encoded images, as Hugging Face publishes them: which files, and their rows."""

from __future__ import annotations

import bisect
import re
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
from imixer.data.sources.group_cache import GIGABYTE
from imixer.data.sources.image_files import contains_image, visible_folders
from imixer.data.sources.parquet_columns import Columns, ShardLabels, find_columns, read_labels, require_columns
from imixer.data.sources.rows import Rows
from imixer.data.sources.shard_data import RowsOfLabels, ShardFiles, open_rows
from imixer.data.sources.splitting import split_words
from imixer.data.sources.storage import RemotePath, file_version, read_file, require_version, total_size
from imixer.data.sources.streamed import Group, StreamedRows
from imixer.errors import InputError
from imixer.escaping import few_names

_T = TypeVar("_T")

_LARGE = 4 * GIGABYTE  # of parquet files, from which on images are streamed
_READERS = 8  # threads that read labels: most of the time they wait
_DEFAULT_CONFIGURATION = {"default"}  # the hub's name for the only configuration there is


def parquet_files(root: Path) -> list[Path]:
    """List the parquet files directly in a folder, else those in its `data` folder, sorted."""
    for folder in (root, root / "data"):
        files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
        if files:
            return files
    return []


def find_shards(root: PurePath, listing: Sequence[PurePath] | None = None) -> ShardFiles | None:
    """Find the parquet files of each split, told by words in their names, or else in those of their folders.

    Files are taken from the folder itself, else from its `data` folder, else from the only set of folders that has any,
    such as `plain_text/` or `train/` and `test/`. A folder with images in subfolders is none of parquet files.

    Args:
        root: The folder, here or elsewhere.
        listing: All files in it and below it. Default: those on the disk.

    Returns:
        The files. None: there are none.

    Raises:
        InputError: If there are several sets, a name says two splits, splits of two names serve one purpose, or there
            is no training split.
    """
    files: Sequence[PurePath]
    if listing is not None:
        files = _files_of_listing(root, listing)
    else:
        files = parquet_files(Path(root)) or _files_in_subfolders(Path(root))
    if not files:
        return None
    parts: dict[str, dict[str, list[PurePath]]] = {}
    unnamed: list[PurePath] = []
    for file in files:
        if named := _split_of_file(file, root):
            word, role = named
            parts.setdefault(role, {}).setdefault(word, []).append(file)
        else:
            unnamed.append(file)
    if parts and "train" not in parts:
        raise InputError(f"no train-*.parquet among the {len(files)} parquet files in {files[0].parent}; add them")
    train = _files_of_one_word(parts["train"], root) if parts else list(files)
    held_out = next((parts[role] for role in ("val", "test") if role in parts), None)
    val = _files_of_one_word(held_out, root) if held_out else []
    sources = (_file_pattern(train, root), _file_pattern(val, root))
    used = {*train, *val}
    left_out = _left_out(Path(root), used) if listing is None else _unused_of_listing(root, listing, used)
    return ShardFiles(train, val, sources, left_out, next(iter(held_out)) if held_out else None)


def _files_of_listing(root: PurePath, listing: Sequence[PurePath]) -> list[PurePath]:
    """Choose the parquet files among those of a listing: in the folder itself, in `data`, or in subfolders."""
    files = [file for file in listing if file.suffix == ".parquet"]
    for folder in (root, root / "data"):
        if direct := sorted(file for file in files if file.parent == folder):
            return direct
    return _single_set(root, files)


def _unused_of_listing(root: PurePath, listing: Sequence[PurePath], used: set[PurePath]) -> tuple[str, ...]:
    """List the folders and files directly at the root that hold nothing that is used."""
    tops = {file.relative_to(root).parts[0] for file in used}
    unused = {file.relative_to(root).parts for file in listing if file.relative_to(root).parts[0] not in tops}
    return tuple(sorted({parts[0] + ("/" if len(parts) > 1 else "") for parts in unused}))


def _files_in_subfolders(root: Path) -> list[PurePath]:
    """List the parquet files in subfolders, if there is one set of them and there are no images."""
    files: list[PurePath] = [
        Path(folder, name)
        for folder, names in visible_folders(root)
        for name in names
        if name.endswith(".parquet") and not name.startswith(".")
    ]
    return [] if not files or contains_image(root) else _single_set(root, files)


def _single_set(root: PurePath, files: Sequence[PurePath]) -> list[PurePath]:
    """Return files in subfolders, sorted, if their folders differ in the words for splits only."""
    sets: dict[tuple[str, ...], list[PurePath]] = {}
    for file in files:
        words = tuple(
            " ".join(rest)
            for part in file.relative_to(root).parts[:-1]
            if (rest := split_words(part)[1]) and part not in _DEFAULT_CONFIGURATION
        )
        sets.setdefault(words, []).append(file)
    if len(sets) > 1:
        folders = sorted(str(each[0].parent) for each in sets.values())
        raise InputError(f"{root} has several sets of parquet files, in {few_names(folders)}; give the folder of one")
    return sorted(files)


def _split_of_file(file: PurePath, root: PurePath) -> tuple[str, str] | None:
    """Find the word for a split and what it means, in the file's name or else in that of the nearest folder."""
    for name in (file.stem, *reversed(file.relative_to(root).parts[:-1])):
        named, _ = split_words(name)
        if len(named) > 1:
            raise InputError(f"{file} names several parts, {' and '.join(named)}; rename it so that it names one")
        if named:
            return next(iter(named.items()))
    return None


def _files_of_one_word(by_word: dict[str, list[PurePath]], root: PurePath) -> list[PurePath]:
    """Return the files of a split, all of which must use one word for it."""
    if len(by_word) > 1:
        one, other = (files[0].relative_to(root) for files in list(by_word.values())[:2])
        raise InputError(f"{one} and {other} in {root} name parts that serve the same purpose; keep one there")
    (files,) = by_word.values()
    return files


def _file_pattern(files: Sequence[PurePath], root: PurePath) -> str:
    """Write files as a pattern and their number, such as `data/train-*.parquet (3 files)`."""
    shapes = sorted({re.sub(r"(\d+-of-)?\d+", "*", file.relative_to(root).as_posix()) for file in files})
    return f"{few_names(shapes)} ({len(files)} {'file' if len(files) == 1 else 'files'})" if files else ""


def _left_out(root: Path, used: set[PurePath]) -> tuple[str, ...]:
    """List the files and folders at the root and beside the used files that hold no rows of either split."""
    unused = set()
    for folder in {root, *(Path(file.parent) for file in used)}:
        for path in folder.iterdir():
            inside = any(path in file.parents for file in used)
            if path not in used and not inside and not path.name.startswith("."):
                unused.add(f"{path.relative_to(root).as_posix()}{'/' if path.is_dir() else ''}")
    return tuple(sorted(unused))


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


def _with_parquet(file: PurePath, work: Callable[[pq.ParquetFile], _T], metadata: Any = None) -> _T:
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


class _InMemory:
    """A reader of shards that takes all of them into memory."""

    def __init__(self) -> None:
        self.columns: Columns | None = None

    def __call__(self, files: Sequence[PurePath]) -> tuple[list[ShardLabels], RowsOfLabels]:
        """Read some shards, all from the columns that are chosen in the first one."""
        chunks: list[_Chunk] = []
        labels: list[ShardLabels] = []
        for file in files:
            shard_chunks, shard_labels = _with_parquet(file, partial(self._read, file))
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
            chunks.append(_Chunk(str(file), first_row, _image_bytes(chunk, image, file)))
            first_row += len(chunk)
        return chunks, labels


def _image_bytes(chunk: Any, column: str, file: PurePath) -> Any:
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
            return [
                each for chunk in column.chunks for each in _image_bytes(chunk, self.column, place.file).to_pylist()
            ]

        try:
            images = _with_parquet(place.file, read, self.footers[place.file])
        except InputError:
            require_version(place.file, self.versions[place.file])  # has more to say where the file is another
            raise
        require_version(place.file, self.versions[place.file])
        return images

    def groups_with_gaps(self) -> Sequence[int]:
        return self.with_gaps


class _ByRowGroup:
    """A reader of shards that takes labels only, and fetches images by row group when they are asked for.

    Args:
        config: Size and folder of the cache.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.columns: Columns | None = None

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
        return _with_parquet(file, read)


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
    reader = _ByRowGroup(config) if _is_streamed(shards, config) else _InMemory()
    return open_rows(root, shards, config, reader)


def _is_streamed(shards: ShardFiles, config: DataConfig) -> bool:
    if config.streaming != "auto":
        return config.streaming == "always"
    return isinstance(shards.train[0], RemotePath) or total_size([*shards.train, *shards.val]) >= _LARGE
