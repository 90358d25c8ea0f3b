"""Parquet shards with encoded images, as Hugging Face publishes them: which files, and their rows."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData, LabelledImage
from imixer.data.sources.decoding import (
    EIGHT_BITS,
    SKIP_REMEDY,
    PixelFormat,
    UnreadableImage,
    convert_image,
    decode_bytes,
    error_reason,
    find_unreadable,
    special_file,
)
from imixer.data.sources.image_files import contains_image, visible_folders
from imixer.data.sources.parquet_columns import (
    Classes,
    Columns,
    ShardLabels,
    find_columns,
    read_labels,
    require_columns,
)
from imixer.data.sources.splitting import held_out_share, require_two_classes, split_words, stratified_split
from imixer.data.sources.statistics import MinMaxObserver, usable_statistics
from imixer.errors import InputError
from imixer.escaping import few_names

_DEFAULT_CONFIGURATION = {"default"}  # the hub's name for the only configuration there is


@dataclass(frozen=True)
class ShardFiles:
    """The parquet files of each split.

    Args:
        train: Files to train on.
        val: Files that are held out. Empty: there are none.
        sources: Names of the files of both splits, in words.
        left_out: Files and folders that are not used.
        split: The word for the held-out split in its files' names. None: there is no such split.
    """

    train: list[Path]
    val: list[Path]
    sources: tuple[str, str]
    left_out: tuple[str, ...]
    split: str | None = None


def parquet_files(root: Path) -> list[Path]:
    """List the parquet files directly in a folder, else those in its `data` folder, sorted."""
    for folder in (root, root / "data"):
        files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
        if files:
            return files
    return []


def find_shards(root: Path) -> ShardFiles | None:
    """Find the parquet files of each split, told by words in their names, or else in those of their folders.

    Files are taken from the folder itself, else from its `data` folder, else from the only set of folders that has any,
    such as `plain_text/` or `train/` and `test/`. A folder with images in subfolders is none of parquet files.

    Returns:
        The files. None: there are none.

    Raises:
        InputError: If there are several sets, a name says two splits, splits of two names serve one purpose, or there
            is no training split.
    """
    files = parquet_files(root) or _files_in_subfolders(root)
    if not files:
        return None
    parts: dict[str, dict[str, list[Path]]] = {}
    unnamed: list[Path] = []
    for file in files:
        if named := _split_of_file(file, root):
            word, role = named
            parts.setdefault(role, {}).setdefault(word, []).append(file)
        else:
            unnamed.append(file)
    if parts and "train" not in parts:
        raise InputError(f"no train-*.parquet among the {len(files)} parquet files in {files[0].parent}; add them")
    train = _files_of_one_word(parts["train"], root) if parts else files
    held_out = next((parts[role] for role in ("val", "test") if role in parts), None)
    val = _files_of_one_word(held_out, root) if held_out else []
    sources = (_file_pattern(train, root), _file_pattern(val, root))
    return ShardFiles(train, val, sources, _left_out(root, {*train, *val}), next(iter(held_out)) if held_out else None)


def _files_in_subfolders(root: Path) -> list[Path]:
    """List the parquet files in subfolders, if there is one set of them and there are no images."""
    sets: dict[tuple[str, ...], list[Path]] = {}
    for folder, names in visible_folders(root):
        files = [Path(folder, name) for name in names if name.endswith(".parquet") and not name.startswith(".")]
        if files:
            inside = Path(folder).relative_to(root).parts
            words = tuple(
                " ".join(rest)
                for part in inside
                if (rest := split_words(part)[1]) and part not in _DEFAULT_CONFIGURATION
            )
            sets.setdefault(words, []).extend(files)
    if not sets or contains_image(root):
        return []
    if len(sets) > 1:
        folders = sorted(str(files[0].parent) for files in sets.values())
        raise InputError(f"{root} has several sets of parquet files, in {few_names(folders)}; give the folder of one")
    (files,) = sets.values()
    return sorted(files)


def _split_of_file(file: Path, root: Path) -> tuple[str, str] | None:
    """Find the word for a split and what it means, in the file's name or else in that of the nearest folder."""
    for name in (file.stem, *reversed(file.relative_to(root).parts[:-1])):
        named, _ = split_words(name)
        if len(named) > 1:
            raise InputError(f"{file} names several parts, {' and '.join(named)}; rename it so that it names one")
        if named:
            return next(iter(named.items()))
    return None


def _files_of_one_word(by_word: dict[str, list[Path]], root: Path) -> list[Path]:
    """Return the files of a split, all of which must use one word for it."""
    if len(by_word) > 1:
        one, other = (files[0].relative_to(root) for files in list(by_word.values())[:2])
        raise InputError(f"{one} and {other} in {root} name parts that serve the same purpose; keep one there")
    (files,) = by_word.values()
    return files


def _file_pattern(files: list[Path], root: Path) -> str:
    """Write files as a pattern and their number, such as `data/train-*.parquet (3 files)`."""
    shapes = sorted({re.sub(r"(\d+-of-)?\d+", "*", file.relative_to(root).as_posix()) for file in files})
    return f"{few_names(shapes)} ({len(files)} {'file' if len(files) == 1 else 'files'})" if files else ""


def _left_out(root: Path, used: set[Path]) -> tuple[str, ...]:
    """List the files and folders at the root and beside the used files that hold no rows of either split."""
    unused = set()
    for folder in {root, *(file.parent for file in used)}:
        for path in folder.iterdir():
            inside = any(path in file.parents for file in used)
            if path not in used and not inside and not path.name.startswith("."):
                unused.add(f"{path.relative_to(root).as_posix()}{'/' if path.is_dir() else ''}")
    return tuple(sorted(unused))


_NO_BYTES = "the row has no image bytes"


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


class EncodedRows:
    """Encoded images and labels of some shards, in memory. They are cheap to pickle to worker processes that fork.

    Args:
        chunks: The encoded images, in order.
        labels: Label of each row (rows,).
    """

    def __init__(self, chunks: Sequence[_Chunk], labels: NDArray[np.int64]) -> None:
        self.labels = labels
        self._chunks = list(chunks)
        self._starts = np.cumsum([0] + [len(chunk.images) for chunk in chunks])[:-1].tolist()

    def __len__(self) -> int:
        return len(self.labels)

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

    def decode(self, row: int) -> Image.Image:
        """Decode the image of a row, in the mode it is stored in.

        Raises:
            UnreadableImage: If the row has no image, or one that cannot be decoded.
        """
        chunk, offset = self._locate(row)
        encoded = chunk.images[offset].as_buffer()
        if encoded is None:
            raise UnreadableImage(_NO_BYTES)
        return decode_bytes(encoded)

    def read(self, row: int) -> Image.Image:
        """Decode the image of a row, in the mode it is stored in, and name the row if that fails.

        Raises:
            InputError: If the row has no image, or one that cannot be decoded.
        """
        try:
            return self.decode(row)
        except UnreadableImage as error:
            raise InputError(f"cannot read image {self.name(row)}: {error}; {SKIP_REMEDY}") from None


class ParquetImages(Dataset[LabelledImage]):
    """Rows of parquet shards, decoded when asked for.

    Args:
        rows: The shards.
        chosen: Numbers of the rows that are used, in order.
        in_chans: 1 converts to mode `L`, 3 to `RGB`.
        pixels: How stored pixel values become bytes.
    """

    def __init__(
        self, rows: EncodedRows, chosen: NDArray[np.int64], in_chans: int, pixels: PixelFormat = EIGHT_BITS
    ) -> None:
        self.rows = rows
        self.chosen = chosen
        self.in_chans = in_chans
        self.pixels = pixels

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each item."""
        return self.rows.labels[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> LabelledImage:
        row = int(self.chosen[index])
        image = convert_image(self.rows.read(row), self.in_chans, self.pixels, self.rows.name(row))
        return image, int(self.rows.labels[row])


def _read_shards(
    files: Sequence[Path], columns: Columns | None = None
) -> tuple[list[_Chunk], list[ShardLabels], Columns]:
    """Read the images and labels of some shards, all from the columns that are chosen in the first one."""
    chunks: list[_Chunk] = []
    labels: list[ShardLabels] = []
    for file in files:
        if kind := special_file(file):
            raise InputError(f"cannot read parquet file {file}: it is {kind}, not a file; remove it")
        try:
            with pq.ParquetFile(file) as shard:
                schema = shard.schema_arrow
                columns = columns or find_columns(schema, file)
                require_columns(columns, schema, file)
                table = shard.read(columns=[columns.image, columns.label])
        except InputError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"cannot read parquet file {file}: {error_reason(error)}; fetch it again") from error
        labels.append(read_labels(table.column(columns.label), schema, columns.label, file))
        column = table.column(columns.image)
        first_row = 0
        for chunk in column.chunks:
            images = pc.struct_field(chunk, "bytes") if pa.types.is_struct(chunk.type) else chunk
            if len(images) and images.null_count == len(images):
                _refuse_paths(chunk, columns.image, file)
            chunks.append(_Chunk(str(file), first_row, images))
            first_row += len(chunk)
    assert columns is not None  # there is a file
    return chunks, labels, columns


def _refuse_paths(chunk: Any, column: str, file: Path) -> None:
    """Refuse rows that have paths instead of bytes, by an InputError."""
    if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("path") >= 0:
        path = next((each for each in pc.struct_field(chunk, "path").to_pylist() if each), None)
        if path is not None:
            raise InputError(
                f"column {column} of {file} holds paths, such as {path}, and no image bytes; write the bytes into the "
                "shards, or give the folder of the images"
            )


def _readable(
    rows: EncodedRows, config: DataConfig, observer: MinMaxObserver
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Check the rows as `config.check` says; return the numbers of those to use, and the names of the others."""
    everything = np.arange(len(rows))
    if config.check == "full":

        def look(row: int) -> None:
            observer.observe(rows.decode(row))

        bad = find_unreadable(range(len(rows)), look, rows.name, skip_bad=config.skip_bad)
    else:  # rows are cheap to decode when they are used, and shards have a checksum of their own

        def fail(row: int) -> None:
            raise UnreadableImage(_NO_BYTES)

        bad = find_unreadable(rows.without_bytes(), fail, rows.name, skip_bad=config.skip_bad)
    return np.setdiff1d(everything, list(bad)), tuple(bad.values())


def open_parquet(root: Path, shards: ShardFiles, config: DataConfig) -> ImageData:
    """Open the images of parquet shards, held in memory as encoded bytes.

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
    chunks, shard_labels, columns = _read_shards(shards.train)
    if not sum(len(each.numbers) for each in shard_labels):
        raise InputError(f"the parquet files in {shards.train[0].parent} have no rows; fetch them again")
    classes = Classes(shard_labels, columns.label)
    train = EncodedRows(chunks, classes.labels(shard_labels))
    observer = MinMaxObserver()
    chosen, skipped = _readable(train, config, observer)
    require_two_classes(train.labels[chosen], classes.names, str(root))

    if shards.val:
        chunks, shard_labels, _ = _read_shards(shards.val, columns)
        if not sum(len(each.numbers) for each in shard_labels):
            raise InputError(f"{shards.val[0]} has no rows; fetch it again")
        val = EncodedRows(chunks, classes.labels(shard_labels))
        val_chosen, val_skipped = _readable(val, config, observer)
        skipped += val_skipped
    else:
        val = train
        kept, held_out = stratified_split(
            train.labels[chosen],
            classes.names,
            fraction=config.val_fraction,
            seed=config.split_seed,
            what=str(root),
        )
        chosen, val_chosen = chosen[kept], chosen[held_out]

    statistics = usable_statistics(
        lambda index: train.read(int(chosen[index])), len(chosen), config, str(root), observer
    )
    return ImageData(
        name=root.resolve().name or "images",
        train=ParquetImages(train, chosen, statistics.in_chans, statistics.pixels),
        val=ParquetImages(val, val_chosen, statistics.in_chans, statistics.pixels),
        class_names=classes.names,
        in_chans=statistics.in_chans,
        native_size=statistics.native_size,
        mean=statistics.mean,
        std=statistics.std,
        skipped=skipped,
        sources=(shards.sources[0], shards.sources[1] or held_out_share(config)),
        notes=columns.notes + tuple(classes.notes) + statistics.notes,
        left_out=shards.left_out,
        value_range=statistics.pixels.value_range,
        split=shards.split,
    )
