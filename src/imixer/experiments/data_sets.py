"""Locate the data sets of the experiments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import ImageSet
from imixer.data.names import BUILT_IN, SCENES
from imixer.data.sources.open import open_dataset
from imixer.data.sources.open_masked import open_masked
from imixer.data.sources.shard_files import parquet_files
from imixer.errors import InputError

DEFAULT_FOLDER = "data"  # of `DataConfig.root`


@dataclass(frozen=True)
class DatasetLocation:
    """A data set and its folder, or the reason why it cannot be used.

    Args:
        name: Its name.
        settings: Settings of `TrainConfig` that lead to it, by dotted name.
        missing: Reason why it cannot be used; empty if it can.
        training: Number of training images.
        held_out: Number of held-out images.
        in_chans: Channels of its images.
        num_classes: Number of classes.
        split: Split that the held-out images are, such as `test`. None if they are a fifth of the training images.
    """

    name: str
    settings: dict[str, Any]
    missing: str = ""
    training: int = 0
    held_out: int = 0
    in_chans: int = 0
    num_classes: int = 0
    split: str | None = None

    @property
    def held_out_part(self) -> str:
        """The held-out images in words, such as `test split`."""
        if self.name == SCENES:
            return "held-out scenes"
        return f"{self.split} split" if self.split else "held-out fifth of the training images"


def locate_dataset(name: str, folder: str | None = None) -> DatasetLocation:
    """Locate a data set in a folder: torchvision's files, else parquet shards or class folders.

    All but digits and scenes need a test split of their own, as the paper's have. Without one they count as missing.

    Args:
        name: `digits`, `scenes`, or a data set of torchvision that `imixer train` knows.
        folder: Folder that holds torchvision's files, or a folder called like the data set. A folder of parquet shards
            is taken for CIFAR-10 itself. Default: `data`.

    Returns:
        Where it lies, or why it cannot be used.

    Raises:
        InputError: If the folder does not exist.
    """
    if name in BUILT_IN:
        return _open(name, DataConfig(name))
    place = Path(folder or DEFAULT_FOLDER)
    if folder is not None and not place.is_dir():
        raise InputError(f"data_dir is {folder}, which is no folder; give the one with the data sets")
    if name == "cifar10" and place.is_dir() and parquet_files(place):
        return _open(name, DataConfig(str(place)))
    dataset = _open(name, DataConfig(name, root=folder))
    if dataset.missing and (place / name).is_dir():
        return _open(name, DataConfig(str(place / name)))
    if dataset.missing:
        files = f"torchvision's files, or parquet shards or class folders in its folder {name}"
        return replace(dataset, missing=f"{name} is not in {place}; give --data_dir a folder with {files}")
    return dataset


def _open(name: str, config: DataConfig) -> DatasetLocation:
    settings = {"data.name": config.name} | ({"data.root": config.root} if config.root else {})
    try:
        images: ImageSet = open_masked(config, MaskConfig()) if name == SCENES else open_dataset(config)
    except InputError as error:
        return DatasetLocation(name, settings, missing=str(error))
    if name not in BUILT_IN and images.split is None:
        remedy = "add the folder test, or test-*.parquet, beside its training images"
        return DatasetLocation(name, settings, missing=f"{name} in {config.name} has no test split; {remedy}")
    training, held_out = (len(part) for part in (images.train, images.val))
    return DatasetLocation(
        name, settings, "", training, held_out, images.in_chans, len(images.class_names), images.split
    )
