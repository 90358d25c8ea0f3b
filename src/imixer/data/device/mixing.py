"""Mixup and CutMix of a micro-batch with its own reverse: timm's Mixup in mode `batch`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from imixer.data.device.transfer import chunks


class MixingParams(NamedTuple):
    """The way a micro-batch is mixed.

    Args:
        lam: Weight of each image's own target (lambda).
        box: Rows and columns (first, end, first, end) that are swapped: CutMix. None: all pixels are blended: Mixup.
    """

    lam: float
    box: tuple[int, int, int, int] | None


class Mixing:
    """Mixup or CutMix of each micro-batch with its own reverse.

    Args:
        mixup: timm's mixer, whose settings it takes.
        size: (height, width) of the images in pixels.
    """

    def __init__(self, mixup: Mixup, size: tuple[int, int]) -> None:
        self.mixup_alpha, self.cutmix_alpha = mixup.mixup_alpha, mixup.cutmix_alpha
        self.smoothing, self.num_classes = mixup.label_smoothing, mixup.num_classes
        self.size = size

    def draw(self, rng: np.random.Generator) -> MixingParams:
        """Draw the params of one micro-batch."""
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or rng.random() < 0.5)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        lam = float(rng.beta(alpha, alpha))
        if not cut:
            return MixingParams(lam, None)
        height, width = self.size
        cut_height, cut_width = (int(side * math.sqrt(1 - lam)) for side in self.size)
        y, x = int(rng.integers(height)), int(rng.integers(width))
        top, bottom = max(y - cut_height // 2, 0), min(y + (cut_height + 1) // 2, height)
        left, right = max(x - cut_width // 2, 0), min(x + (cut_width + 1) // 2, width)
        # what the border cuts off does not count
        return MixingParams(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))

    def __call__(self, images: Tensor, labels: Tensor, params: MixingParams) -> Tensor:
        """Mix images (B, C, H, W) in place, and return the targets (B, classes)."""
        if params.box:
            top, bottom, left, right = params.box
            box = images[:, :, top:bottom, left:right]
            box.copy_(box.flip(0))
        else:
            count = len(images)
            for chunk in chunks(count // 2, images[0].numel(), images.device):
                one, other = images[chunk], images[count - chunk.stop : count - chunk.start]
                moved = other.flip(0).sub_(one).mul_(1 - params.lam)
                one.add_(moved)
                other.sub_(moved.flip(0))
        return mixup_target(labels, self.num_classes, params.lam, self.smoothing)
