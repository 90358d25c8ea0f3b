"""How far a training crop shifts, and which images are mirrored when: the same in both pipelines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imixer.data.config import DataConfig
from imixer.errors import InputError

_STREAM = 7  # keeps these draws apart from those of orders and images


def shifts(config: DataConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Compute the largest shift of the crops `pad` and `reflect`.

    Args:
        config: Gives `shift`.
        size: (height, width) of the crop in pixels.

    Returns:
        Pixels down and to the right.

    Raises:
        InputError: If the crop would leave the image, or its reflection.
    """
    if config.shift is not None and config.shift >= min(size):
        raise InputError(
            f"data.shift is {config.shift}, and images have {size[0]}x{size[1]} pixels; give less than a side"
        )
    down, right = (config.shift or max(1, side // 8) for side in size)
    if config.crop == "reflect" and min(size) < 2:
        raise InputError(f"data.crop is reflect, and images have {size[0]}x{size[1]} pixels; use data.crop center")
    return down, right


class AlternatingFlips:
    """Which images are mirrored in which epoch: each in every other one.

    A function of seed, epoch and image number. Choose it for short trainings: an image is then seen from both sides
    in any two epochs in a row, where independent draws repeat a side half of the time.

    Args:
        count: How many images there are.
        seed: Training seed, 0 or more.
        first: Probability that an image is mirrored in epoch 0.

    Source: Jordan, arXiv 2404.00498, section 3.6.
    """

    def __init__(self, count: int, seed: int, first: float) -> None:
        self._first = np.random.default_rng((_STREAM, seed)).random(count) < first

    def __call__(self, numbers: NDArray[np.int64], epoch: int) -> NDArray[np.bool_]:
        """Decide on images by their numbers (batch,)."""
        mirrored: NDArray[np.bool_] = self._first[numbers] ^ bool(epoch % 2)
        return mirrored


def alternating_flips(config: DataConfig, count: int, seed: int) -> AlternatingFlips | None:
    """Build what decides on mirroring, or None if every epoch draws anew."""
    return AlternatingFlips(count, seed, config.hflip) if config.flip == "alternating" else None
