"""What several Lagrangians share: an inverse temperature, and axes counted from the end."""

import math

import torch
from torch import Tensor, nn

from imixer.hopfield.lagrangian import Lagrangian


class Tempered(Lagrangian):
    """A Lagrangian L(beta x) / beta, whose activation is g(beta x). Subclasses give density and activation.

    `convex` and `lipschitz` are read off the present beta. Nothing keeps training from taking a learnable one to 0,
    where L is undefined, or below, where L is concave.

    Args:
        beta: Inverse temperature at the start. Positive.
        learnable: Make beta an `nn.Parameter`.

    Attributes:
        max_slope: Lipschitz constant at beta = 1.

    Raises:
        ValueError: If beta is not positive and finite.
    """

    max_slope: float
    beta: float | Tensor

    def __init__(self, beta: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        beta = positive("beta", beta)
        self.beta = nn.Parameter(torch.tensor(beta)) if learnable else beta

    @property
    def convex(self) -> bool:  # type: ignore[override]
        return self._present_beta() > 0

    @property
    def lipschitz(self) -> float:
        return abs(self._present_beta()) * self.max_slope

    def extra_repr(self) -> str:
        return f"beta={self._present_beta():g}, learnable={isinstance(self.beta, nn.Parameter)}"

    def _present_beta(self) -> float:
        return self.beta.item() if isinstance(self.beta, Tensor) else self.beta


def positive(name: str, value: float) -> float:
    """`value` as a float, or a ValueError unless it is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be positive and finite")
    return float(value)


def from_the_end(axis: int | tuple[int, ...]) -> tuple[int, ...]:
    """Axes as a tuple, or a ValueError unless they are distinct and counted from the end."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or not all(isinstance(a, int) and a < 0 for a in axes):
        raise ValueError(
            f"axis is {axis}; count from the end (the last is -1), so that batch axes in front do not matter"
        )
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}; name each axis once")
    return axes


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
