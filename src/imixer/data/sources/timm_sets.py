"""Data sets that timm's `create_dataset` knows by a prefixed name, such as `torch/mnist` or `hfds/mnist`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.data import create_dataset

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData, LabelledImage
from imixer.data.names import timm_prefix
from imixer.data.sources.decoding import UnreadableImage, decode_bytes, error_reason
from imixer.data.sources.image_files import data_root
from imixer.data.sources.splitting import split_role
from imixer.data.sources.statistics import usable_statistics
from imixer.data.sources.wrapped import WrappedDataset, known_label, read_item
from imixer.errors import InputError
from imixer.extras import require_extra

_STREAMS = ("hfids", "tfds", "wds")
_FOLDERS = ("torch/image_folder", "torch/folder")
_VAL_SPLITS = ("validation", "test")


class _ReaderItems:
    """The items of timm's reader. Its own data set would silently replace an unreadable image by its neighbour."""

    def __init__(self, reader: Any, name: str) -> None:
        self.reader = reader
        self.name = name

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> LabelledImage:
        file, label = self.reader[index][:2]
        with file:
            encoded = file.read()
        try:
            return decode_bytes(encoded), label
        except UnreadableImage as error:
            raise InputError(f"cannot read image {index} of {self.name}: {error}; fetch the data set again") from None


def open_timm(name: str, config: DataConfig) -> ImageData:
    """Open a data set by timm's prefixed name. Its split of validation is held out, else that of test.

    Of `hfds/...` that is the first listed split that is called so, such as `valid` or `dev`.

    Channels, size, mean and deviation are measured on a sample of the training images.

    Args:
        name: The name, such as `hfds/mnist`.
        config: Gives `root` and `download`, and how images are read.

    Raises:
        InputError: If it cannot be opened or downloaded, comes as a stream, has no held-out split or class names, or
            has a label of no class.
    """
    prefix = timm_prefix(name)
    if prefix in _STREAMS:
        raise InputError(
            f"data.name {name!r} is a stream of images without random access; "
            "use hfds/..., or a folder of parquet shards or class folders"
        )
    if name.lower() in _FOLDERS:
        raise InputError(
            f"data.name {name!r} is a folder of class folders, of which timm holds out what it trains on; give the "
            "folder itself as data.name"
        )
    if prefix == "hfds":
        require_extra("data", f"data.name {name!r}")

    train = _open_split(name, "train", config)
    val, val_split = _open_held_out(name, config, train)
    class_names = _class_names(train, name)
    for items, split in ((train, "training"), (val, "validation")):
        for index, label in enumerate(_labels(items)):
            known_label(label, index, f"{name} ({split})", len(class_names))
    statistics = usable_statistics(lambda index: read_item(train, index, name)[0], len(train), config, name)
    return ImageData(
        name=name.lower().replace("/", "_"),
        train=WrappedDataset(train, statistics.in_chans, f"{name} (training)", statistics.pixels, len(class_names)),
        val=WrappedDataset(val, statistics.in_chans, f"{name} (validation)", statistics.pixels, len(class_names)),
        class_names=class_names,
        in_chans=statistics.in_chans,
        native_size=statistics.native_size,
        mean=statistics.mean,
        std=statistics.std,
        sources=("its split train", f"its split {val_split}"),
        notes=statistics.notes,
        value_range=statistics.pixels.value_range,
        split=val_split,
    )


def _open_split(name: str, split: str, config: DataConfig) -> Any:
    root = str(data_root(config.root))
    try:
        dataset: Any = create_dataset(name, root=root, split=split, download=config.download)
    except Exception as error:  # network, archive, file and name errors of many kinds
        hint = (
            "check the name, and that it can be fetched or was before"
            if timm_prefix(name) == "hfds"  # which asks no `download`
            else f"put the files into {root} yourself"
            if config.download
            else "check the name, name its folder by --data.root, or --data where a run is used, or train with "
            "--data.download true"
        )
        raise InputError(f"could not open {name} ({split}): {error_reason(error)}; {hint}") from error
    return _ReaderItems(dataset.reader, f"{name} ({split})") if hasattr(dataset, "reader") else dataset


def _open_held_out(name: str, config: DataConfig, train: Any) -> tuple[Any, str]:
    """Open the held-out split; return it and its name."""
    listed = _listed_splits(train)
    if listed:
        held_out = [split for role in ("val", "test") for split in listed if split_role(split) == role]
        if not held_out:
            raise InputError(
                f"{name} has no held-out split among its splits ({', '.join(listed)}); save its images in a folder and "
                "give that as data.name with data.val_fraction"
            )
        return _open_split(name, held_out[0], config), held_out[0]
    for split in _VAL_SPLITS[:-1]:
        try:
            opened = _open_split(name, split, config)
        except InputError:
            continue
        return opened, "test" if getattr(opened, "train", None) is False else split  # torchvision's has no third one
    return _open_split(name, _VAL_SPLITS[-1], config), _VAL_SPLITS[-1]


def _listed_splits(train: Any) -> list[str]:
    """Name the splits that Hugging Face's data set of the training images lists; none where it lists none."""
    info = getattr(getattr(getattr(train, "reader", None), "dataset", None), "info", None)
    return list(getattr(info, "splits", None) or ())


def _labels(items: Any) -> Iterable[Any]:
    """Return the label of each item of Hugging Face's data set, without reading an image; none of others."""
    reader: Any = getattr(items, "reader", None)
    column = getattr(reader, "label_key", None)
    return () if column is None else reader.dataset[column]


def _class_names(dataset: Any, name: str) -> tuple[str, ...]:
    if isinstance(dataset, _ReaderItems):
        numbers = dataset.reader.class_to_idx
        names = sorted(numbers, key=numbers.__getitem__)
    else:
        names = getattr(dataset, "classes", None) or []
    if len(names) < 2:
        raise InputError(f"{name} does not list two or more classes; use a data set for classification")
    return tuple(map(str, names))
