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
    def convex(self) -> bool:
        """Whether beta, which may be learned, is positive at present."""
        return self._present_beta() > 0

    @property
    def lipschitz(self) -> float:
        """|beta| times the Lipschitz constant at beta = 1."""
        return abs(self._present_beta()) * self.max_slope

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"beta={self._present_beta():g}, learnable={isinstance(self.beta, nn.Parameter)}"

    def _present_beta(self) -> float:
        return self.beta.item() if isinstance(self.beta, Tensor) else self.beta


def positive(name: str, value: float) -> float:
    """Return `value` as a float.

    Raises:
        ValueError: If it is not positive and finite; with the name.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be positive and finite")
    return float(value)


def from_the_end(axis: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return axes as a tuple.

    Raises:
        ValueError: If they are not distinct and counted from the end.
    """
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or not all(isinstance(a, int) and a < 0 for a in axes):
        raise ValueError(
            f"axis is {axis}; count from the end (the last is -1), so that batch axes in front do not matter"
        )
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}; name each axis once")
    return axes


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float64 if it is so, else in float32."""
    return x if x.dtype == torch.float64 else x.float()
