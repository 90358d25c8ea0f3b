"""RandAugment's shears, shifts and rotations, batched, as Pillow computes them.

Each operation takes bytes (B, C, H, W), an argument (B, 1, 1, 1) in `float64` for each image, whether to interpolate by
cubics, and the value (1, C, 1, 1) of pixels that come from outside the image. It returns bytes of the same shape. As in
Pillow, pixels lie at half numbers, Keys' cubics have a = -1, beyond the border the outermost pixel is repeated, and
results are rounded down. They agree with Pillow's but for a few bytes in a hundred that are off by one, and noise
rotated by cubics, which is off by 0.4 on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def shear_x(images: Tensor, factor: Tensor, cubic: bool, fill: Tensor) -> Tensor:
    """Take pixel (x, y) from (x + factor y, y)."""
    return _shift_rows(images, factor * _pixel_centers(images.shape[2], images)[:, None], cubic, fill)


def shear_y(images: Tensor, factor: Tensor, cubic: bool, fill: Tensor) -> Tensor:
    """Take pixel (x, y) from (x, y + factor x)."""
    return shear_x(images.transpose(2, 3), factor, cubic, fill).transpose(2, 3)


def translate_x(images: Tensor, fraction: Tensor, cubic: bool, fill: Tensor) -> Tensor:
    """Take pixel (x, y) from (x + share width, y)."""
    return _shift_rows(images, fraction * images.shape[3], cubic, fill)


def translate_y(images: Tensor, fraction: Tensor, cubic: bool, fill: Tensor) -> Tensor:
    """Take pixel (x, y) from (x, y + share height)."""
    return translate_x(images.transpose(2, 3), fraction, cubic, fill).transpose(2, 3)


def rotate(images: Tensor, degrees: Tensor, cubic: bool, fill: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre."""
    height, width = images.shape[2:]
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    x = _pixel_centers(width, images) - width / 2
    y = (_pixel_centers(height, images) - height / 2)[:, None]
    source_x = (cos * x + width / 2).float() - (sin * y).float()
    source_y = (sin * x + height / 2).float() + (cos * y).float()
    depth = torch.minimum(torch.minimum(source_x, width - source_x), torch.minimum(source_y, height - source_y))
    outside = depth.lt(0).to(torch.uint8) * 255
    values = images.float()
    if cubic:
        # torch's cubics have a = -3/4. They are linear in a, and those with a = 0 are linear interpolation at eased
        # places: so a = -1 is 4/3 of the former less 1/3 of the latter, along each axis
        turned = _sampled(values, source_x, source_y, "bicubic")
        turned = turned.lerp_(_sampled(values, _smoothstep(source_x), _smoothstep(source_y), "bilinear"), -1 / 3)
    else:
        turned = _sampled(values, source_x, source_y, "bilinear")
    # weights add up to 1 only almost, and an even area is to keep its value
    return _as_bytes(turned.add_(1 / 256), outside, fill)


def _sampled(values: Tensor, x: Tensor, y: Tensor, mode: str) -> Tensor:
    """Interpolate values at coordinates (B, 1, H, W)."""
    height, width = values.shape[2:]
    grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), dim=-1).squeeze(1)
    return nn.functional.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)


def _smoothstep(position: Tensor) -> Tensor:
    """Move coordinates towards the centre of the nearest pixel by 3 t^2 - 2 t^3.

    Linear interpolation there has no slope at the pixel, as cubics with a = 0 have none.
    """
    whole = (position - 0.5).floor_().add_(0.5)
    fraction = position - whole
    return (3 - 2 * fraction).mul_(fraction).mul_(fraction).add_(whole)


def _shift_rows(images: Tensor, shift: Tensor, cubic: bool, fill: Tensor) -> Tensor:
    """Take pixel (x, y) from (x + shift, y), with shifts (B, 1, H or 1, 1)."""
    channels, height, width = images.shape[1:]
    x = torch.arange(width, dtype=torch.int16, device=images.device)
    first, end = ((edge - 0.5 - shift).ceil().to(torch.int16) for edge in (0, width))
    outside = torch.minimum(x - first, end - 1 - x).lt(0).to(torch.uint8) * 255
    whole, fraction = _floor_and_fraction(shift)
    # all taps are slices of one window
    taps = range(-1, 3) if cubic else range(2)
    columns = torch.arange(taps[0], width + taps[-1], device=images.device)
    columns = (columns + whole).clamp_(0, width - 1)
    window = images.gather(3, columns.expand(-1, channels, height, -1)).float()
    moved = _interpolate([window[..., tap : tap + width] for tap in range(len(taps))], fraction)
    return _as_bytes(moved, outside, fill)


def _pixel_centers(count: int, images: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.float64, device=images.device) + 0.5


def _floor_and_fraction(position: Tensor) -> tuple[Tensor, Tensor]:
    """Split numbers into the whole number below and the rest."""
    whole = position.floor()
    return whole.long(), (position - whole).float()


def _interpolate(taps: Sequence[Tensor], fraction: Tensor) -> Tensor:
    """Interpolate linearly between two values, or by cubics with a = -1 between the middle two of four."""
    if len(taps) == 2:
        return torch.lerp(taps[0], taps[1], fraction)
    before, first, second, after = taps
    rest = 1 - fraction
    # by differences, so that where all four are the same, so is the result, exactly
    straight = torch.lerp(first, second, fraction)
    return straight.addcmul_(first - before, rest * rest * fraction).addcmul_(
        second - after, fraction * fraction * rest
    )


def _as_bytes(values: Tensor, outside: Tensor, fill: Tensor) -> Tensor:
    """Round values down to bytes, and put `fill` where `outside` is 255 and not 0."""
    # by way of int16, which is several times as fast as a direct conversion; bitwise, which is faster than where()
    pixels = values.to(torch.int16).clamp_(0, 255).to(torch.uint8)
    return (pixels & ~outside) | (fill & outside)
