"""Batches for training, and single images for prediction."""

from __future__ import annotations

import random
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imixer.data.config import DataConfig
from imixer.data.decoding import read_file, to_channels
from imixer.data.image_data import ImageData, Item
from imixer.data.image_files import images_under
from imixer.data.sampler import EpochShuffle
from imixer.data.transforms import Transform, eval_transform, train_transform
from imixer.errors import InputError


class TransformedImages(Dataset["tuple[Tensor, int]"]):
    """Labelled images as tensors.

    Args:
        items: Pairs of an image and a label.
        transform: From an image to a tensor.
    """

    def __init__(self, items: Dataset[Item], transform: Transform) -> None:
        self.items = items
        self.transform = transform

    def __len__(self) -> int:
        return len(cast(Sized, self.items))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.items[index]
        return self.transform(image), label


def build_loaders(
    data: ImageData, config: DataConfig, input_size: tuple[int, int, int], *, seed: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of (images, labels): floats of shape (batch, *input_size), and int64 of shape (batch,).

    Training images are shuffled by seed and epoch, and an incomplete last batch is dropped unless it is the only
    one. Validation images come in order and completely. With workers, augmentation draws from generators
    that depend on the seed; without, from the global ones of torch, numpy and random.

    Args:
        data: The data set.
        config: Batch size, workers and augmentation.
        input_size: (channels, height, width) of the model's input in pixels.
        seed: Training seed, 0 or more.

    Returns:
        The training loader and the validation loader.

    Raises:
        InputError: Channels do not match, an augmentation setting makes no sense, or mixup meets an odd batch.
    """
    if input_size[0] != data.in_chans:
        raise InputError(
            f"{data.name} has {data.in_chans}-channel images, but the model takes {input_size[0]} channels; "
            f"build the model with in_chans={data.in_chans}"
        )
    train = TransformedImages(data.train, train_transform(config, input_size, data.mean, data.std))
    val = TransformedImages(
        data.val, eval_transform(input_size, data.mean, data.std, config.crop_pct, config.interpolation)
    )
    full_batch = len(train) >= config.batch_size
    if not full_batch and len(train) % 2 and (config.mixup or config.cutmix):
        raise InputError(
            f"data.batch_size is {config.batch_size}, but {data.name} has {len(train)} training images; data.mixup "
            f"and data.cutmix need an even batch, give {len(train) - 1} or less"
        )
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "num_workers": config.workers,
        "persistent_workers": config.workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": seed_worker,
    }
    # generators of their own, so that starting a loader leaves the global one untouched
    return (
        DataLoader(
            train,
            sampler=EpochShuffle(train, seed),
            drop_last=full_batch,
            generator=torch.Generator().manual_seed(seed),
            **common,
        ),
        DataLoader(val, generator=torch.Generator().manual_seed(seed), **common),
    )


def seed_worker(_worker: int) -> None:
    """Seed random and numpy from the seed that torch gave this worker: timm's augmentation draws from both."""
    seed = torch.initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)


def worker_message(error: InputError) -> str:
    """The line an InputError was raised with, without the traceback that a loader process wraps it in."""
    marker = f"{InputError.__module__}.{InputError.__qualname__}: "
    text = str(error)
    return text.rpartition(marker)[2].splitlines()[0] if text.startswith("Caught ") and marker in text else text


def load_image(path: str | Path, in_chans: int) -> Image.Image:
    """Read one image file as mode `L` (1 channel) or `RGB` (3 channels).

    Raises:
        InputError: The file is missing, empty, truncated or no image; the message names it.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"no such image file: {path}; correct the path")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an image file")
    return to_channels(read_file(path, "give a complete image file"), in_chans)


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files at some paths: files as they are, folders searched recursively, each folder's images sorted.

    Raises:
        InputError: No path is given, one does not exist, or a folder holds no images.
    """
    found: dict[Path, None] = {}  # keeps order, drops repetition
    for path in (Path(each).expanduser() for each in paths):
        if path.is_dir():
            images = images_under(path)
            if not images:
                raise InputError(f"no images in folder {path}; give image files or a folder that holds some")
        elif path.exists():
            images = [path]
        else:
            raise InputError(f"no such file or folder: {path}; correct the path")
        found.update(dict.fromkeys(images))
    if not found:
        raise InputError("no images given; name image files or folders")
    return list(found)
