"""Activations of a trained iMixer's token mixing, block by block.

S: tokens, C: channels, D: D_S, width of x.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from imixer.errors import InputError
from imixer.implicit import Contraction
from imixer.models.imlp import IMLP


@dataclass(frozen=True)
class BlockActivations:
    """One block's iMLP, and what passed through it.

    Attributes:
        block: Number of the block, from 0.
        imlp: The iMLP.
        v: Its input (images, C, S).
        z: G(v), (images, C, D).
        x: What its solver found for (1 - F)^-1 G(v), (images, C, D).
    """

    block: int
    imlp: IMLP
    v: Tensor
    z: Tensor
    x: Tensor

    @property
    def F(self) -> Contraction:
        """The contraction."""
        assert self.imlp.contraction is not None
        return self.imlp.contraction

    def residual(self, dtype: torch.dtype) -> Tensor:
        """Compute x - G(v) - F(x), (images, C, D), which the solver leaves. F runs in the model's dtype."""
        return self.x.to(dtype) - self.z.to(dtype) - self.F(self.x, self.F.weights(), self.imlp.n_iter).to(dtype)


def implicit_layers(model: nn.Module) -> list[tuple[int, IMLP]]:
    """List the iMLPs of a model that have an inverse, each with the number of its block. None in other models."""
    backbone = getattr(model, "backbone", None)  # of a model with a head of its own
    model = getattr(backbone, "model", model)
    blocks = enumerate(model.blocks if isinstance(model, MlpMixer) else ())
    mixers = [(i, getattr(block, "mlp_tokens", None)) for i, block in blocks]
    return [(i, mlp) for i, mlp in mixers if isinstance(mlp, IMLP) and mlp.contraction is not None]


def require_implicit_layers(model: nn.Module, purpose: str) -> list[tuple[int, IMLP]]:
    """List the iMLPs that have an inverse, of which there must be some.

    Args:
        model: The model.
        purpose: What is wanted of it, a verb for the message, such as `draw`.

    Raises:
        InputError: If there is none.
    """
    layers = implicit_layers(model)
    if not layers:
        raise InputError(
            f"the model of this run is {_kind(model)}, whose blocks have no inverse: there is nothing to {purpose}; "
            "give a run of an iMixer with num_layers 3 or more"
        )
    return layers


@torch.no_grad()
def capture_activations(model: nn.Module, images: Tensor, purpose: str = "look at") -> list[BlockActivations]:
    """Follow images through an iMixer, as it computes.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W), normalised as the model expects.
        purpose: What is wanted of the model, a verb for the message.

    Returns:
        One entry per block that has an inverse.

    Raises:
        InputError: If the model has no inverse.
    """
    blocks = require_implicit_layers(model, purpose)
    seen: dict[tuple[int, str], Tensor] = {}

    def see(block: int, name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        seen[block, name] = args[0] if output is None else output

    hooks = []
    for i, imlp in blocks:
        hooks.append(imlp.register_forward_pre_hook(partial(see, i, "v")))
        hooks.append(imlp.fc_in.register_forward_hook(partial(see, i, "z")))
        hooks.append(imlp.act.register_forward_pre_hook(partial(see, i, "x")))
    try:
        model.forward(images)  # as a call, a compiled model would pass by the hooks
    finally:
        for hook in hooks:
            hook.remove()
    return [BlockActivations(i, imlp, *(seen[i, name] for name in ("v", "z", "x"))) for i, imlp in blocks]


def _kind(model: nn.Module) -> str:
    name = type(model).__name__
    return f"{'an' if name[0] in 'AEIOUi' else 'a'} {name}" + (
        " with num_layers 2" if any(isinstance(m, IMLP) for m in model.modules()) else ""
    )


def number_ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers of blocks in short, such as `0, 1, 3 to 6`: a model of stages has gaps.

    Args:
        numbers: The numbers.
    """
    starts = [number for place, number in enumerate(numbers) if place == 0 or numbers[place - 1] != number - 1]
    ends = [number for number in numbers if number + 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in pairs)
