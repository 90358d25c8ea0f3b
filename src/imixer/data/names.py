"""The names of data sets that are built in or known to other libraries. Free of torch."""

from __future__ import annotations

import os
from pathlib import Path

DIGITS = "digits"
TORCHVISION = ("cifar10", "cifar100", "stanford_cars", "food101", "imagenet")
VOC_YEARS = {"voc": "2012", **{f"voc{year}": f"{year}" for year in range(2007, 2013)}}
OXFORD_PETS = "oxford_pets"
SCENES = "scenes"
BUILT_IN = (DIGITS, SCENES)
MASKED = (SCENES, *VOC_YEARS, OXFORD_PETS)
TIMM_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


def timm_prefix(name: str) -> str | None:
    """Return the prefix of a data set name in lower case, when timm knows it."""
    prefix, slash, _ = name.partition("/")
    return prefix.lower() if slash and prefix.lower() in TIMM_PREFIXES else None


def is_named(name: str, task: str = "classify") -> bool:
    """Return whether a data set is built in or known to torchvision or timm, and not a folder.

    Args:
        name: The name, as in `DataConfig`.
        task: What it is opened for: names of data sets with masks mean these for `segment` only, as the others do else.
    """
    if task == "segment":
        return name in MASKED
    return name in (DIGITS, *TORCHVISION) or timm_prefix(name) is not None


def is_photo_folder(name: str) -> bool:
    """Return whether a name means a folder of class folders: one that is there and holds no shards.

    Args:
        name: The name of a data set, as in `DataConfig`.
    """
    from imixer.data.sources.shard_files import shard_suffix  # Pillow takes a while to import

    path = os.path.expanduser(name)
    if is_named(name) or not os.path.isdir(path):
        return False
    try:
        return shard_suffix(Path(path)) is None
    except OSError:  # which opening it tells
        return False
