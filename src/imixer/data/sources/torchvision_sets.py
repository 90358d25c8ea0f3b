"""Data sets that torchvision knows by name."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import datasets

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sources.decoding import error_reason, read_image_file, to_channels
from imixer.data.sources.image_files import data_root
from imixer.data.sources.wrapped import WrappedDataset
from imixer.errors import InputError


@dataclass(frozen=True)
class _TorchvisionSet:
    """One data set of torchvision: its class there, and what is known about it.

    Args:
        factory: Name of the class in torchvision.datasets.
        train: Arguments that select the training split.
        val: Arguments that select the held-out split.
        files: The files to put there when it cannot be downloaded.
        from_files: Whether it reads image files, as opposed to arrays.
        downloadable: Whether torchvision can fetch it.
        native_size: (height, width) in pixels when all images share it.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
    """

    factory: str
    train: dict[str, Any]
    val: dict[str, Any]
    files: str
    from_files: bool = True
    downloadable: bool = True
    native_size: tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD


SETS = {
    "cifar10": _TorchvisionSet(
        factory="CIFAR10",
        train={"train": True},
        val={"train": False},
        files="the folder cifar-10-batches-py",
        from_files=False,
        native_size=(32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _TorchvisionSet(
        factory="CIFAR100",
        train={"train": True},
        val={"train": False},
        files="the folder cifar-100-python",
        from_files=False,
        native_size=(32, 32),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "stanford_cars": _TorchvisionSet(
        factory="StanfordCars",
        train={"split": "train"},
        val={"split": "test"},
        files="stanford_cars/devkit, cars_train, cars_test and cars_test_annos_withlabels.mat",
        downloadable=False,  # its address is gone
    ),
    "food101": _TorchvisionSet(
        factory="Food101",
        train={"split": "train"},
        val={"split": "test"},
        files="the folder food-101",
    ),
    "imagenet": _TorchvisionSet(
        factory="ImageNet",
        train={"split": "train"},
        val={"split": "val"},
        files="ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
        downloadable=False,  # it needs a registration
    ),
}


def _read_rgb(path: str) -> Image.Image:
    # as torchvision reads them, so that results compare: not turned as EXIF says
    return to_channels(read_image_file(path, "fetch the data set again", upright=False), 3)


def _remove_empty(root: Path) -> None:
    """Remove the folders that a failed download has made. Whatever holds a file stays."""
    for folder in sorted([root, *root.rglob("*")], reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()


def open_torchvision(name: str, config: DataConfig) -> ImageData:
    """Open a data set of torchvision, with its own held-out split. It is downloaded only if `config.download` says so.

    Args:
        name: A name in `SETS`.
        config: Gives `root` and `download`.

    Raises:
        InputError: If it is not in `config.root`, or cannot be downloaded, or `data.value_range` is set.
    """
    if config.value_range:
        raise InputError(
            f"data.value_range is for images of more than 8 bits, and those of {name} have 8; leave it out"
        )
    entry = SETS[name]
    root = data_root(config.root)
    factory = getattr(datasets, entry.factory)
    common: dict[str, Any] = {"root": str(root)}
    if entry.from_files:
        common["loader"] = _read_rgb
    fetch = config.download and entry.downloadable
    fresh = not os.path.exists(root)
    remedy = f"put {entry.files} into {root} yourself"
    try:
        train = factory(**common, **entry.train, **({"download": True} if fetch else {}))
        val = factory(**common, **entry.val)
    except Exception as error:  # network, archive and file errors of many kinds
        if fetch:
            if fresh:
                _remove_empty(root)
            raise InputError(f"could not download {name}: {error_reason(error)}; {remedy}") from error
        # torchvision's own words on missing files are a RuntimeError and speak of its arguments
        why = "" if isinstance(error, RuntimeError) else f" ({error_reason(error)})"
        missing = f"{name} is not in {root} or is incomplete{why}"
        if entry.downloadable:
            raise InputError(
                f"{missing}: name its folder by --data.root, or --data where a run is used, or train with "
                "--data.download true"
            ) from error
        raise InputError(f"{missing} and cannot be downloaded automatically; {remedy}") from error
    classes = len(train.classes)
    return ImageData(
        name=name,
        train=WrappedDataset(train, 3, f"{name} (training)", classes=classes),
        val=WrappedDataset(val, 3, f"{name} (validation)", classes=classes),
        # ImageNet gives each class a tuple of synonyms
        class_names=tuple(each if isinstance(each, str) else ", ".join(each) for each in train.classes),
        in_chans=3,
        native_size=entry.native_size,
        mean=entry.mean,
        std=entry.std,
        sources=(f"torchvision's {_split_name(entry.train)} part, in {root}", f"its {_split_name(entry.val)} part"),
        split=entry.val.get("split", "test"),
    )


def _split_name(chosen: dict[str, Any]) -> str:
    """Name a split as torchvision does."""
    return str(chosen["split"]) if "split" in chosen else "training" if chosen["train"] else "test"
