"""Crop, resize and flip as two matrix products per image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imixer.data.config import DataConfig
from imixer.data.device.transfer import chunks, to_device
from imixer.data.transforms import shifts

Size = tuple[int, int]

_ATTEMPTS = 10  # of torchvision and timm, before they take the centre


class CropParams(NamedTuple):
    """The box that each image of a batch is cut to, and the matrices that resize it; arrays of shape (B,).

    Args:
        top: First row of the box.
        left: First column of the box.
        width: Columns of the box.
        flip: Whether it is mirrored.
        rows: Number of the matrix that resizes columns of pixels.
        columns: Number of the matrix that resizes rows of pixels.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


class _Crop(ABC):
    """A crop of whole batches: cut, mirror and resize as drawn.

    Out = R x Q^T for each channel x of a box, moved to the corner. R and Q come out of two banks of matrices. Bytes are
    rounded after each product, as in Pillow. Results agree with Pillow's, but for ties: about one byte in a hundred is
    off by one. More of them are if torch multiplies in TF32; and where an image shrinks a lot in height, Pillow 13
    multiplies by R first, which rounds differently.

    Args:
        banks: Matrices (number, target, source) that resize height and width, `float64`.
        source: (height, width) of the images in pixels.
        hflip: Probability of mirroring.
        device: The device of the images.
    """

    def __init__(
        self,
        banks: tuple[NDArray[np.float64], NDArray[np.float64]],
        source: Size,
        hflip: float,
        device: torch.device,
    ) -> None:
        self.rows = torch.from_numpy(banks[0]).to(device, torch.float32)
        # stored transposed: it multiplies from the right
        self.columns = torch.from_numpy(banks[1].swapaxes(1, 2)).to(device, torch.float32).contiguous()
        self.source = source
        self.target = (self.rows.shape[1], self.columns.shape[2])
        self.hflip = hflip

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> CropParams:
        """Draw the params of `count` images."""

    def mirrored(self, params: CropParams, flip: NDArray[np.bool_]) -> CropParams:
        """Replace the decisions on mirroring (B,)."""
        return params._replace(flip=flip)

    def __call__(self, images: Tensor, params: CropParams, out: Tensor) -> None:
        """Crop a batch as drawn.

        Args:
            images: Bytes (B, C, *source).
            params: The boxes.
            out: Bytes (B, C, *target), which the result is written to.
        """
        device, (height, width) = images.device, self.source
        start = params.left + np.where(params.flip, params.width - 1, 0)
        step = np.where(params.flip, -1, 1)
        # pixels beyond the box have weight 0, so that any will do
        source_columns = to_device((start[:, None] + step[:, None] * np.arange(width)).clip(0, width - 1), device)
        source_rows = to_device((params.top[:, None] + np.arange(height)).clip(max=height - 1), device)
        row_numbers, column_numbers = to_device(params.rows, device), to_device(params.columns, device)
        for chunk in chunks(len(images), math.prod(out.shape[1:]), device):
            box = images[chunk]
            shape = count, channels, _, _ = box.shape
            box = box.gather(2, source_rows[chunk, None, :, None].expand(shape))
            box = box.gather(3, source_columns[chunk, None, None, :].expand(shape))
            with torch.autocast(device.type, enabled=False):
                wide = box.view(count, -1, width).float() @ self.columns.index_select(0, column_numbers[chunk])
                wide = wide.add_(0.5).floor_().clamp_(0, 255).view(count, channels, height, -1)
                full = self.rows.index_select(0, row_numbers[chunk]).unsqueeze(1) @ wide
            # by way of int16, which is several times as fast as a direct conversion
            out[chunk] = full.add_(0.5).to(torch.int16).clamp_(0, 255)


class ResizedCrop(_Crop):
    """A box of random area and aspect ratio, resized: timm's RandomResizedCropAndInterpolation.

    Args:
        config: Gives `scale`, `ratio`, `interpolation` and `hflip`.
        source: (height, width) of the images in pixels.
        target: (height, width) of the result in pixels.
        device: The device of the images.
    """

    def __init__(self, config: DataConfig, source: Size, target: Size, device: torch.device) -> None:
        filters = _filters(config.interpolation)
        rows, columns = (_box_bank(before, after, filters) for before, after in zip(source, target, strict=True))
        super().__init__((rows, columns), source, config.hflip, device)
        self.scale, self.ratio, self.filters = config.scale, config.ratio, len(filters)

    def draw(self, rng: np.random.Generator, count: int) -> CropParams:
        """Draw the params of `count` images."""
        height, width = self.source
        area = rng.uniform(*self.scale, (count, _ATTEMPTS)) * (height * width)
        aspect = np.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), (count, _ATTEMPTS)))
        # at least one pixel: images of a few pixels can round to none, which Pillow refuses
        box_width, box_height = (np.rint(np.sqrt(side)).clip(1) for side in (area * aspect, area / aspect))
        fits = (box_width <= width) & (box_height <= height)
        # an image whose boxes never fit takes the last entry, the centre
        chosen = np.where(fits.any(axis=1), fits.argmax(axis=1), _ATTEMPTS)
        middle_height, middle_width = self._center_box()
        image = np.arange(count)
        box_height = np.pad(box_height, ((0, 0), (0, 1)), constant_values=middle_height)[image, chosen].astype(int)
        box_width = np.pad(box_width, ((0, 0), (0, 1)), constant_values=middle_width)[image, chosen].astype(int)
        centred = chosen == _ATTEMPTS
        top = np.where(centred, (height - box_height) // 2, rng.integers(0, height - box_height + 1))
        left = np.where(centred, (width - box_width) // 2, rng.integers(0, width - box_width + 1))
        flip = rng.random(count) < self.hflip
        kind = rng.integers(self.filters, size=count)
        return CropParams(top, left, box_width, flip, kind * height + box_height - 1, kind * width + box_width - 1)

    def _center_box(self) -> Size:
        height, width = self.source
        low, high = min(self.ratio), max(self.ratio)
        if width / height < low:
            return round(width / low), width
        if width / height > high:
            return height, round(height * high)
        return height, width


class WindowCrop(_Crop):
    """A window of the resized image; beyond the image it is black, or shows the image's reflection.

    Args:
        resized: (height, width) to resize to, in pixels.
        starts: Possible first rows, and possible first columns, of the window; one is drawn.
        target: (height, width) of the window in pixels.
        filters: `bilinear`, `bicubic`; one is drawn.
        hflip: Probability of mirroring the window.
        source: (height, width) of the images in pixels.
        device: The device of the images.
        reflect: Whether to mirror the image at its edges, without repeating these.
    """

    def __init__(
        self,
        resized: Size,
        starts: tuple[range, range],
        target: Size,
        *,
        filters: tuple[str, ...],
        hflip: float,
        source: Size,
        device: torch.device,
        reflect: bool = False,
    ) -> None:
        self.starts, self.filters = starts, len(filters)
        # a mirrored window is a window of the mirrored image, counted from its other end
        mirrored = [resized[1] - target[1] - start for start in starts[1]]
        rows = _window_bank(source[0], resized[0], [*starts[0]], target[0], filters, reflect)
        columns = _window_bank(source[1], resized[1], [*starts[1], *mirrored], target[1], filters, reflect)
        super().__init__((rows, columns), source, hflip, device)

    def draw(self, rng: np.random.Generator, count: int) -> CropParams:
        """Draw the params of `count` images."""
        down, right = map(len, self.starts)
        row, column = rng.integers(down, size=count), rng.integers(right, size=count)
        flip = rng.random(count) < self.hflip
        kind = rng.integers(self.filters, size=count)
        corner = np.zeros(count, dtype=np.int64)
        columns = kind * 2 * right + flip * right + column
        return CropParams(corner, corner, np.full(count, self.source[1]), flip, kind * down + row, columns)

    def mirrored(self, params: CropParams, flip: NDArray[np.bool_]) -> CropParams:
        """Replace the decisions on mirroring (B,); the window stays the same."""
        turned = flip.astype(np.int64) - params.flip
        return params._replace(flip=flip, columns=params.columns + turned * len(self.starts[1]))


def training_crop(config: DataConfig, source: Size, target: Size, device: torch.device) -> ResizedCrop | WindowCrop:
    """Build the crop that `config.crop` names, from images of size `source` to `target`, both (height, width)."""
    if config.crop == "resized":
        return ResizedCrop(config, source, target, device)
    filters = _filters(config.interpolation)
    if config.crop == "center":
        resized = _covering(source, (int(target[0] / config.crop_pct), int(target[1] / config.crop_pct)))
        return _center_window(resized, target, filters, config.hflip, source, device)
    pads = shifts(config, target)
    starts = (range(-pads[0], pads[0] + 1), range(-pads[1], pads[1] + 1))
    return WindowCrop(
        target, starts, target, filters=filters, hflip=config.hflip, source=source, device=device,
        reflect=config.crop == "reflect",
    )  # fmt: skip


def validation_crop(config: DataConfig, source: Size, target: Size, device: torch.device) -> WindowCrop:
    """Build the crop that `eval_transform` makes: the share `config.crop_pct` of the centre."""
    whole = (math.floor(target[0] / config.crop_pct), math.floor(target[1] / config.crop_pct))
    if whole[0] == whole[1]:  # torchvision's Resize, which rounds down
        short = min(source)
        resized = (whole[0] * source[0] // short, whole[0] * source[1] // short)
    else:
        resized = _covering(source, whole)
    filters = ("bicubic",) if config.interpolation == "random" else (config.interpolation,)
    return _center_window(resized, target, filters, 0.0, source, device)


def _filters(interpolation: str) -> tuple[str, ...]:
    return ("bilinear", "bicubic") if interpolation == "random" else (interpolation,)


def _covering(source: Size, whole: Size) -> Size:
    """Compute the size of `source`, resized in proportion to cover `whole`."""
    ratio = min(source[0] / whole[0], source[1] / whole[1])
    return round(source[0] / ratio), round(source[1] / ratio)


def _center_window(
    resized: Size, target: Size, filters: tuple[str, ...], hflip: float, source: Size, device: torch.device
) -> WindowCrop:
    top, left = (round((before - after) / 2) for before, after in zip(resized, target, strict=True))
    starts = (range(top, top + 1), range(left, left + 1))
    return WindowCrop(resized, starts, target, filters=filters, hflip=hflip, source=source, device=device)


def _box_bank(source: int, target: int, filters: tuple[str, ...]) -> NDArray[np.float64]:
    """Compute resizing matrices for each filter and box length: (filters * source, target, source)."""
    bank = np.zeros((len(filters), source, target, source))
    for kind, name in enumerate(filters):
        for length in range(1, source + 1):
            bank[kind, length - 1, :, :length] = resampling(length, target, name)
    return bank.reshape(-1, target, source)


def _window_bank(
    source: int, resized: int, starts: list[int], target: int, filters: tuple[str, ...], reflect: bool
) -> NDArray[np.float64]:
    """Compute the matrices that resize an image and cut a window out, for each filter and start of a window."""
    bank = np.zeros((len(filters), len(starts), target, source))
    for kind, name in enumerate(filters):
        whole = resampling(source, resized, name)
        for number, start in enumerate(starts):
            if reflect:
                beyond = np.abs(np.arange(start, start + target))
                bank[kind, number] = whole[np.minimum(beyond, 2 * (resized - 1) - beyond)]
                continue
            inside = slice(max(start, 0), min(start + target, resized))
            bank[kind, number, inside.start - start : inside.stop - start] = whole[inside]
    return bank.reshape(-1, target, source)


_RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
_FRACTION_BITS = 22  # of Pillow's integer arithmetic on bytes


def resampling(source: int, target: int, interpolation: str) -> NDArray[np.float64]:
    """Compute the matrix of Pillow's antialiased resize of one axis.

    Args:
        source: Pixels before.
        target: Pixels after.
        interpolation: `bilinear`, or `bicubic` with a = -0.5. Both widen when the image shrinks.

    Returns:
        Weights (target, source) of each source pixel in each target pixel; rows sum to 1.
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
