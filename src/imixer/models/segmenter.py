"""A classifier of every pixel: a head of our own on the features of any timm model.

K: classes; r: reduction, the side in pixels of what one feature sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    group_parameters,
    register_model,
)
from timm.models._features import FeatureGetterNet, FeatureHookNet
from timm.optim._param_groups import auto_group_layers
from torch import Tensor, nn

import imixer.models.unet
import imixer.models.variants  # noqa: F401  (registers our models with timm)
from imixer.errors import check_options, did_you_mean
from imixer.implicit.solvers import Solver
from imixer.inverse_options import SolverName

HeadName = Literal["linear", "multilevel"]
_FINEST = 4  # pixels along a side that one feature tells apart; what is coarser is interpolated
_MOST_LEVELS = 4
_OPTIONS = ("backbone", "backbone_args", "head", "head_dim", "levels", "num_classes", "in_chans", "img_size",
            "pretrained_backbone")  # fmt: skip


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
        levels: Indices of the features, as timm's `out_indices`, of which `linear` reads the last. Default: for
            `linear` the one that is computed last; for `multilevel` the last of each reduction, or where all are the
            same, up to four evenly spread over the depth.
        num_classes: Number of classes K.
        in_chans: Channels of the images.
        img_size: Image size, for backbones that are built for one.
        pretrained_backbone: Start the backbone from the weights that timm knows for it.

    Attributes:
        backbone: The model that gives the features.
        levels: The indices of the features.

    Raises:
        ValueError: If the backbone has no features of these indices or no maps, the indices do not rise, or an option
            or the head is unknown.
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
        **others: Any,
    ) -> None:
        check_options("Segmenter", others, _OPTIONS)
        if head not in get_args(HeadName):
            hint = did_you_mean(str(head), get_args(HeadName), 1)
            raise ValueError(f"head is {head!r}; choose {' or '.join(get_args(HeadName))}{hint}")
        super().__init__()
        args = dict(backbone_args or {}) | {"in_chans": in_chans}
        if img_size is not None:
            args["img_size"] = img_size
        self._backbone_name, self._backbone_args = backbone, args
        self.levels = default_levels(backbone, args, head) if levels is None else _rising(levels, backbone, args)
        if head == "linear":  # what only others need is not computed
            self.levels = self.levels[-1:]
        self.num_classes, self.in_chans, self.head_name = num_classes, in_chans, head
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained_backbone, features_only=True, out_indices=self.levels, **args
        )
        layout = str(getattr(self.backbone, "output_fmt", None) or "NCHW").rpartition(".")[2]
        if layout not in ("NCHW", "NHWC"):
            raise ValueError(f"{backbone} gives features as {layout}, which are no maps; give another backbone")
        self._channels_last = layout == "NHWC"
        info: Any = self.backbone.feature_info
        channels, reductions = info.channels(), info.reduction()
        self.num_features = channels[0] if head == "linear" or head_dim is None else head_dim
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
        taken = self.backbone(x)
        if self._channels_last:  # (B, H, W, C)
            taken = [level.permute(0, 3, 1, 2) for level in taken]
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
        """Return the names of parameters exempt from weight decay: those that the backbone's model exempts."""
        exempt: Any = getattr(self._whole_model(), "no_weight_decay", set)()
        names = self._original_names().items()
        return {name for name, original in names if any(fnmatch(original, pattern) for pattern in exempt)}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float]]:
        """Return a function from the name of a parameter to its place in depth, as timm's models do.

        The backbone's parameters have the places that its model gives them, and the head's come last.

        Args:
            coarse: Group by stages, where the backbone's model has some.
        """
        whole: Any = self._whole_model()
        if hasattr(whole, "group_matcher"):
            places: dict[str, int] = group_parameters(whole, whole.group_matcher(coarse=coarse), reverse=True)
        else:
            places = auto_group_layers(whole)  # what timm takes for a model that does not tell
        by_name = {name: float(places[original]) for name, original in self._original_names().items()}
        return lambda name: (by_name.get(name, math.inf),)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the features in the backward pass instead of keeping them.

        Raises:
            AttributeError: If the backbone cannot; some models of timm raise AssertionError.
        """
        wrapped = self._wrapped_model()
        model: Any = self.backbone if wrapped is None else wrapped
        model.set_grad_checkpointing(enable)

    def _wrapped_model(self) -> nn.Module | None:
        """Return the model that gives the features, if timm has wrapped and not cut it."""
        if isinstance(self.backbone, (FeatureGetterNet, FeatureHookNet)):
            parts: dict[str, nn.Module] = dict(self.backbone.named_children())
            return parts.get("model", parts.get("body"))
        return None

    def _whole_model(self) -> nn.Module:
        """Return the model that gives the features; if timm has cut it, one like it."""
        wrapped = self._wrapped_model()
        return self._rebuilt if wrapped is None else wrapped

    @cached_property
    def _rebuilt(self) -> nn.Module:
        return _alike(self._backbone_name, self._backbone_args)

    def _original_names(self) -> dict[str, str]:
        """Return the name that each parameter of the backbone has in its model, by its name here."""
        original = names_among_features(name for name, _ in self._whole_model().named_parameters())
        own = [name for name, _ in self.backbone.named_parameters()]
        return {f"backbone.{name}": original[name] for name in own if name in original}


def _alike(name: str, args: Mapping[str, Any]) -> nn.Module:
    """Build a model for what it is made of, without numbers where it needs none."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return timm.create_model(name, **args)
        except (NotImplementedError, RuntimeError):  # of models that look at their numbers
            return timm.create_model(name, **args)


def names_among_features(names: Iterable[str]) -> dict[str, str]:
    """Return the names of a model's tensors by those that they may have in what timm makes of it to give features.

    Args:
        names: The names in the model, such as `stages.0.norm.weight`.

    Returns:
        The same names, by themselves, and by `model.stages...`, `body.stages...` and `stages_0...`.
    """
    originals: dict[str, str] = {}
    for name in names:
        first, _, rest = name.partition(".")
        for here in (name, f"model.{name}", f"body.{name}", f"{first}_{rest}"):
            originals.setdefault(here, name)
        originals[name] = name
    return originals


def _rising(levels: Sequence[int], backbone: str, args: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the indices of features, which must rise: timm gives features in the order of computing."""
    whole: Any = _alike(backbone, args)
    places = [level + len(whole.feature_info) if level < 0 else level for level in levels]
    if not places or any(one >= other for one, other in pairwise(places)):
        raise ValueError(f"levels is {list(levels)}; give one or more, each once, from the first to the last")
    return tuple(levels)


def default_levels(backbone: str, args: Mapping[str, Any], head: HeadName) -> tuple[int, ...]:
    """Choose the features that a head reads.

    Args:
        backbone: Name of a timm model.
        args: Its keyword arguments.
        head: `linear` or `multilevel`.

    Returns:
        Indices of features, as timm's `out_indices`.
    """
    whole: Any = _alike(backbone, args)
    info = whole.feature_info
    count = len(info)
    if head == "linear":
        return (getattr(whole, "last_level", count - 1),)
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
