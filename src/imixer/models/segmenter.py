"""A classifier of every pixel: a head of our own on the features of any timm model.

K: classes; r: reduction, the side in pixels of what one feature sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

import imixer.models.unet
import imixer.models.variants  # noqa: F401  (registers our models with timm)
from imixer.implicit.solvers import Solver
from imixer.inverse_options import SolverName

HeadName = Literal["linear", "multilevel"]
_FINEST = 4  # pixels along a side that one feature tells apart; what is coarser is interpolated
_MOST_LEVELS = 4


class Segmenter(nn.Module):
    """A backbone of timm with a head that gives the logits of each pixel.

    `linear` reads the last features alone: choose it to see what a backbone knows. `multilevel` adds features of up to
    four depths, each by a linear map of its own: choose it for the best masks.

    Both end in one linear map from a feature to the logits of the pixels that it stands for, r x r of them, up to 4 x
    4. Where r is larger, the rest is interpolated.

    Args:
        backbone: Name of a timm model.
        backbone_args: Keyword arguments of `timm.create_model` for it.
        head: `linear` or `multilevel`.
        head_dim: Channels in which `multilevel` adds its levels. Default: those of the first of them.
        levels: Indices of the features, as timm's `out_indices`. Default: the last for `linear`; for `multilevel` the
            last of each reduction, or where all are the same, up to four evenly spread over the depth.
        num_classes: Number of classes K.
        in_chans: Channels of the images.
        img_size: Image size, for backbones that are built for one.
        pretrained_backbone: Start the backbone from the weights that timm knows for it.

    Attributes:
        backbone: The model that gives the features.
        levels: The indices of the features.

    Raises:
        ValueError: If the backbone has no features of these indices.
    """

    def __init__(
        self,
        backbone: str,
        backbone_args: Mapping[str, Any] | None = None,
        head: HeadName = "multilevel",
        head_dim: int | None = None,
        levels: Sequence[int] | None = None,
        num_classes: int = 21,
        in_chans: int = 3,
        img_size: int | Sequence[int] | None = None,
        pretrained_backbone: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        args = dict(backbone_args or {}) | {"in_chans": in_chans}
        if img_size is not None:
            args["img_size"] = img_size
        self.levels = tuple(levels) if levels else default_levels(backbone, args, head)
        self.num_classes, self.head_name = num_classes, head
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained_backbone, features_only=True, out_indices=self.levels, **args
        )
        info: Any = self.backbone.feature_info
        channels, reductions = info.channels(), info.reduction()
        self.num_features = head_dim or (channels[0] if head == "multilevel" else channels[-1])
        if head == "linear":
            channels, reductions = channels[-1:], reductions[-1:]
        self.norms = nn.ModuleList(LayerNorm2d(count) for count in channels)
        self.projections = nn.ModuleList()
        if head == "multilevel":
            self.projections.extend(nn.Conv2d(count, self.num_features, 1) for count in channels)
            self.norm = LayerNorm2d(self.num_features)
        self.fine = min(_FINEST, int(min(reductions)))
        self.head = nn.Conv2d(self.num_features, num_classes * self.fine**2, 1)

    @property
    def solver(self) -> SolverName | Solver:
        """How the backbone solves its inverses; `fixed` if it has none."""
        solver: SolverName | Solver = getattr(getattr(self.backbone, "model", None), "solver", "fixed")
        return solver

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, K, H, W) of images (B, in_chans, H, W)."""
        taken = self.backbone(x)[-len(self.norms) :]
        features = [norm(level) for norm, level in zip(self.norms, taken, strict=True)]
        y = self._sum_levels(features) if self.head_name == "multilevel" else features[0]
        logits = F.pixel_shuffle(self.head(y), self.fine)
        if logits.shape[-2:] == x.shape[-2:]:
            return logits
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)

    def _sum_levels(self, features: Sequence[Tensor]) -> Tensor:
        """Add the levels at the size of the finest, and pass the sum through norm and GELU."""
        total: Tensor | None = None
        size = max((level.shape[-2:] for level in features), key=lambda sides: sides[0])
        for project, level in zip(self.projections, features, strict=True):
            here = project(level)
            if here.shape[-2:] != size:
                here = F.interpolate(here, size=size, mode="bilinear", align_corners=False)
            total = here if total is None else total + here
        return F.gelu(self.norm(total))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters exempt from weight decay."""
        inner: Any = getattr(self.backbone, "no_weight_decay", None)
        return {f"backbone.{name}" for name in inner()} if callable(inner) else set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the features in the backward pass instead of keeping them."""
        model: Any = self.backbone
        model.set_grad_checkpointing(enable)


def default_levels(backbone: str, args: Mapping[str, Any], head: HeadName) -> tuple[int, ...]:
    """Choose the features that a head reads.

    Args:
        backbone: Name of a timm model.
        args: Its keyword arguments.
        head: `linear` or `multilevel`.

    Returns:
        Indices of features, as timm's `out_indices`.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        info: Any = timm.create_model(backbone, **args).feature_info
    count = len(info)
    if head == "linear":
        return (count - 1,)
    reductions = [each["reduction"] for each in info]
    last_of_each = [i for i in range(count) if i + 1 == count or reductions[i + 1] != reductions[i]]
    if len(last_of_each) > 1:
        return tuple(last_of_each[-_MOST_LEVELS:])
    taken = min(_MOST_LEVELS, count)
    return tuple(((i + 1) * count - 1) // taken for i in range(taken))


default_cfgs = generate_default_cfgs(
    {
        "segmenter.untrained*": PretrainedCfg(
            num_classes=21,
            input_size=(3, 224, 224),
            pool_size=None,
            fixed_input_size=False,
            first_conv=None,
            classifier="head",
            license="apache-2.0",
        )
    }
)


@register_model
def segmenter(pretrained: bool = False, **kwargs: Any) -> Segmenter:
    """Build a `Segmenter`: a head that classifies every pixel, on the model that `backbone` names."""
    model: Segmenter = build_model_with_cfg(Segmenter, "segmenter", pretrained, **kwargs)
    return model
