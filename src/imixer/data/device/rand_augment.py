"""RandAugment in batches: timm's `rand-...` policies, drawn on the host for a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

from imixer.data.device import color, geometry
from imixer.data.device.transfer import chunks, to_device

_Floats: TypeAlias = NDArray[np.float64]
_ColorOperation: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_GeometricOperation: TypeAlias = Callable[..., Tensor]  # also `cubic` and `fill`
# from a level, which is magnitude / 10, and a random sign
_Argument: TypeAlias = Callable[[_Floats, _Floats], "_Floats | float"]


def _enhance(level: _Floats, sign: _Floats) -> _Floats:
    return level * 1.8 + 0.1


def _enhance_increasing(level: _Floats, sign: _Floats) -> _Floats:
    return np.maximum(0.1, 1 + sign * (level * 0.9))


# by timm's names
_COLOR_OPERATIONS: dict[str, tuple[_ColorOperation, _Argument]] = {
    "AutoContrast": (color.auto_contrast, lambda level, sign: 0),
    "Equalize": (color.equalize, lambda level, sign: 0),
    "Invert": (color.solarize, lambda level, sign: 0),
    "Solarize": (color.solarize, lambda level, sign: np.trunc(level * 256).clip(max=256)),
    "SolarizeIncreasing": (color.solarize, lambda level, sign: 256 - np.trunc(level * 256).clip(max=256)),
    "SolarizeAdd": (color.solarize_add, lambda level, sign: np.trunc(level * 110).clip(max=128)),
    "Posterize": (color.posterize, lambda level, sign: np.trunc(level * 4).clip(max=8)),
    "PosterizeIncreasing": (color.posterize, lambda level, sign: (4 - np.trunc(level * 4)).clip(min=0)),
    "Brightness": (color.brightness, _enhance),
    "BrightnessIncreasing": (color.brightness, _enhance_increasing),
    "Contrast": (color.contrast, _enhance),
    "ContrastIncreasing": (color.contrast, _enhance_increasing),
    "Color": (color.color, _enhance),
    "ColorIncreasing": (color.color, _enhance_increasing),
    "Sharpness": (color.sharpness, _enhance),
    "SharpnessIncreasing": (color.sharpness, _enhance_increasing),
}
_GEOMETRIC_OPERATIONS: dict[str, tuple[_GeometricOperation, _Argument]] = {
    "ShearX": (geometry.shear_x, lambda level, sign: sign * (level * 0.3)),
    "ShearY": (geometry.shear_y, lambda level, sign: sign * (level * 0.3)),
    "TranslateXRel": (geometry.translate_x, lambda level, sign: sign * (level * 0.45)),
    "TranslateYRel": (geometry.translate_y, lambda level, sign: sign * (level * 0.45)),
    "Rotate": (geometry.rotate, lambda level, sign: sign * (level * 30)),
}
KNOWN = frozenset({*_COLOR_OPERATIONS, *_GEOMETRIC_OPERATIONS})


class OperationParams(NamedTuple):
    """The operations on each image of a batch; arrays of shape (B, layers).

    Args:
        operation: Number of the operation, -1 for none.
        argument: Its argument.
    """

    operation: NDArray[np.int64]
    argument: _Floats


class RandAugment:
    """A few random operations on each image of a batch.

    Args:
        policy: timm's, whose settings it takes. Its operations must be `KNOWN`.
        channels: Channels of the images.
        device: The device of the images.
    """

    def __init__(self, policy: auto_augment.RandAugment, channels: int, device: torch.device) -> None:
        self.layers, self.weights = policy.num_layers, policy.choice_weights
        first = policy.ops[0]  # they differ in name only
        self.prob, self.magnitude, self.deviation = first.prob, first.magnitude, first.magnitude_std
        self.largest = first.magnitude_max or 10
        filters = first.kwargs["resample"]
        filters = filters if isinstance(filters, (list, tuple)) else (filters,)
        fill = torch.tensor(first.kwargs["fillcolor"][:channels], dtype=torch.uint8).view(1, -1, 1, 1).to(device)

        self.operations: list[_ColorOperation] = []
        self.arguments: list[_Argument] = []
        numbers = []  # of the operations, for each of timm's and each filter
        for name in (op.name for op in policy.ops):
            if name in _COLOR_OPERATIONS:
                color_operation, argument = _COLOR_OPERATIONS[name]
                numbers.append([len(self.operations)] * len(filters))
                self.operations.append(color_operation)
            else:
                geometric, argument = _GEOMETRIC_OPERATIONS[name]
                numbers.append([len(self.operations) + kind for kind in range(len(filters))])
                cubic = [filter_ == Image.Resampling.BICUBIC for filter_ in filters]
                self.operations += [partial(geometric, cubic=each, fill=fill) for each in cubic]
            self.arguments.append(argument)
        self.numbers = np.array(numbers)

    def draw(self, rng: np.random.Generator, count: int) -> OperationParams:
        """Draw the params of `count` images."""
        shape = (count, self.layers)
        count_timm, filters = self.numbers.shape
        if self.weights is None:
            chosen = rng.integers(count_timm, size=shape)
        else:  # without replacement, as timm does: the largest of weighted Gumbel variables
            scores = rng.gumbel(size=(count, count_timm)) + np.log(self.weights)
            chosen = np.argsort(-scores, axis=1)[:, : self.layers]
        applied = rng.random(shape) <= self.prob
        if self.deviation == np.inf:
            magnitude = rng.uniform(0, self.magnitude, shape)
        else:
            magnitude = rng.normal(self.magnitude, self.deviation, shape)
        level = magnitude.clip(0, self.largest) / 10
        sign = np.where(rng.random(shape) > 0.5, -1.0, 1.0)
        argument = np.zeros(shape)
        for number, of_level in enumerate(self.arguments):
            here = chosen == number
            argument[here] = of_level(level[here], sign[here])
        operation = self.numbers[chosen, rng.integers(filters, size=shape)]
        return OperationParams(np.where(applied, operation, -1), argument)

    def __call__(self, images: Tensor, params: OperationParams) -> None:
        """Change images (B, C, H, W), bytes, in place as drawn."""
        wide = _as_int64(images)
        for drawn, argument in zip(params.operation.T, params.argument.T, strict=True):
            for number, operation in enumerate(self.operations):
                chosen = np.flatnonzero(drawn == number)
                for chunk in chunks(len(chosen), images[0].numel(), images.device):
                    indices = to_device(chosen[chunk], images.device)
                    arguments = to_device(argument[chosen[chunk]], images.device).view(-1, 1, 1, 1)
                    changed = operation(images.index_select(0, indices), arguments)
                    wide.index_copy_(0, indices, _as_int64(changed.contiguous()))


def _as_int64(images: Tensor) -> Tensor:
    # a view of eight bytes at a time where they divide: index_copy_ goes value by value on a CPU
    flat = images.view(len(images), -1)
    return flat.view(torch.int64) if flat.shape[1] % 8 == 0 else flat
