"""Build the model that a configuration names for the data at hand, and count what it costs."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field
from typing import Any, cast

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import PretrainedCfg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageSet
from imixer.errors import InputError, did_you_mean, in_short
from imixer.implicit import fold
from imixer.models import IMLP, IMixer  # which registers our models with timm
from imixer.models.timm_tags import find_pretrained_cfg, other_tags
from imixer.models.variants import packaged_args
from imixer.progress import announce
from imixer.training.devices import is_first_process
from imixer.training.initial_weights import FROM_DATA, find_start, normalisation
from imixer.training.run.config import ModelConfig, TrainConfig
from imixer.writing import json_text

Size = tuple[int, int]
_FLOAT = 4  # bytes
_FREE_ON_RESUME = ("max_steps", "on_failure")
FORWARDS_PER_STEP = 3  # what forward and backward of an image cost, in forward passes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltModel:
    """A model, and how to build it again.

    Args:
        model: The model.
        name: The name of the model in timm.
        args: The keyword arguments of `timm.create_model`.
        input_size: The size (in_chans, height, width) of its input.
        preparation: The preparation of images that the weights to start from were trained with, in timm's words, such
            as `mean`. Empty for random weights, and for those that do not say.
    """

    model: nn.Module
    name: str
    args: dict[str, Any]
    input_size: tuple[int, int, int]
    preparation: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name to call it by: that of the backbone, if it has a head of its own."""
        return str(self.args.get("backbone", self.name))

    @property
    def model_args(self) -> dict[str, Any]:
        """The arguments of the model itself: those of the backbone, if it has a head of its own."""
        args: dict[str, Any] = self.args.get("backbone_args", self.args)
        return args

    @property
    def identity(self) -> str:
        """What must not change between a run's sessions: the model without its weights, and how images are prepared."""
        whole = {"name": self.name, "args": _without_free(self.args), "preparation": _sorted(self.preparation)}
        return json_text(whole, non_finite="null", indent=None, default=str)


def _without_free(args: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in _sorted(args).items() if name not in _FREE_ON_RESUME}
    return kept | {"backbone_args": _without_free(kept["backbone_args"])} if "backbone_args" in kept else kept


def _sorted(values: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


def default_name(size: Size | None) -> str:
    """Choose the iMixer for images of a size.

    Args:
        size: Height and width in pixels. None, for images of many sizes, gives the largest iMixer.
    """
    if size is not None and max(size) <= 8:
        return "imixer_t2_8"
    return "imixer_t4_32" if size is not None and max(size) < 64 else "imixer_s16_224"


def build_model(
    config: ModelConfig, data: DataConfig, *, native_size: Size | None, in_chans: int, num_classes: int
) -> BuiltModel:
    """Build the model that a configuration names, for the data at hand.

    Args:
        config: The configuration of the model.
        data: The configuration of the data, whose `image_size` goes before that of the weights to start from, and this
            before the model's own.
        native_size: The size (height, width) of the images as stored, if they share one.
        in_chans: The number of channels of the images.
        num_classes: The number of classes.

    Raises:
        InputError: If there is no such model, it does not have an option, it would not fit into memory, its patches do
            not tile the image, or the weights to start from cannot be had.
    """
    wanted = (data.image_size,) * 2 if isinstance(data.image_size, int) else data.image_size
    start = find_start(config)
    name = config.name or start.name or default_name(wanted or native_size)
    cfg = _pretrained_cfg(name)
    size: Size = wanted or start.img_size or (cfg.input_size[-2], cfg.input_size[-1])
    if config.patch_size is not None:
        _check_tiling(name, size, (config.patch_size, config.patch_size))
    options = config.overrides()
    if name == start.name:
        options = start.args | options
    if clash := sorted(FROM_DATA & set(options)):
        raise InputError(f"model.kwargs.{clash[0]} follows from the data; leave it out (data.image_size sets the size)")
    architecture, _, tag = name.partition(".")
    args = {**packaged_args(architecture, tag), "in_chans": in_chans, "num_classes": num_classes, **options}
    if cfg.fixed_input_size:  # others take any size and no such argument
        args["img_size"] = size[0] if size[0] == size[1] else list(size)
    require_memory(name, args)
    model = _create(name, args, options)
    for module in model.modules():
        if isinstance(module, PatchEmbed) and not getattr(module, "dynamic_img_pad", False):
            _check_tiling(name, size, module.patch_size)
    if isinstance(model, IMixer) and not any(isinstance(module, IMLP) for module in model.modules()):
        raise InputError(
            f"model.num_blocks leaves {name} no block, and so no inverse; give at least one, or a mixer_* as model.name"
        )
    if config.pretrained:
        model = _create_pretrained(name, args)
    report = start.load_into(model)
    if report and is_first_process():
        _log.info(report)
    preparation = normalisation(cast(Any, model).pretrained_cfg) if config.pretrained else start.preparation
    return BuiltModel(model, name, args, (in_chans, *size), preparation)


def build_model_for(config: TrainConfig, data: ImageSet) -> BuiltModel:
    """Build the model that a configuration names, for a data set: `build_model` with the numbers of the images.

    Args:
        config: The run's configuration.
        data: The data set.

    Raises:
        InputError: As of `build_model`.
    """
    return build_model(
        config.model,
        config.data,
        native_size=data.native_size,
        in_chans=data.in_chans,
        num_classes=len(data.class_names),
    )


def enable_grad_checkpointing(built: BuiltModel) -> None:
    """Let a model keep the inputs of blocks only, and compute the rest again in the backward pass.

    Args:
        built: The model.

    Raises:
        InputError: If the model cannot.
    """
    model: Any = built.model
    try:
        model.set_grad_checkpointing()
    except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
        raise InputError(f"grad_checkpointing is true, and {built.title} cannot; leave it out") from error


def require_memory_for_batch(input_size: tuple[int, int, int], images: int) -> None:
    """Check that the images of a batch fit into memory.

    Args:
        input_size: The size (in_chans, height, width) of an image.
        images: The number of images of one forward pass.

    Raises:
        InputError: If they do not fit.
    """
    memory, needed = _memory(), images * math.prod(input_size) * _FLOAT
    if memory is not None and needed > memory:
        raise InputError(
            f"{images:,} images of {input_size[1]}x{input_size[2]} take {needed / 1e9:,.0f} GB of the "
            f"{memory / 1e9:,.0f} GB that this machine has; lower data.batch_size or "
            "data.image_size, or raise accumulate"
        )


def require_memory(name: str, args: dict[str, Any]) -> None:
    """Check that the weights of a model fit into memory, before any is taken: the system might end the process instead.

    Args:
        name: The name of the model in timm.
        args: The keyword arguments of `timm.create_model`.

    Raises:
        InputError: If they do not fit.
    """
    memory = _memory()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            parameters = sum(p.numel() for p in timm.create_model(name, **args).parameters())
    except (AssertionError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return  # it needs numbers to be built, or cannot be built at all, which is said when it is
    if memory is not None and parameters * _FLOAT > memory:
        raise InputError(
            f"{name} would have {parameters:,} parameters, which take {parameters * _FLOAT / 1e9:,.0f} GB of the "
            f"{memory / 1e9:,.0f} GB that this machine has; take a smaller model, or larger patches"
        )


def _memory() -> int | None:
    """Return the bytes of this machine's memory; None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


@dataclass(frozen=True)
class ForwardCost:
    """The cost of one image's forward pass in multiply-adds, with the normalisation of spectral norms folded in.

    Args:
        total: All multiply-adds.
        convolutions: Those in convolutions, which are in the stem and between stages.
    """

    total: int
    convolutions: int


def forward_cost(built: BuiltModel) -> ForwardCost | None:
    """Count the multiply-adds of one image's forward pass, with the normalisation of spectral norms folded in.

    The model is built once more without weights, and no random number is drawn.

    Args:
        built: The model.

    Returns:
        The cost; None if it depends on the image, or the model cannot be built without weights.
    """
    if getattr(built.model, "solver", "fixed") != "fixed":
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = fold(timm.create_model(built.name, **built.args))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *built.input_size, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # of models that need numbers to be built or run
        return None
    by_kind: Any = counter.get_flop_counts()["Global"]
    convolutions = sum(flops for kind, flops in by_kind.items() if "conv" in str(kind))
    return ForwardCost(sum(by_kind.values()) // 2, convolutions // 2)


def require_trainable(built: BuiltModel, images: int) -> None:
    """Check that a model can be trained on so many images at once, by a forward pass without weights.

    Args:
        built: The model, none of whose parts is frozen.
        images: Images of a forward pass.

    Raises:
        InputError: If an image is too small for it, or a batch norm would see a single number of each channel.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = timm.create_model(built.name, **built.args)
        with torch.no_grad():
            model.train()(torch.empty(images, *built.input_size, device="meta"))
    except (RuntimeError, TypeError, ValueError) as error:  # also of models that need numbers to be built or run
        height, width = built.input_size[1:]
        if "more than 1 value per channel" in str(error):
            raise InputError(
                f"{built.title} has batch norms, and {images} image of {height}x{width} at once leaves one of them a "
                "single number to normalise; raise data.batch_size, lower accumulate, or raise data.image_size"
            ) from error
        if any(sign in str(error) for sign in ("Output size is too small", "Kernel size can't be greater")):
            raise InputError(
                f"{built.title} leaves nothing of an image of {height}x{width}; raise data.image_size, or give another "
                "model.name"
            ) from error


def _pretrained_cfg(name: str) -> PretrainedCfg:
    """Return timm's configuration of a model, and refuse a name that it does not know."""
    if ":" in name:
        raise InputError(
            f"model.name is {name!r}; give {name.removeprefix('local-dir:')} as model.checkpoint, which says what "
            "architecture it is of"
        )
    if not timm.is_model(name.partition(".")[0]):
        meant = (
            did_you_mean(name, timm.list_models()) or "; give one that timm.list_models() names, such as imixer_s16_224"
        )
        raise InputError(f"no model {name!r}{meant}")
    cfg = find_pretrained_cfg(name)
    if cfg is None:
        raise InputError(f"timm has no configuration for {name!r}{other_tags(name)}")
    return cfg


def _check_tiling(name: str, size: Size, patch: Size) -> None:
    if min(patch) < 1 or any(side % p for side, p in zip(size, patch, strict=True)):
        raise InputError(
            f"{name} cuts patches of {patch[0]}x{patch[1]} pixels, which do not tile an image of {size[0]}x{size[1]}; "
            "set data.image_size or model.patch_size"
        )


def _create(name: str, args: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **args)
    except TypeError as error:
        for option in options:
            if f"'{option}'" in str(error):
                raise InputError(f"{name} has no option model.{option}") from error
        raise InputError(f"{name} cannot be built with {_listed(options)}: {error}") from error
    except (AssertionError, ArithmeticError, LookupError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built with {_listed(options)}: {error}") from error


def _create_pretrained(name: str, args: dict[str, Any]) -> nn.Module:
    announce(f"loading the pretrained weights of {name}")
    try:
        return timm.create_model(name, pretrained=True, **args)
    except InputError as error:
        raise InputError(f"model.pretrained: {error}") from error
    except Exception as error:  # the hub client, the network and timm each raise their own
        raise InputError(
            f"model.pretrained: no weights for {name} could be had; give a file as "
            f"model.checkpoint, or leave it out ({in_short(error, 120)})"
        ) from error


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"model.{key} {value}" for key, value in options.items()) or "the given data"
