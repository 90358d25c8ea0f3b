"""A Lagrangian from the user's own function."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from imixer.hopfield.lagrangian import Lagrangian

REACH = 10.0
SPACING = 0.005


class Elementwise(Lagrangian):
    """A Lagrangian given as a function L(x) of one neuron, written in torch operations on a tensor of any shape.

    What is said about it is checked at construction, in float64, at points `SPACING` apart up to `REACH` on either
    side of 0: by its slopes there and by the chords between them. That can refute a claim, not prove it.

    Args:
        function: L(x), elementwise. A module's parameters are registered.
        convex: Whether L is convex.
        lipschitz: Largest absolute slope of the activation; math.inf if there is none.
        activation: dL/dx, elementwise. Default: by differentiating `function`.

    Raises:
        ValueError: If the function is not elementwise or not finite, if `activation` is not its gradient, if a slope
            contradicts `convex` or exceeds `lipschitz`, or if lipschitz is negative.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        convex: bool,
        lipschitz: float,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not lipschitz >= 0:
            raise ValueError(f"lipschitz is {lipschitz}; it must be 0 or more")
        self.function = function
        self.closed_form = activation
        self._convex = convex
        self._lipschitz = float(lipschitz)
        self._check()

    @property
    def convex(self) -> bool:
        """Whether L is convex, as given."""
        return self._convex

    @property
    def lipschitz(self) -> float:
        """Largest absolute slope of the activation, as given."""
        return self._lipschitz

    def density(self, x: Tensor) -> Tensor:
        """Compute the given function L(x)."""
        return self.function(x)

    def activation(self, x: Tensor) -> Tensor:
        """Compute dL/dx, by the given function or by differentiating L."""
        return self._gradient(x) if self.closed_form is None else self.closed_form(x)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{name}, convex={self.convex}, lipschitz={self.lipschitz:g}"

    def _gradient(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: self.function(x).sum())(x)

    @torch.no_grad()
    def _check(self) -> None:
        steps = round(REACH / SPACING)
        device = next((p.device for p in self.parameters()), None)
        x = torch.arange(-steps, steps + 1, dtype=torch.float64, device=device) * SPACING
        _evaluate(self.function, "function", x)
        gradient = _evaluate(self._gradient, "the gradient of function", x)
        g = gradient if self.closed_form is None else _evaluate(self.closed_form, "activation", x)
        wrong = (g - gradient).abs() > 1e-6 * (1 + gradient.abs())
        _refuse(wrong, x, g, "activation is {value:.6g} at x = {x:.4g}, not the gradient of function")

        slope = self.hessian_product(x, torch.ones_like(x))
        _refuse(slope.isnan(), x, slope, "the slope of activation is {value} at x = {x:.4g}")
        # A chord sees what no slope shows: a jump. Neither is ever steeper than the true Lipschitz constant.
        slope = torch.cat([slope, g.diff() / x.diff()])
        rounding = 1e-9 * (1 + torch.cat([g.abs(), torch.maximum(g[1:].abs(), g[:-1].abs())]))
        x = torch.cat([x, (x[1:] + x[:-1]) / 2])
        if self.convex:
            message = "convex is claimed, but the slope of activation is {value:.6g} at x = {x:.4g}"
            _refuse(slope < -rounding, x, slope, message)
        if math.isfinite(self.lipschitz):
            message = f"lipschitz is claimed to be {self.lipschitz:.6g}, "
            message += "but the slope of activation is {value:.6g} at x = {x:.4g}"
            _refuse(slope.abs() > self.lipschitz + rounding, x, slope, message)


def _evaluate(f: Callable[[Tensor], Tensor], name: str, x: Tensor) -> Tensor:
    value = f(x)
    alone = isinstance(value, Tensor) and value.shape == x.shape
    # Not to the bit: vectorised and remaining elements may take different code.
    if not alone or not torch.allclose(f(x[::7]), value[::7], rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ValueError(f"{name} is not elementwise: its value at one x must not depend on the others")
    _refuse(~value.isfinite(), x, value, name + " is {value} at x = {x:.4g}")
    return value


def _refuse(wrong: Tensor, x: Tensor, value: Tensor, message: str) -> None:
    """Raise a ValueError that names the worst of the wrong values and where it is."""
    if wrong.any():
        worst = int(torch.where(wrong, value.abs().nan_to_num(nan=math.inf), -1).argmax())
        raise ValueError(message.format(value=float(value[worst]), x=float(x[worst])))
