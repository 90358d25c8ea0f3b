"""Refuse to evaluate a model whose weights or outputs are not finite, and count the inverses that are not found."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from imixer.errors import InputError
from imixer.models.inversion import unsolved_collected
from imixer.training.run.safetensors_file import place_of

_REMEDY = "nothing it gives is a result; take an earlier checkpoint, or train again"


def first_non_finite_tensor(state: dict[str, Tensor]) -> str | None:
    """Find the first parameter or buffer that is not finite, in the order of the model.

    Args:
        state: A state dict.

    Returns:
        In words, its block, its name and what it holds; None if all are finite.
    """
    for name, value in state.items():
        if value.is_floating_point() and not (finite := value.isfinite()).all():
            what = "NaN" if value.isnan().any() else "infinity"
            return f"{place_of(name)} on: {name} holds {what} ({int((~finite).sum()):,} of {value.numel():,} numbers)"
    return None


def require_finite_weights(model: nn.Module, path: object) -> None:
    """Check that all parameters and buffers of a model are finite.

    Args:
        model: The model.
        path: The place it comes from, for the message.

    Raises:
        InputError: If a tensor is not finite; the message names the first one.
    """
    if place := first_non_finite_tensor(model.state_dict()):
        raise InputError(f"the model of {path} is not finite, from {place}; {_REMEDY}")


def require_finite_logits(model: nn.Module, images: Tensor, logits: Tensor, path: object) -> None:
    """Check that logits are finite; if they are not, follow the images through the model.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W).
        logits: The logits of these images (B, num_classes).
        path: The place the model comes from, for the message.

    Raises:
        InputError: If a logit is not finite. The message says whether an image is not, or else from which part of the
            model on.
    """
    if not logits.isfinite().all():
        raise InputError(f"the model of {path} {_trouble(model, images)}")


def checked_logits(model: nn.Module, images: Tensor, path: object) -> tuple[Tensor, int]:
    """Compute the logits of images, and check that they are finite.

    Where an inverse is not found, the model goes on with what its solver came to.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W).
        path: The place the model comes from, for the message.

    Returns:
        The logits, and the number of images of which the inverse of a block was not found.

    Raises:
        InputError: If a logit is not finite, see `require_finite_logits`.
    """
    with unsolved_collected() as unsolved:
        logits: Tensor = model(images)
        require_finite_logits(model, images, logits, path)
    return logits, int(torch.stack(unsolved).any(0).sum()) if unsolved else 0


def unsolved_note(unsolved: int, total: int, what: str) -> str:
    """Say of how many images an inverse was not found, and what is to be done about it.

    Args:
        unsolved: The number of them.
        total: The number of all.
        what: What they are.
    """
    return (
        f"the inverse of a block was not found for {unsolved:,} of {total:,} {what}: their logits are of what the "
        "solver came to; a model trained with more model.max_steps, or a larger model.tolerance, finds more"
    )


@torch.no_grad()
def require_finite_outputs(model: nn.Module, images: Tensor, path: object) -> None:
    """Check that images and their logits are finite.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W).
        path: The place the model comes from, for the message.

    Raises:
        InputError: If a number is not finite. The message says whether an image is not, or else from which part of the
            model on.
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
        Its name, that of the innermost; None if all outputs are finite.
    """
    places: list[str] = []

    def look(name: str, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor) and not places and not output.isfinite().all():
            places.append(name)

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    try:
        model.forward(images)
    finally:
        for hook in hooks:
            hook.remove()
    return places[0] if places else None
