"""Choose images to store in a memory, and corrupt them to queries."""

import logging
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imixer.data.config import DataConfig
from imixer.data.sources.decoding import EIGHT_BITS
from imixer.data.sources.digits import open_digits
from imixer.data.sources.image_files import find_images, load_image
from imixer.data.sources.statistics import measured_format
from imixer.errors import InputError
from imixer.escaping import one_line
from imixer.hopfield.memory import binarised

_log = logging.getLogger(__name__)
MASKS = ("none", "top", "bottom", "left", "right")


def digit_patterns(count: int, generator: torch.Generator) -> tuple[Tensor, tuple[str, ...]]:
    """Draw handwritten digits (count, 8, 8) from -1 to 1 at random, and return them and their names.

    No two become equal when binarised, as a few of all 1,437 would.

    Raises:
        InputError: If count is larger than the number of such digits.
    """
    pixels, labels, places = _digits()
    if count > len(places):
        raise InputError(f"patterns is {count}; there are {len(places)} different digits to draw from")
    chosen = places[torch.randperm(len(places), generator=generator)[:count]]
    return pixels[chosen], tuple(f"a {labels[int(i)]}" for i in chosen)


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, list[int], Tensor]:
    """Return pixels (n, 8, 8) and labels of the training digits, and the places of those that differ binarised."""
    items = open_digits(DataConfig()).train
    pairs = [items[i] for i in range(len(items))]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in pairs])).float() / 127.5 - 1
    _, group = binarised(pixels).flatten(1).unique(dim=0, return_inverse=True)
    first = {int(g): i for i, g in reversed(list(enumerate(group)))}
    return pixels, [label for _, label in pairs], torch.tensor(sorted(first.values()))


def image_patterns(paths: Sequence[str], size: int, count: int | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Load image files as gray squares (K, size, size) from -1 (black) to 1 (white), and return them and their names.

    Of images of more than 8 bits the range is measured and said.

    Args:
        paths: Files or folders.
        size: Side in pixels.
        count: Number of images to take, the first ones. Default: all.

    Raises:
        InputError: If a file cannot be read, there are fewer than count, some images of more than 8 bits hold integers
            and others floats, or all have colours of 16 bits and are nearly black.
    """
    files = find_images(paths)
    if count is not None and count > len(files):
        raise InputError(f"patterns is {count}; there are {len(files)} images")
    files = files[:count]
    pixels, notes = measured_format(files, EIGHT_BITS, "the images", "convert them to one kind")
    for note in notes:
        _log.info(one_line(note))
    squares = [load_image(file, 1, pixels).resize((size, size), Image.Resampling.BICUBIC) for file in files]
    values = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    return values.float() / 127.5 - 1, tuple(file.name for file in files)


def add_noise(patterns: Tensor, noise: float, binary: bool, generator: torch.Generator) -> Tensor:
    """Add noise to patterns: flip signs of binary ones, else add Gaussian noise.

    Args:
        patterns: Patterns (B, *shape) from -1 to 1.
        noise: If binary, the share of pixels whose sign changes, rounded to whole pixels. Otherwise the standard
            deviation of Gaussian noise, in units of the range from -1 to 1.
        binary: Whether patterns are of +-1.
        generator: Source of the noise.
    """
    if not binary:
        return patterns + 2 * noise * torch.randn(patterns.shape, generator=generator)
    values = patterns.flatten(1)
    order = torch.rand(values.shape, generator=generator).argsort(1)
    flipped = order[:, : round(noise * values.shape[1])]
    return values.scatter(1, flipped, -values.gather(1, flipped)).view_as(patterns)


def known_half(mask: str, shape: tuple[int, ...]) -> Tensor:
    """Return a mask (H, W) of the pixels that are not hidden.

    Args:
        mask: Half that is hidden: `top`, `bottom`, `left`, `right`, or `none`.
        shape: Height and width (H, W).

    Raises:
        InputError: If mask is none of these.
    """
    height, width = shape
    known = torch.ones(shape, dtype=torch.bool)
    hidden = {
        "none": known[:0],
        "top": known[: height // 2],
        "bottom": known[height // 2 :],
        "left": known[:, : width // 2],
        "right": known[:, width // 2 :],
    }
    if mask not in hidden:
        raise InputError(f"mask is {mask!r}; choose one of {', '.join(hidden)}")
    hidden[mask][:] = False
    return known
