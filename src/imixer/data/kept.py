"""Keep decoded images in memory, no larger than the crops can use: photos take longer to decode than to train on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from imixer.data.config import DataConfig
from imixer.data.device.resident import free_memory
from imixer.data.image_data import ImageData, LabelledImage, LabelledImages
from imixer.data.transforms import eval_transform
from imixer.errors import InputError
from imixer.progress import with_progress

_SAMPLE = 8  # images, by whose size that of all is told
_AT_ONCE = 16
_THREADS = 4


class KeptImages(Dataset[LabelledImage]):
    """Images of another data set, decoded and shrunk once, in memory.

    Choose it for photos that fit into memory once they are shrunk; `StreamedImages` are for those that do not.

    Args:
        items: Pairs of an image and a label.
        shrink: From an image to the one that is kept.
        what: What the images are, shown while they are read.

    Attributes:
        labels: Label of each image (images,).
    """

    def __init__(self, items: LabelledImages, shrink: Callable[[Image.Image], Image.Image], what: str) -> None:
        self.images: list[Image.Image] = []
        labels: list[int] = []

        def read(number: int) -> LabelledImage:
            image, label = items[number]
            return shrink(image), label

        def read_all() -> Iterator[list[LabelledImage]]:
            with ThreadPoolExecutor(_THREADS) as pool:
                for start in range(0, len(items), _AT_ONCE):
                    yield list(pool.map(read, range(start, min(start + _AT_ONCE, len(items)))))

        for image, label in with_progress(read_all(), len(items), f"reading {what} images"):
            self.images.append(image)
            labels.append(label)
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.images[index], int(self.labels[index])


def keep_images(data: ImageData, config: DataConfig, input_size: tuple[int, int, int]) -> ImageData:
    """Decode all images of a data set and keep them in memory.

    Training images are shrunk until the smallest crop has as many pixels as the model's input, and never enlarged.
    Held-out images are resized as for validation, which leaves their results as they are.

    Args:
        data: The data set.
        config: Crop, `crop_pct` and interpolation.
        input_size: (channels, height, width) of the model's input in pixels.

    Returns:
        The data set with `KeptImages`.

    Raises:
        InputError: If the images are streamed, or need more than half of the memory that is free.
    """
    if data.windows is not None:
        raise InputError(
            "data.keep_decoded is true, and these images are streamed; leave it out, or pass --data.streaming never"
        )
    needed, free = kept_bytes(data, config, input_size), free_memory(torch.device("cpu"))
    if needed > free / 2:
        raise InputError(
            f"data.keep_decoded is true, and the images of {data.name} take about {needed / 2**30:.2f} GiB of the "
            f"{free / 2**30:.2f} GiB that are free; free some, or begin a run without it or of smaller images"
        )
    shrink, resize = _shrinker(config, input_size), _eval_resize(data, config, input_size)
    return replace(data, train=KeptImages(data.train, shrink, "training"), val=KeptImages(data.val, resize, "held-out"))


def kept_bytes(data: ImageData, config: DataConfig, input_size: tuple[int, int, int]) -> int:
    """Estimate the bytes that all images of a data set take in memory, by a few of them.

    Args:
        data: The data set.
        config: Crop, `crop_pct` and interpolation.
        input_size: (channels, height, width) of the model's input in pixels.
    """
    total = 0.0
    for items, shrink in (
        (data.train, _shrinker(config, input_size)),
        (data.val, _eval_resize(data, config, input_size)),
    ):
        numbers = sample_numbers(len(items), _SAMPLE)
        images = [shrink(items[number][0]) for number in numbers]
        total += len(items) * sum(image.width * image.height for image in images) / len(images)
    return int(total * data.in_chans)


def sample_numbers(count: int, most: int) -> list[int]:
    """Draw the numbers of a sample of images, which is always the same.

    Args:
        count: Number of images.
        most: Number of images in the sample, if there are as many.
    """
    numbers: list[int] = np.random.default_rng(0).permutation(count)[:most].tolist()
    return numbers


def _shrinker(config: DataConfig, input_size: tuple[int, int, int]) -> Callable[[Image.Image], Image.Image]:
    share = math.sqrt(config.scale[0]) if config.crop == "resized" else config.crop_pct
    side = math.ceil(max(input_size[1:]) / share)

    def shrink(image: Image.Image) -> Image.Image:
        factor = side / min(image.size)
        if factor >= 1:
            return image
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return image.resize(size, Image.Resampling.BICUBIC)

    return shrink


def _eval_resize(
    data: ImageData, config: DataConfig, input_size: tuple[int, int, int]
) -> Callable[[Image.Image], Image.Image]:
    """Return the first step of validation, which then finds nothing left to do."""
    transform: Any = eval_transform(input_size, data.mean, data.std, config.crop_pct, config.interpolation)
    resize: Callable[[Image.Image], Image.Image] = transform.transforms[0]
    return resize
