"""Random erasing in batches: timm's RandomErasing in mode `pixel`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from timm.data.random_erasing import RandomErasing
from torch import Tensor

_ATTEMPTS = 10  # of timm, before it leaves an image alone


class ErasingParams(NamedTuple):
    """The box that is erased in each image of a batch; arrays of shape (B,).

    Args:
        top: First row.
        left: First column.
        height: Rows; 0 erases nothing.
        width: Columns.
        noise: First of the image's values in the noise of the batch.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    noise: NDArray[np.int64]


class Erasing:
    """Random boxes filled with normal noise, value by value.

    Args:
        erasing: timm's, whose settings it takes.
        shape: (channels, height, width) of the images.
    """

    def __init__(self, erasing: RandomErasing, shape: tuple[int, int, int]) -> None:
        self.prob = erasing.probability
        self.area = (erasing.min_area, erasing.max_area)
        self.log_aspect = erasing.log_aspect_ratio
        self.shape = shape

    def draw(self, rng: np.random.Generator, count: int) -> tuple[ErasingParams, int]:
        """Draw the params of `count` images, and count the values of noise that they take."""
        channels, height, width = self.shape
        area = rng.uniform(*self.area, (count, _ATTEMPTS)) * (height * width)
        aspect = np.exp(rng.uniform(*self.log_aspect, (count, _ATTEMPTS)))
        heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (heights < height) & (widths < width)
        erased = (rng.random(count) <= self.prob) & fits.any(axis=1)
        image, first = np.arange(count), fits.argmax(axis=1)
        box_height = np.where(erased, heights[image, first], 0).astype(int)
        box_width = np.where(erased, widths[image, first], 0).astype(int)
        top, left = rng.integers(0, height - box_height + 1), rng.integers(0, width - box_width + 1)
        end = np.cumsum(channels * box_height * box_width)
        return ErasingParams(top, left, box_height, box_width, end - channels * box_height * box_width), int(end[-1])

    def __call__(self, images: Tensor, params: ErasingParams, noise: Tensor) -> None:
        """Erase boxes in place.

        Args:
            images: Normalised images (B, C, H, W).
            params: The boxes.
            noise: Noise of the batch (values,).
        """
        channels = images.shape[1]
        for image, top, left, height, width, start in zip(images, *(each.tolist() for each in params), strict=True):
            if height and width:
                values = noise[start : start + channels * height * width]
                image[:, top : top + height, left : left + width] = values.view(channels, height, width)
