"""Parquet shards with encoded images, as Hugging Face publishes them."""

from __future__ import annotations

import bisect
import json
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

from imixer.data.checking import find_bad
from imixer.data.config import DataConfig
from imixer.data.decoding import SKIP_REMEDY, UnreadableImage, decode_bytes, reason, to_channels
from imixer.data.image_data import ImageData, Item
from imixer.data.splitting import require_two_classes, stratified_split
from imixer.data.survey import survey
from imixer.errors import InputError

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label")
_SPLIT = re.compile(r"(train|validation|valid|val|test)(?=[-_.])")


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

    def name(self, row: int) -> str:
        """File and row, for messages."""
        chunk, offset = self._locate(row)
        return f"{chunk.file} row {chunk.first_row + offset}"

    def decode(self, row: int) -> Image.Image:
        """The image of a row, in the mode it is stored in. Raises UnreadableImage."""
        chunk, offset = self._locate(row)
        encoded = chunk.images[offset].as_buffer()
        if encoded is None:
            raise UnreadableImage("the row has no image bytes")
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
    """

    def __init__(self, rows: EncodedRows, chosen: NDArray[np.int64], in_chans: int) -> None:
        self.rows = rows
        self.chosen = chosen
        self.in_chans = in_chans

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Item:
        row = int(self.chosen[index])
        return to_channels(self.rows.read(row), self.in_chans), int(self.rows.labels[row])


def parquet_files(root: Path) -> list[Path]:
    """Parquet files directly in a folder, else those in its `data` folder, sorted."""
    for folder in (root, root / "data"):
        files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
        if files:
            return files
    return []


def _split_files(files: Sequence[Path]) -> tuple[list[Path], list[Path], str | None]:
    """Training and held-out shards and the name of the latter, told apart by the start of their names; without such
    names all are training.
    """
    parts: dict[str, list[Path]] = {}
    for path in files:
        match = _SPLIT.match(path.name)
        if match:
            parts.setdefault(match[1], []).append(path)
    if not parts:
        return list(files), [], None
    if "train" not in parts:
        raise InputError(f"no train-*.parquet among the {len(files)} parquet files in {files[0].parent}; add them")
    held_out = next((name for name in ("validation", "valid", "val", "test") if name in parts), None)
    return parts["train"], parts[held_out] if held_out else [], held_out


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(schema: pa.Schema, file: Path) -> str:
    usable = [field.name for field in schema if _holds_bytes(field.type)]
    wanted = "name the one with encoded images (bytes, or a struct with bytes) image"
    return _choose(usable, _IMAGE_NAMES, schema, file, "several columns of bytes", "no image column", wanted)


def _label_column(schema: pa.Schema, file: Path) -> str:
    usable = [field.name for field in schema if pa.types.is_integer(field.type)]
    wanted = "name the one with class numbers label"
    return _choose(usable, _LABEL_NAMES, schema, file, "several integer columns", "no integer label column", wanted)


def _choose(
    usable: list[str], names: Sequence[str], schema: pa.Schema, file: Path, several: str, none: str, wanted: str
) -> str:
    """The usable column with one of the names, else the only usable one."""
    for name in names:
        if name in usable:
            return name
    if len(usable) == 1:
        return usable[0]
    found = f"{several} ({', '.join(usable)}) and" if usable else f"{none}:"
    raise InputError(f"{file} has {found} columns {', '.join(schema.names)}; {wanted}")


def _metadata_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Class names that Hugging Face stores with the schema, in any of the layouts it has used."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stored.get("info", stored).get("features", {})
        if isinstance(features, list):
            features = {feature["name"]: feature.get("dtype", feature) for feature in features}
        feature = features.get(label, {})
        names = feature.get("class_label", feature).get("names")
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=int)]
        return tuple(map(str, names)) if names else None
    except (ValueError, KeyError, AttributeError, TypeError):  # foreign metadata: the labels still serve
        return None


def _read(files: Sequence[Path]) -> tuple[EncodedRows, tuple[str, ...] | None]:
    chunks: list[_Chunk] = []
    labels: list[NDArray[np.int64]] = []
    names: tuple[str, ...] | None = None
    for file in files:
        try:
            with pq.ParquetFile(file) as shard:
                schema = shard.schema_arrow
                image, label = _image_column(schema, file), _label_column(schema, file)
                table = shard.read(columns=[image, label])
        except InputError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"cannot read parquet file {file}: {reason(error)}; fetch it again") from error
        names = names or _metadata_names(schema, label)
        column = table.column(label)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise InputError(f"{file} row {row} has no label; remove unlabelled rows")
        labels.append(column.to_numpy().astype(np.int64))
        first_row = 0
        for chunk in table.column(image).chunks:
            images = pc.struct_field(chunk, "bytes") if pa.types.is_struct(chunk.type) else chunk
            chunks.append(_Chunk(str(file), first_row, images))
            first_row += len(chunk)
    return EncodedRows(chunks, np.concatenate(labels)), names


def _require_labels_in_range(rows: EncodedRows, classes: int) -> None:
    wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{rows.name(row)} has label {rows.labels[row]}, outside 0 to {classes - 1}; correct or remove it"
        )


def _readable(rows: EncodedRows, config: DataConfig) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers of the rows to use, and names of those left out."""
    everything = np.arange(len(rows))
    if config.check != "full":  # rows are cheap to check when they are used, and shards have a checksum of their own
        return everything, ()
    bad = find_bad(range(len(rows)), rows.decode, rows.name, skip_bad=config.skip_bad)
    return np.setdiff1d(everything, list(bad)), tuple(bad.values())


def open_parquet(root: Path, files: Sequence[Path], config: DataConfig) -> ImageData:
    """Images of parquet shards `train-*` and `validation-*`, `val-*` or `test-*`, held in memory as encoded bytes.

    Images come from the column `image` or `img`, else the only one of bytes; labels from `label`, `labels` or
    `fine_label`, else the only integer one; class names from the Hugging Face metadata, else "0", "1", ...
    Without held-out shards, `val_fraction` of each class is held out. Only `check: full` decodes all rows first.

    Raises:
        InputError: A file is unreadable or lacks a column, a label is out of range, an image that was looked at
            is unreadable, there is one class only, or too few images to split.
    """
    train_files, val_files, split = _split_files(files)
    train, names = _read(train_files)
    if not len(train):
        raise InputError(f"the parquet files in {train_files[0].parent} have no rows; fetch them again")
    class_names = names or tuple(map(str, range(int(train.labels.max()) + 1)))
    _require_labels_in_range(train, len(class_names))
    chosen, skipped = _readable(train, config)
    require_two_classes(train.labels[chosen], class_names, str(root))

    if val_files:
        val, _ = _read(val_files)
        if not len(val):
            raise InputError(f"{val_files[0]} has no rows; fetch it again")
        _require_labels_in_range(val, len(class_names))
        val_chosen, val_skipped = _readable(val, config)
        skipped += val_skipped
    else:
        val = train
        kept, held_out = stratified_split(
            train.labels[chosen],
            class_names,
            fraction=config.val_fraction,
            seed=config.split_seed,
            what=str(root),
        )
        chosen, val_chosen = chosen[kept], chosen[held_out]

    facts = survey(lambda index: train.read(int(chosen[index])), len(chosen))
    return ImageData(
        name=root.resolve().name or "images",
        train=ParquetImages(train, chosen, facts.in_chans),
        val=ParquetImages(val, val_chosen, facts.in_chans),
        class_names=class_names,
        in_chans=facts.in_chans,
        native_size=facts.native_size,
        mean=facts.mean,
        std=facts.std,
        skipped=skipped,
        split=split,
    )
