"""Feature maps for dense tasks: any blocks, any strides, any image size.

B: images, C: channels, H, W: height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models._features import FeatureGetterNet
from torch import Tensor

from imixer.models.mixer import Mixer

_LEVELS = 4  # of a pyramid that nobody asked for otherwise
_FINEST = 4  # its first stride: what heads of segmentation and detection are made for


class DenseFeatures(FeatureGetterNet):
    """Give feature maps (B, C, H / stride, W / stride) of a Mixer, one for each chosen level.

    Choose it by `timm.create_model(name, features_only=True)`, for heads of segmentation, detection and anomaly
    detection. A level is a block, or a stage of a model with stages. Without `out_indices` and `out_strides`, a model
    without stages gives four blocks, evenly spread, with the strides 4, 8, 16, 32 (from its patch on if that is
    smaller): what heads expect of a pyramid. With `out_indices` alone, maps have the stride of their level.

    Args:
        model: The Mixer.
        out_indices: Levels, negative ones from the end, or the number of the last ones. With `out_strides`, which of
            its entries.
        out_strides: Stride of each map in pixels, for levels that are evenly spread; or strides by level. Maps are
            averaged to larger strides, and interpolated to smaller ones.
        norm: Apply the model's last norm to every map.
        kwargs: Further arguments of timm's `FeatureGetterNet`.

    Raises:
        ValueError: If a stride is below 1, there are more strides than levels, they fall, or maps of strides are wanted
            as NLC.

    Source: the pyramid of maps of one stride: Li et al., Exploring plain vision transformer backbones for object
        detection, arXiv 2203.16527, section 3, with interpolation in the place of its convolutions.
    """

    def __init__(
        self,
        model: Mixer,
        out_indices: int | Sequence[int] | None = None,
        out_strides: Sequence[int] | Mapping[int, int] | None = None,
        norm: bool = False,
        **kwargs: Any,
    ) -> None:
        own: list[Any] = list(model.feature_info)
        spread: dict[int, int] | None = None
        if out_strides is not None:
            spread = _levels(out_strides, len(own))
            chosen = _choose(out_indices, len(spread))
            levels = [list(spread)[place] for place in chosen]
            model.feature_info = [{**own[level], "reduction": stride} for level, stride in spread.items()]
        elif out_indices is None and len({info["reduction"] for info in own}) == 1 and len(own) > 1:
            strides = [min(_FINEST, own[0]["reduction"]) << i for i in range(min(_LEVELS, len(own)))]
            spread = _levels(strides, len(own))
            chosen = levels = list(spread)
            model.feature_info = [
                {**info, "reduction": next(s for level, s in spread.items() if level >= i)}
                for i, info in enumerate(own)
            ]
        else:
            chosen = levels = _choose(len(own) if out_indices is None else out_indices, len(own))
        super().__init__(model, tuple(levels), norm=norm, **kwargs)
        if spread is not None and self.output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {self.output_fmt.value}, and maps of other strides are images; give NCHW")
        self.feature_info = self.feature_info.from_other(tuple(chosen))
        self.own_strides: list[int] = [own[level]["reduction"] for level in levels]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the inputs of blocks only, and compute the rest again in the backward pass."""
        model: Any = self.model
        model.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn images (B, in_chans, H, W) into maps (B, C, H / stride, W / stride), rounded up."""
        height, width = x.shape[-2:]
        strides: Any = self.feature_info.reduction()
        maps = []
        for y, own, stride in zip(super().forward(x), self.own_strides, strides, strict=True):
            if self.output_fmt == "NCHW":
                y = y[..., : -(-height // own), : -(-width // own)]  # what lies beyond is padding
                y = _resized(y, (-(-height // stride), -(-width // stride)))
            maps.append(y)
        return maps


def _levels(strides: Sequence[int] | Mapping[int, int], count: int) -> dict[int, int]:
    """Return the stride of each level, by its number from 0."""
    if isinstance(strides, Mapping):
        pairs = sorted((_choose([level], count)[0], stride) for level, stride in strides.items())
    else:
        if not 0 < len(strides) <= count:
            raise ValueError(
                f"out_strides has {len(strides)} entries; give one or more, at most {count} for this model"
            )
        pairs = [((i + 1) * count // len(strides) - 1, stride) for i, stride in enumerate(strides)]
    values = [stride for _, stride in pairs]
    if not pairs or min(values) < 1 or values != sorted(values):
        raise ValueError(f"out_strides is {strides}; give strides of 1 or more that do not fall from level to level")
    return dict(pairs)


def _choose(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Return numbers from 0 of levels."""
    if isinstance(indices, int):
        indices = range(-indices, 0)
    chosen = list(range(count) if indices is None else indices)
    if not chosen or not all(-count <= i < count for i in chosen):
        raise ValueError(f"out_indices is {chosen}; this model has {count} levels, give some from 0 to {count - 1}")
    return [i % count for i in chosen]


def _resized(y: Tensor, size: tuple[int, int]) -> Tensor:
    if y.shape[-2:] == size:
        return y
    if size[0] < y.shape[-2] or size[1] < y.shape[-1]:
        return F.adaptive_avg_pool2d(y, size)
    return F.interpolate(y, size=size, mode="bilinear", align_corners=False)
