"""Parquet shards with encoded images, as Hugging Face publishes them."""

from __future__ import annotations

import bisect
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
from imixer.data.image_data import ImageData, Item
from imixer.data.sources.checking import find_bad
from imixer.data.sources.decoding import (
    EIGHT_BITS,
    SKIP_REMEDY,
    PixelFormat,
    UnreadableImage,
    decode_bytes,
    deliver,
    reason,
    special_file,
)
from imixer.data.sources.parquet_columns import Classes, Columns, Labels, find_columns, read_labels, require_columns
from imixer.data.sources.parquet_files import Shards
from imixer.data.sources.splitting import held_out_share, require_two_classes, stratified_split
from imixer.data.sources.statistics import Extremes, survey_usable
from imixer.errors import InputError

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
    """Encoded images and labels of some shards, in memory. Cheap to pickle to worker processes that fork."""

    def __init__(self, chunks: Sequence[_Chunk], labels: NDArray[np.int64]) -> None:
        self.labels = labels
        self._chunks = list(chunks)
        self._starts = np.cumsum([0] + [len(chunk.images) for chunk in chunks])[:-1].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def _locate(self, row: int) -> tuple[_Chunk, int]:
        place = bisect.bisect_right(self._starts, row) - 1
        return self._chunks[place], row - self._starts[place]

    def without_bytes(self) -> list[int]:
        """Rows that have no image."""
        return [
            start + int(row)
            for start, chunk in zip(self._starts, self._chunks, strict=True)
            if chunk.images.null_count
            for row in np.flatnonzero(chunk.images.is_null().to_numpy(zero_copy_only=False))
        ]

    def name(self, row: int) -> str:
        """File and row, for messages."""
        chunk, offset = self._locate(row)
        return f"{chunk.file} row {chunk.first_row + offset}"

    def decode(self, row: int) -> Image.Image:
        """The image of a row, in the mode it is stored in. Raises UnreadableImage."""
        chunk, offset = self._locate(row)
        encoded = chunk.images[offset].as_buffer()
        if encoded is None:
            raise UnreadableImage(_NO_BYTES)
        return decode_bytes(encoded)

    def read(self, row: int) -> Image.Image:
        """Likewise, but raises InputError naming file and row."""
        try:
            return self.decode(row)
        except UnreadableImage as error:
            raise InputError(f"cannot read image {self.name(row)}: {error}; {SKIP_REMEDY}") from None


class ParquetImages(Dataset[Item]):
    """Rows of parquet shards, decoded when asked for.

    Args:
        rows: The shards.
        chosen: Which rows of them, in order.
        in_chans: 1 delivers mode `L`, 3 delivers `RGB`.
        pixels: How stored pixels become bytes.
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

    def __getitem__(self, index: int) -> Item:
        row = int(self.chosen[index])
        image = deliver(self.rows.read(row), self.in_chans, self.pixels, self.rows.name(row))
        return image, int(self.rows.labels[row])


def _read(files: Sequence[Path], columns: Columns | None = None) -> tuple[list[_Chunk], list[Labels], Columns]:
    """Images and labels of some shards, all from the columns that the first one is found to have."""
    chunks: list[_Chunk] = []
    labels: list[Labels] = []
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
            raise InputError(f"cannot read parquet file {file}: {reason(error)}; fetch it again") from error
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
    """Raises InputError if rows without bytes have paths instead."""
    if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("path") >= 0:
        path = next((each for each in pc.struct_field(chunk, "path").to_pylist() if each), None)
        if path is not None:
            raise InputError(
                f"column {column} of {file} holds paths, such as {path}, and no image bytes; write the bytes into the "
                "shards, or give the folder of the images"
            )


def _readable(rows: EncodedRows, config: DataConfig, extremes: Extremes) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers of the rows to use, and names of those left out."""
    everything = np.arange(len(rows))
    if config.check == "full":

        def look(row: int) -> None:
            extremes.see(rows.decode(row))

        bad = find_bad(range(len(rows)), look, rows.name, skip_bad=config.skip_bad)
    else:  # rows are cheap to decode when they are used, and shards have a checksum of their own

        def fail(row: int) -> None:
            raise UnreadableImage(_NO_BYTES)

        bad = find_bad(rows.without_bytes(), fail, rows.name, skip_bad=config.skip_bad)
    return np.setdiff1d(everything, list(bad)), tuple(bad.values())


def open_parquet(root: Path, shards: Shards, config: DataConfig) -> ImageData:
    """Open the images of parquet shards, held in memory as encoded bytes.

    Images come from the column `image` or `img`, else the only one of bytes; labels from `label`, `labels` or
    `fine_label`, else the only integer one, else the only one of another kind. Class names come from the Hugging Face
    metadata, and numbers of shards that count differently are matched by them; else from the labels. Without held-out
    shards, `val_fraction` of each class is held out. Only `check: full` decodes all rows first.

    Args:
        root: What the data are called after.
        shards: The files, as `find_shards` finds them.
        config: How they are read and split.

    Raises:
        InputError: A file is unreadable or lacks a column, a label is no class or none of the training part, a row has
            no image, an image that was looked at is unreadable, all of them are alike, there is one class only, or too
            few images to split.
    """
    chunks, found, columns = _read(shards.train)
    if not sum(len(each.numbers) for each in found):
        raise InputError(f"the parquet files in {shards.train[0].parent} have no rows; fetch them again")
    classes = Classes(found, columns.label)
    train = EncodedRows(chunks, classes.labels(found))
    extremes = Extremes()
    chosen, skipped = _readable(train, config, extremes)
    require_two_classes(train.labels[chosen], classes.names, str(root))

    if shards.val:
        chunks, found, _ = _read(shards.val, columns)
        if not sum(len(each.numbers) for each in found):
            raise InputError(f"{shards.val[0]} has no rows; fetch it again")
        val = EncodedRows(chunks, classes.labels(found))
        val_chosen, val_skipped = _readable(val, config, extremes)
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

    facts = survey_usable(lambda index: train.read(int(chosen[index])), len(chosen), config, str(root), extremes)
    return ImageData(
        name=root.resolve().name or "images",
        train=ParquetImages(train, chosen, facts.in_chans, facts.pixels),
        val=ParquetImages(val, val_chosen, facts.in_chans, facts.pixels),
        class_names=classes.names,
        in_chans=facts.in_chans,
        native_size=facts.native_size,
        mean=facts.mean,
        std=facts.std,
        skipped=skipped,
        sources=(shards.sources[0], shards.sources[1] or held_out_share(config)),
        notes=columns.notes + tuple(classes.notes) + facts.notes,
        left_out=shards.left_out,
        value_range=facts.pixels.value_range,
        split=shards.split,
    )
