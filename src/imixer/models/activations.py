"""Activations by name, and how steep they are."""

import math
from collections.abc import Callable
from functools import partial

import torch.nn.functional as fn
from timm.layers import get_act_layer
from timm.layers.activations import GELUTanh
from torch import Tensor, nn

from imixer.implicit.lipschitz import GELU_SLOPE, GELU_TANH_SLOPE, activation_slope


class GELU1Lip(nn.Module):
    """GELU divided by its largest slope, so that its Lipschitz constant is 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute GELU(x) / 1.1289..., of the shape of x."""
        return fn.gelu(x) / GELU_SLOPE

    def lipschitz_bound(self) -> float:
        """Return 1."""
        return 1.0


ActLayer = str | Callable[[], nn.Module] | None
ActLayers = ActLayer | list[ActLayer] | tuple[ActLayer, ...]

# Each is the activation of the Lagrangian that has its name in `imixer.hopfield`.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_1lip": GELU1Lip,
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softmax": partial(nn.Softmax, dim=-1),
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activation(act_layer: ActLayer) -> Callable[[], nn.Module]:
    """Return what makes an activation: a class, or a function without arguments.

    Args:
        act_layer: Such a thing, returned as it is, or a name: one of `ACTIVATIONS`, else timm's; None for the identity.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(act_layer, str) and act_layer.lower() in ACTIVATIONS:
        return ACTIVATIONS[act_layer.lower()]
    try:
        return get_act_layer(act_layer) or nn.Identity
    except KeyError as error:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"act_layer is {act_layer!r}; choose {known}, or another name that timm knows") from error


def lipschitz_constant(act: nn.Module) -> float:
    """Return the largest slope of an activation, in absolute value; of softmax, the largest norm of its Jacobian.

    Raises:
        ValueError: If it is not known and the module does not state it in a method `lipschitz_bound()`, or not finite.
    """
    slope = GELU_TANH_SLOPE if isinstance(act, GELUTanh) else activation_slope(act)
    if slope is None:
        raise ValueError(f"the largest slope of {type(act).__name__} is not known here")
    return slope


def slope_or_infinity(act: nn.Module) -> float:
    """Return `lipschitz_constant`, or infinity where it is not known."""
    try:
        return lipschitz_constant(act)
    except ValueError:
        return math.inf
