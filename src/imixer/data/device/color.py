"""RandAugment's operations on pixel values, batched, as Pillow computes them.

Each operation takes bytes (B, C, H, W), with 1 channel or 3, and an argument (B, 1, 1, 1) for each image. It returns
bytes of the same shape. Results agree with Pillow's to the byte.
"""

from __future__ import annotations

import torch
from torch import Tensor


def auto_contrast(images: Tensor, _argument: Tensor) -> Tensor:
    """Stretch each channel to 0 to 255."""
    values = images.flatten(2)
    # float64 and a true division, as the table rounds down what is often a whole number
    low, high = values.amin(2, keepdim=True).double(), values.amax(2, keepdim=True).double()
    scale = torch.full_like(low, 255) / (high - low)
    same = torch.arange(256, dtype=torch.float64, device=images.device)
    table = torch.where(high > low, (same * scale + -low * scale).clamp(0, 255), same)
    return _look_up(table.to(torch.uint8), images)


def equalize(images: Tensor, _argument: Tensor) -> Tensor:
    """Spread the values of each channel evenly over 0 to 255."""
    values = images.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones((), dtype=torch.int64, device=images.device).expand_as(values))
    top = values.amax(2, keepdim=True)
    step = (values.shape[2] - counts.gather(2, top)) // 255
    below = counts.cumsum(2) - counts
    spread = (step // 2 + below) // step.clamp(min=1)
    table = torch.where(step > 0, spread.clamp(max=255), torch.arange(256, device=images.device))
    return _look_up(table.to(torch.uint8), images)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from the threshold on; 0 inverts all, 256 none."""
    return images ^ ~_below(images, threshold)


def solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    """Add an amount up to 128 to values below 128."""
    return images + (_below(images, torch.full_like(amount, 128)) & amount.to(torch.uint8))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper bits, 0 to 8."""
    return images & (256 - 2 ** (8 - bits)).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 is black, 1 is the image, more is brighter."""
    return _blend(torch.zeros((), device=images.device), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray."""
    gray = _gray(images)
    mean = gray.sum((2, 3), keepdim=True).double() / (gray.shape[2] * gray.shape[3])
    return _blend((mean + 0.5).floor().float(), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image."""
    return _blend(_gray(images).float(), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image: 3 x 3 ones, but 5 in the centre, over 13; the border stays."""
    smooth = images.float()
    down = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    box = down[..., :-2] + down[..., 1:-1] + down[..., 2:]
    inner = smooth[:, :, 1:-1, 1:-1]
    inner.copy_(box.add_(inner, alpha=4).div_(13).add_(0.5).floor_())
    return _blend(smooth, images, factor)


def _below(images: Tensor, threshold: Tensor) -> Tensor:
    """Compare bytes with thresholds: 255 where a value is less, else 0.

    It is the sign of the difference, which is faster than a comparison.
    """
    return ((images.to(torch.int16) - threshold.to(torch.int16)) >> 15).to(torch.uint8)


def _look_up(table: Tensor, images: Tensor) -> Tensor:
    return table.gather(2, images.flatten(2).long()).view_as(images)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    mixed = (images.float() - base).mul_(factor.float()).add_(base)
    # by way of int16, which is several times as fast as a direct conversion
    return mixed.to(torch.int16).clamp_(0, 255).to(torch.uint8)
