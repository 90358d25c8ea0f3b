"""Where the data sets of the experiments lie."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sources.open import open_data
from imixer.data.sources.parquet_files import parquet_files
from imixer.errors import InputError

DEFAULT_FOLDER = "data"  # of `DataConfig.root`


@dataclass(frozen=True)
class DatasetLocation:
    """A data set, or why it is not there.

    Args:
        name: Its name.
        settings: Where it lies, by dotted name of `TrainConfig`.
        missing: Why it cannot be used; empty if it can.
        training, held_out: Numbers of images.
        in_chans: Channels of its images.
        num_classes: Number of classes.
        split: Its own name for the held-out images, such as `test`; None if they are a fifth of its training images.
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
        """What the held-out images are, in words."""
        return f"{self.split} split" if self.split else "held-out fifth of the training images"


def locate_dataset(name: str, folder: str | None = None) -> DatasetLocation:
    """Look for a data set: as torchvision lays it out in the folder, else as parquet shards or class folders.

    All but digits need a test split of their own, as the paper's have: without one they count as missing.

    Args:
        name: `digits`, or a name of torchvision's that `imixer train` knows.
        folder: Where torchvision's files are, or a folder called like the data set. A folder of parquet shards is
            itself CIFAR-10. Default: `data`.

    Raises:
        InputError: If the folder does not exist.
    """
    if name == "digits":
        return _open(name, DataConfig(name))
    place = Path(folder or DEFAULT_FOLDER)
    if folder is not None and not place.is_dir():
        raise InputError(f"data_dir is {folder}, which is no folder; give the one with the data sets")
    if name == "cifar10" and place.is_dir() and parquet_files(place):
        return _open(name, DataConfig(str(place)))
    found = _open(name, DataConfig(name, root=folder))
    if found.missing and (place / name).is_dir():
        return _open(name, DataConfig(str(place / name)))
    if found.missing:
        files = f"torchvision's files, or parquet shards or class folders in its folder {name}"
        return replace(found, missing=f"{name} is not in {place}; give --data_dir a folder with {files}")
    return found


def _open(name: str, config: DataConfig) -> DatasetLocation:
    settings = {"data.name": config.name} | ({"data.root": config.root} if config.root else {})
    try:
        images: ImageData = open_data(config)
    except InputError as error:
        return DatasetLocation(name, settings, missing=str(error))
    if name != "digits" and images.split is None:
        remedy = "add the folder test, or test-*.parquet, beside its training images"
        return DatasetLocation(name, settings, missing=f"{name} in {config.name} has no test split; {remedy}")
    training, held_out = (len(cast(Sized, part)) for part in (images.train, images.val))
    return DatasetLocation(
        name, settings, "", training, held_out, images.in_chans, len(images.class_names), images.split
    )
