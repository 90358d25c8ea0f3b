"""Where numbers stop being finite."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, images: Tensor, loss: Any) -> str | None:
    """Compute forward and backward once more and say where the first number that is not finite appears.

    Weights' gradients are left as they were.

    Args:
        model: Images -> logits.
        images: (B, C, H, W).
        loss: From logits to a scalar.

    Returns:
        The place in words, naming the module as the model does; None if everything is finite.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name}"
    if not torch.isfinite(images).all():
        return "the images"
    forward: list[str] = []
    backward: list[str] = []

    def look_back(name: str, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            backward.append(name)

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            if not torch.isfinite(output).all():
                forward.append(name)
            if output.requires_grad:
                output.register_hook(partial(look_back, name))

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    parameters = dict(model.named_parameters())
    try:
        value = loss(model.forward(images))
        if forward:
            return f"the output of {forward[0]}"
        if not torch.isfinite(value):
            return "the loss"
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    if backward:
        return f"the gradient of the output of {backward[0]}"
    for name, gradient in reversed(list(zip(parameters, gradients, strict=True))):
        if gradient is not None and not torch.isfinite(gradient).all():
            return f"the gradient of {name}"
    return None
