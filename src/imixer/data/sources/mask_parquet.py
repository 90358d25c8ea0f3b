"""Parquet shards with a column of encoded images and one of encoded masks, as Hugging Face publishes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import MaskedData
from imixer.data.sources.masked_pairs import Pairs, PatchSide, RowPair, open_pairs
from imixer.data.sources.masks import given_classes
from imixer.data.sources.parquet import image_bytes, with_parquet
from imixer.data.sources.parquet_columns import holds_bytes, require_usable
from imixer.data.sources.shard_files import ShardFiles
from imixer.errors import InputError, did_you_mean

_IMAGE_NAMES = ("image", "img", "pixel_values", "input", "photo", "picture")
_MASK_NAMES = (
    *("mask", "masks", "label", "labels", "annotation", "annotations", "annotated", "segmentation", "segmentation_map"),
    *("segmentation_mask", "semantic_segmentation", "semantic_mask", "seg_map", "seg", "gt", "ground_truth", "target"),
    *("label_map", "image_mask", "trimap"),
)


@dataclass(frozen=True)
class MaskColumns:
    """The columns that are read.

    Args:
        image: Column of encoded images.
        mask: Column of encoded masks.
    """

    image: str
    mask: str


def find_mask_columns(schema: pa.Schema, file: PurePath, masks: MaskConfig) -> MaskColumns:
    """Choose the columns of images and masks: as the settings say, else by name, else what is left of two.

    Args:
        schema: The file's columns.
        file: The file, for messages.
        masks: Gives `image_column` and `mask_column`.

    Raises:
        InputError: If a column that is named is not there or holds no images, there are no two columns of images, or
            several might be the one.
    """
    there = [field.name for field in schema if holds_bytes(field.type)]
    given = {"image_column": masks.image_column, "mask_column": masks.mask_column}
    for option, name in given.items():
        if name is not None and name not in there:
            why = "which holds no encoded images" if name in schema.names else "which is not there"
            raise InputError(
                f"masks.{option} is {name}, {why} in {file}{did_you_mean(name, there) or ';'} it has "
                f"{', '.join(there) or 'none'} with encoded images"
            )
    if len(there) < 2:
        raise InputError(
            f"{file} has {len(there)} columns of encoded images ({', '.join(there) or 'none'}), and segmentation "
            f"takes one of images and one of masks; its columns are {', '.join(schema.names)}"
        )
    taken = {name for name in given.values() if name is not None}
    image = masks.image_column or _only(there, _IMAGE_NAMES, taken)
    mask = masks.mask_column or _only(there, _MASK_NAMES, taken | {image or ""})
    left = [name for name in there if name not in {*taken, image, mask}]
    if image is None and mask is not None and len(left) == 1:
        image = left[0]
    if mask is None and image is not None and len(left) == 1:
        mask = left[0]
    if image is None or mask is None:
        option = "image_column" if image is None else "mask_column"
        what = "images" if image is None else "masks"
        raise InputError(
            f"{file} has the columns {', '.join(there)} with encoded images, and nothing says which holds {what}; "
            f"pass --masks.{option}"
        )
    return MaskColumns(image, mask)


def _only(there: Sequence[str], names: Sequence[str], taken: set[str]) -> str | None:
    """Return the only column of some names; None if there is none, or several."""
    fitting = [name for name in there if name.lower() in names and name not in taken]
    return fitting[0] if len(fitting) == 1 else None


class _Reader:
    """Reads pairs from shards, all from the columns that the first one chooses."""

    def __init__(self, masks: MaskConfig) -> None:
        self.masks = masks
        self.columns: MaskColumns | None = None

    def pairs(self, files: Sequence[PurePath]) -> list[RowPair]:
        """Read all rows of some shards into memory, as encoded bytes."""
        return [pair for file in files for pair in with_parquet(file, partial(self._read, file))]

    def _read(self, file: PurePath, shard: pq.ParquetFile) -> list[RowPair]:
        columns = self.columns = self.columns or find_mask_columns(shard.schema_arrow, file, self.masks)
        require_usable({columns.image: holds_bytes, columns.mask: holds_bytes}, shard.schema_arrow, file)
        table = shard.read(columns=[columns.image, columns.mask])
        image, mask = (
            [each for chunk in table.column(name).chunks for each in image_bytes(chunk, name, file).to_pylist()]
            for name in (columns.image, columns.mask)
        )
        return [RowPair(str(file), row, *both) for row, both in enumerate(zip(image, mask, strict=True))]


def open_mask_parquet(
    root: PurePath,
    shards: ShardFiles,
    config: DataConfig,
    masks: MaskConfig,
    patch_side: PatchSide | None = None,
    *,
    whole: bool = False,
) -> MaskedData:
    """Open images with masks in parquet shards, held in memory as encoded bytes.

    Args:
        root: The folder that the data set is named after.
        shards: The files, as `find_shards` finds them.
        config: How they are read and split.
        masks: What masks mean, and which columns they are.
        patch_side: See `open_pairs`.
        whole: See `open_pairs`.

    Raises:
        InputError: If a file is unreadable or has no rows, its columns are not clear, or `open_pairs` refuses a pair.
    """
    reader = _Reader(masks)
    train, val = reader.pairs(shards.train), reader.pairs(shards.val)
    for files, pairs in ((shards.train, train), (shards.val, val)):
        if files and not pairs:
            raise InputError(f"{files[0]} has no rows; fetch it again")
    assert reader.columns is not None  # there are rows
    columns = reader.columns
    return open_pairs(
        Pairs(
            name=(root.resolve() if isinstance(root, Path) else root).name or "images",
            place=str(root),
            train=train,
            val=val if shards.val else None,
            sources=shards.sources,
            split=shards.split,
            class_names=given_classes(masks),
            notes=(f"images from column {columns.image}, masks from column {columns.mask}",),
            left_out=shards.left_out,
        ),
        config,
        masks,
        patch_side,
        whole=whole,
    )
