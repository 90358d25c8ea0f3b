"""From bytes to floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imixer.data.device.transfer import chunks


class Normalise:
    """From bytes to floats with mean 0 and deviation 1.

    Args:
        mean: Mean per channel, with pixel values in [0, 1].
        std: Deviation per channel, likewise.
        device: Where the images are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        middle, width = (torch.tensor(each, dtype=torch.float64).view(1, -1, 1, 1) for each in (mean, std))
        self.factor = (1 / (255 * width)).to(device, torch.float32)
        self.offset = (-middle / width).to(device, torch.float32)

    def __call__(self, images: Tensor, out: Tensor) -> Tensor:
        """Write bytes as floats to `out`, and return it."""
        for piece in chunks(len(images), math.prod(images.shape[1:]), images.device):
            out[piece].copy_(images[piece]).mul_(self.factor).add_(self.offset)
        return out
