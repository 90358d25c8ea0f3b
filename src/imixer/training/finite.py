"""Refuse to measure a model whose numbers are no numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from imixer.errors import InputError
from imixer.training.run.finite_file import place_of

_REMEDY = "nothing it gives is a result; take an earlier checkpoint, or train again"


def first_non_finite_tensor(state: dict[str, Tensor]) -> str | None:
    """Find the first parameter or buffer that is not finite, in the order of the model.

    Args:
        state: A state dict.

    Returns:
        Its name, from which block on, and what it holds, in words; None if all is finite.
    """
    for name, value in state.items():
        if value.is_floating_point() and not (finite := value.isfinite()).all():
            what = "NaN" if value.isnan().any() else "infinity"
            return f"{place_of(name)} on: {name} holds {what} ({int((~finite).sum()):,} of {value.numel():,} numbers)"
    return None


def require_finite_weights(model: nn.Module, path: object) -> None:
    """See that all parameters and buffers of a model are finite.

    Args:
        model: The model.
        path: Where it comes from, for the message.

    Raises:
        InputError: If not; it names the first.
    """
    if found := first_non_finite_tensor(model.state_dict()):
        raise InputError(f"the model of {path} is not finite, from {found}; {_REMEDY}")


def require_finite_logits(model: nn.Module, images: Tensor, logits: Tensor, path: object) -> None:
    """See that what a model makes of images is finite; if not, follow them through it.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W).
        logits: What it made of them, (B, num_classes).
        path: Where it comes from, for the message.

    Raises:
        InputError: If not; it says whether the images are not, or from which part of the model on.
    """
    if not logits.isfinite().all():
        raise InputError(f"the model of {path} {_trouble(model, images)}")


@torch.no_grad()
def require_finite_outputs(model: nn.Module, images: Tensor, path: object) -> None:
    """See that images are finite and so is what a model makes of them.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W).
        path: Where it comes from, for the message.

    Raises:
        InputError: As `require_finite_logits`.
    """
    if not images.isfinite().all():
        raise InputError(f"the model of {path} {_trouble(model, images)}")
    require_finite_logits(model, images, model.forward(images), path)


def _trouble(model: nn.Module, images: Tensor) -> str:
    if not images.isfinite().all():
        bad = int((~images.isfinite().flatten(1).all(1)).sum())
        return f"was given {bad} of {len(images)} images that are not finite; mend or remove them"
    place = first_non_finite_output(model, images)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if place is None:
        return f"gives logits that are not finite; {_REMEDY}"
    return (
        f"is not finite, from {place_of(place)} on: the output of {place} exceeds {dtype} although all weights are "
        f"finite; {_REMEDY}"
    )


@torch.no_grad()
def first_non_finite_output(model: nn.Module, images: Tensor) -> str | None:
    """Find the first module whose output is not finite.

    Args:
        model: The model.
        images: (B, in_chans, H, W), finite.

    Returns:
        Its name, the innermost; None if all outputs are finite.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not found and not output.isfinite().all():
            found.append(name)

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    try:
        model.forward(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
