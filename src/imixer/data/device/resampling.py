"""Pillow's antialiased resize of one axis as a matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
_FRACTION_BITS = 22  # of Pillow's integer arithmetic on bytes


def resampling(source: int, target: int, interpolation: str) -> NDArray[np.float64]:
    """Weights (target, source) of each source pixel in each target pixel; rows sum to 1.

    Args:
        source: Pixels before.
        target: Pixels after.
        interpolation: `bilinear`, or `bicubic` with a = -0.5. Both widen when the image shrinks.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    support = _RADIUS[interpolation] * stretch
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(int), 0)[:, None]
    end = np.minimum((centres + support + 0.5).astype(int), source)[:, None]
    pixels = np.arange(source)
    weights = _kernel((pixels - centres[:, None] + 0.5) / stretch, interpolation)
    weights *= (first <= pixels) & (pixels < end)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.rint(weights * 2**_FRACTION_BITS) / 2**_FRACTION_BITS


def _kernel(distance: NDArray[np.float64], interpolation: str) -> NDArray[np.float64]:
    x = np.abs(distance)
    if interpolation == "bilinear":
        return np.maximum(1 - x, 0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))
