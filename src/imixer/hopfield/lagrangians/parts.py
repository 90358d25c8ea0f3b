"""What several Lagrangians share: an inverse temperature, and axes counted from the end."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imixer.errors import as_whole
from imixer.hopfield.lagrangian import Lagrangian


class Tempered(Lagrangian):
    """A Lagrangian L(beta x) / beta, whose activation is g(beta x). Subclasses give density and activation.

    `convex` and `lipschitz` are read off the present beta. Nothing keeps training from taking a learnable one to 0,
    where L is undefined, or below, where L is concave.

    Args:
        beta: Inverse temperature at the start. Positive. A tensor that broadcasts to x gives each neuron, or each group
            of neurons that L couples, one of its own.
        learnable: Make beta an `nn.Parameter`; a tensor is a buffer otherwise.

    Attributes:
        max_slope: Lipschitz constant at beta = 1.

    Raises:
        ValueError: If beta is not positive and finite.
    """

    max_slope: float
    beta: float | Tensor

    def __init__(self, beta: float | Tensor = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        beta = inverse_temperature(beta)
        if learnable:
            self.beta = nn.Parameter(torch.as_tensor(beta).clone())
        elif isinstance(beta, Tensor):
            self.register_buffer("beta", beta)
        else:
            self.beta = beta

    @property
    def convex(self) -> bool:
        """Whether beta, which may be learned, is positive at present."""
        return min(self._present_beta()) > 0

    @property
    def lipschitz(self) -> float:
        """|beta| times the Lipschitz constant at beta = 1."""
        return max(map(abs, self._present_beta())) * self.max_slope

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        low, high = self._present_beta()
        beta = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return f"beta={beta}, learnable={isinstance(self.beta, nn.Parameter)}"

    def _present_beta(self) -> tuple[float, float]:
        """Return the smallest and the largest beta."""
        if isinstance(self.beta, Tensor):
            return float(self.beta.detach().min()), float(self.beta.detach().max())
        return self.beta, self.beta


def inverse_temperature(beta: float | Tensor) -> float | Tensor:
    """Return inverse temperatures as a float, or as a tensor of floats without gradient.

    Raises:
        ValueError: If one is no number, or not positive and finite.
    """
    if not isinstance(beta, (Tensor, int, float)):
        raise ValueError(f"beta is {beta!r}; give a number above 0, or a tensor of such")
    values = beta.detach() if isinstance(beta, Tensor) else torch.tensor(float(beta), dtype=torch.float64)
    wrong = values[~(values.isfinite() & (values > 0))]
    if values.numel() == 0 or len(wrong):
        which = "empty" if values.numel() == 0 else f"{float(wrong[0]):g}"
        raise ValueError(
            f"beta is {which}; an inverse temperature must be positive and finite: give a large one, such as 1e4, "
            "for a temperature of 0"
        )
    if not isinstance(beta, Tensor):
        return float(beta)
    return values.clone() if values.is_floating_point() else values.to(torch.get_default_dtype())


def layer_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a layer as a tuple.

    Raises:
        ValueError: If it is no size, or one is below 1.
    """
    sizes = as_whole(shape)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"shape is {shape}; give one or more sizes of 1 or more")
    return sizes


def positive(name: str, value: float) -> float:
    """Return `value` as a float.

    Raises:
        ValueError: If it is not positive and finite; with the name.
    """
    try:
        possible = math.isfinite(value) and value > 0
    except (RuntimeError, TypeError, ValueError):  # of what is no number, or several
        raise ValueError(f"{name} is {value!r}; give one number, positive and finite") from None
    if not possible:
        raise ValueError(f"{name} is {value}; it must be positive and finite")
    return float(value)


def real_numbers(name: str, value: object) -> Tensor:
    """Return a tensor of real numbers in a floating type, without gradient; whole numbers in torch's default one.

    Raises:
        ValueError: If it is no tensor, or one of complex numbers or of some that are not finite; with the name.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        what = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {what}; give a tensor of real numbers")
    if not value.is_meta and not holds(value.isfinite()):
        raise ValueError(f"{name} has {int((~value.isfinite()).sum())} values that are not finite; give finite ones")
    value = value.detach()
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def from_the_end(axis: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return axes as a tuple.

    Raises:
        ValueError: If they are not distinct and counted from the end.
    """
    axes = as_whole(axis)
    if not axes or max(axes) >= 0:
        raise ValueError(
            f"axis is {axis}; count from the end (the last is -1), so that batch axes in front do not matter"
        )
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}; name each axis once")
    return axes


def holds(mask: Tensor) -> bool:
    """Tell whether a mask holds throughout; inside transforms of `torch.func`, where nobody may look, it counts so."""
    return bool(torch._C._are_functorch_transforms_active()) or bool(mask.all())
