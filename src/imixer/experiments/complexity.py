"""Count the parameters and the multiply-adds of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from imixer.training.model import build_model, forward_cost
from imixer.training.run.config import TrainConfig
from imixer.training.tasks.segmentation import with_head


@dataclass(frozen=True)
class ModelComplexity:
    """Parameters and multiply-adds of a model.

    Args:
        parameters: Number of trainable parameters.
        multiply_adds: Multiply-adds of the forward pass of one image, with the normalisation baked in. None if they
            depend on the image.
        seeded_parameters: Name and shape of each parameter whose initial value depends on the seed. Trials of one seed
            begin with the same weights if and only if these are equal. BatchNorm's begin as ones and zeros.
    """

    parameters: int
    multiply_adds: int | None
    seeded_parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()


def model_complexity(config: TrainConfig, in_chans: int, num_classes: int) -> ModelComplexity:
    """Count the parameters and multiply-adds of a configuration's model, without making its weights.

    Args:
        config: The configuration, with a model's name.
        in_chans: Channels of the images.
        num_classes: Number of classes.

    Raises:
        InputError: If there is no such model.
    """
    described = f"{config.model} {config.data} {config.task} {config.segment}", in_chans, num_classes
    if described not in _COUNTED:
        _COUNTED[described] = _count(config, in_chans, num_classes)
    return _COUNTED[described]


_COUNTED: dict[tuple[str, int, int], ModelComplexity] = {}  # experiments have models in common


def _count(config: TrainConfig, in_chans: int, num_classes: int) -> ModelComplexity:
    with torch.device("meta"):
        built = build_model(config.model, config.data, native_size=None, in_chans=in_chans, num_classes=num_classes)
        if config.task == "segment":
            built = with_head(built, config)
    parameters = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    cost = forward_cost(built)
    return ModelComplexity(parameters, cost.total if cost else None, _seeded_parameters(built.model))


def _seeded_parameters(model: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (f"{name}.{own}", tuple(parameter.shape))
        for name, module in model.named_modules()
        if not isinstance(module, _BatchNorm)
        for own, parameter in module.named_parameters(recurse=False)
    )
