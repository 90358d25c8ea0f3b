"""Posterize at full magnitude, which Pillow 13 refuses and timm's policies ask for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from PIL import Image
from timm.data import auto_augment


def posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """Keep the upper bits of each pixel value; 0 bits give black, as before Pillow 13.

    Without it, `rand-m9-mstd0.5-inc1` fails after some hundred images, when the magnitude is drawn above 10.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    kept: Image.Image = auto_augment.posterize(image, bits, **settings)
    return kept


def mend_posterize(steps: Iterable[Any]) -> None:
    """Give each posterize operation of timm's policies the function above."""
    for step in steps:
        groups = getattr(step, "policy", None) or [getattr(step, "ops", [])]
        for operation in (each for group in groups for each in group):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
