"""Data sets of shards, of any layout: from the rows of each split to the form that every data set takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sources.decoding import UnreadableImage, find_unreadable
from imixer.data.sources.group_cache import GIGABYTE
from imixer.data.sources.parquet_columns import Classes, LabelSource, ShardLabels
from imixer.data.sources.rows import NO_BYTES, Rows, ShardImages
from imixer.data.sources.shard_files import ShardFiles
from imixer.data.sources.splitting import held_out_share, require_two_classes, stratified_split
from imixer.data.sources.statistics import MinMaxObserver, usable_statistics
from imixer.data.sources.storage import RemotePath, total_size
from imixer.data.sources.streamed import StreamedRows
from imixer.errors import InputError

_LARGE = 4 * GIGABYTE  # of shards, from which on images are streamed

RowsOfLabels: TypeAlias = "Callable[[NDArray[np.int64]], Rows]"


class ShardReader(Protocol):
    """Reads shards of one layout."""

    @property
    def source(self) -> LabelSource:
        """Where labels stand, once there were files to read."""
        ...

    def __call__(self, files: Sequence[PurePath], /) -> tuple[list[ShardLabels], RowsOfLabels]:
        """Read the labels of some shards; what makes the rows takes the label of each."""
        ...


def is_streamed(shards: ShardFiles, config: DataConfig) -> bool:
    """Tell whether images are fetched a part at a time: as the configuration says, or else far or large ones.

    Raises:
        InputError: If the size of a file cannot be read.
    """
    if config.streaming != "auto":
        return config.streaming == "always"
    return isinstance(shards.train[0], RemotePath) or total_size([*shards.train, *shards.val]) >= _LARGE


def open_rows(root: PurePath, shards: ShardFiles, config: DataConfig, reader: ShardReader) -> ImageData:
    """Open the data set of some shards.

    Args:
        root: The folder that the data set is named after.
        shards: The files.
        config: How they are read and split.
        reader: Reads shards of their layout.

    Raises:
        InputError: If a file is unreadable, a label is no class or none of the training split, a row has no image, an
            image that was looked at is unreadable, all of them are alike, there is one class only, or too few images to
            split.
    """
    shard_labels, make_rows = reader(shards.train)
    if not sum(len(each.numbers) for each in shard_labels):
        raise InputError(
            f"the {shards.train[0].suffix[1:]} files in {shards.train[0].parent} have no rows; fetch them again"
        )
    classes = Classes(shard_labels, reader.source)
    train = make_rows(classes.labels(shard_labels))
    observer = MinMaxObserver()
    chosen, skipped = _readable(train, config, observer)
    require_two_classes(train.labels[chosen], classes.names, str(root))

    if shards.val:
        shard_labels, make_rows = reader(shards.val)
        if not sum(len(each.numbers) for each in shard_labels):
            raise InputError(f"{shards.val[0]} has no rows; fetch it again")
        val = make_rows(classes.labels(shard_labels))
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

    windows, fingerprint, origin = None, "", ("", "")
    streamed: tuple[str, ...] = ()
    sample = chosen
    if isinstance(train, StreamedRows) and isinstance(val, StreamedRows):
        windows, streamed = train.windows(chosen), (train.note(),)
        sample = chosen[windows.sample()]
        parts = [(train, sample)] if val is train else [(train, sample), (val, val_chosen[:1])]
        fingerprint = " ".join(rows.fingerprint(looked_at) for rows, looked_at in parts)
        if all(versions := [rows.object_versions() for rows, _ in parts]):
            origin = (str(root), " ".join(versions))
    statistics = usable_statistics(
        lambda index: train.read(int(sample[index])), len(sample), config, str(root), observer
    )
    return ImageData(
        name=(root.resolve() if isinstance(root, Path) else root).name or "images",
        train=ShardImages(train, chosen, statistics.in_chans, statistics.pixels),
        val=ShardImages(val, val_chosen, statistics.in_chans, statistics.pixels),
        class_names=classes.names,
        in_chans=statistics.in_chans,
        native_size=statistics.native_size,
        mean=statistics.mean,
        std=statistics.std,
        skipped=skipped,
        sources=(shards.sources[0], shards.sources[1] or held_out_share(config)),
        notes=streamed + reader.source.notes + tuple(classes.notes) + statistics.notes,
        left_out=shards.left_out,
        value_range=statistics.pixels.value_range,
        split=shards.split,
        windows=windows,
        fingerprint=fingerprint,
        origin=origin,
    )


def _readable(rows: Rows, config: DataConfig, observer: MinMaxObserver) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Check the rows as `config.check` says; return the numbers of those to use, and the names of the others."""
    everything = np.arange(len(rows))
    if config.check == "full":

        def look(row: int) -> None:
            observer.observe(rows.decode(row))

        bad = find_unreadable(range(len(rows)), look, rows.name, skip_bad=config.skip_bad)
    else:  # rows are cheap to decode when they are used, and shards have a checksum of their own

        def fail(row: int) -> None:
            raise UnreadableImage(NO_BYTES)

        bad = find_unreadable(rows.without_bytes(), fail, rows.name, skip_bad=config.skip_bad)
    return np.setdiff1d(everything, list(bad)), tuple(bad.values())
