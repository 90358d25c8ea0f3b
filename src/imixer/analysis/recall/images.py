"""Images to store in a memory, and what is left of them as queries."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imixer.data.config import DataConfig
from imixer.data.sources.digits import open_digits
from imixer.data.sources.image_files import find_images, load_image
from imixer.errors import InputError
from imixer.hopfield.memory import binarised

MASKS = ("none", "top", "bottom", "left", "right")


def digit_patterns(count: int, generator: torch.Generator) -> tuple[Tensor, tuple[str, ...]]:
    """Handwritten digits (count, 8, 8) from -1 to 1, drawn at random, and their names.

    They stay different when binarised, which a few of the 1,437 do not.

    Raises:
        InputError: If there are not as many.
    """
    pixels, labels, places = _digits()
    if count > len(places):
        raise InputError(f"patterns is {count}; there are {len(places)} different digits to draw from")
    chosen = places[torch.randperm(len(places), generator=generator)[:count]]
    return pixels[chosen], tuple(f"a {labels[int(i)]}" for i in chosen)


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, list[int], Tensor]:
    """Pixels (n, 8, 8) and labels of the training digits, and the places of those that differ when binarised."""
    items = open_digits(DataConfig()).train
    pairs = [items[i] for i in range(len(items))]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in pairs])).float() / 127.5 - 1
    _, group = binarised(pixels).flatten(1).unique(dim=0, return_inverse=True)
    first = {int(g): i for i, g in reversed(list(enumerate(group)))}
    return pixels, [label for _, label in pairs], torch.tensor(sorted(first.values()))


def image_patterns(paths: Sequence[str], size: int, count: int | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Image files as gray squares (K, size, size) from -1 (black) to 1 (white), and their names.

    Args:
        paths: Files or folders.
        size: Side in pixels.
        count: Take the first so many. Default: all.

    Raises:
        InputError: If one cannot be read, or there are not as many.
    """
    files = find_images(paths)
    if count is not None and count > len(files):
        raise InputError(f"patterns is {count}; there are {len(files)} images")
    files = files[:count]
    squares = [load_image(file, 1).resize((size, size), Image.Resampling.BICUBIC) for file in files]
    pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    return pixels.float() / 127.5 - 1, tuple(file.name for file in files)


def corrupt(patterns: Tensor, noise: float, binary: bool, generator: torch.Generator) -> Tensor:
    """Patterns (B, *shape) with noise.

    Args:
        patterns: From -1 to 1.
        noise: If binary, the share of pixels whose sign changes, rounded to whole ones. Otherwise the standard
            deviation of Gaussian noise, in units of the range from -1 to 1.
        binary: Which of the two.
        generator: Of the noise.
    """
    if not binary:
        return patterns + 2 * noise * torch.randn(patterns.shape, generator=generator)
    values = patterns.flatten(1)
    order = torch.rand(values.shape, generator=generator).argsort(1)
    flipped = order[:, : round(noise * values.shape[1])]
    return values.scatter(1, flipped, -values.gather(1, flipped)).view_as(patterns)


def known_half(mask: str, shape: tuple[int, ...]) -> Tensor:
    """Mask (H, W) of the pixels that are not hidden.

    Args:
        mask: Half that is hidden: `top`, `bottom`, `left`, `right`, or `none`.
        shape: (H, W).
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
