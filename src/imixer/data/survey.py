"""Channels, size, mean and deviation of a data set, from a sample of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imixer.data.decoding import is_gray, to_channels

_SAMPLE = 2000
_SAMPLE_OF_LARGE = 500
_LARGE = 128 * 128  # pixels


@dataclass(frozen=True)
class Survey:
    """Facts on a sample of images.

    Args:
        in_chans: 1 when all are gray, else 3.
        native_size: (height, width) in pixels when all share it.
        mean: Mean of each channel, with pixel values in [0, 1]. Each image counts the same, whatever its size.
        std: Standard deviation of each channel, likewise; at least 1/255.
    """

    in_chans: int
    native_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def survey(load: Callable[[int], Image.Image], count: int) -> Survey:
    """Measure up to 2,000 of `count` images, up to 500 when they are large. The sample is always the same.

    Args:
        load: Gives image i, in the mode it is stored in.
        count: How many images there are, at least 1.
    """
    order = np.random.default_rng(0).permutation(count)[:_SAMPLE]
    first = load(int(order[0]))
    if first.width * first.height > _LARGE:
        order = order[:_SAMPLE_OF_LARGE]

    sizes = {(first.height, first.width)}
    gray = np.zeros(256)
    colour = np.zeros((3, 256))
    all_gray = True
    for index in order:
        image = load(int(index))
        sizes.add((image.height, image.width))
        if is_gray(image):
            gray += _shares(image, 1)[0]
        else:
            all_gray = False
            colour += _shares(image, 3)

    shares = gray[None] if all_gray else colour + gray
    mean, std = moments(shares / len(order))
    return Survey(1 if all_gray else 3, sizes.pop() if len(sizes) == 1 else None, mean, std)


def _shares(image: Image.Image, in_chans: int) -> NDArray[np.float64]:
    """Share of the pixels at each of the 256 values, per channel: moments of it are exact."""
    counts = np.array(to_channels(image, in_chans).histogram(), dtype=np.float64)
    return counts.reshape(in_chans, 256) / (image.width * image.height)


def moments(shares: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1], of a (channels, 256) table of shares that sum to 1."""
    values = np.arange(256) / 255
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    # a set of constant images must not divide by zero
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
