"""Lagrangians from the user's own function: of one neuron, or of all neurons of a layer."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imixer.errors import in_short
from imixer.hopfield.differentiation import gradients
from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians.parts import layer_shape

REACH = 10.0
SPACING = 0.005
POINTS = 64  # drawn at each size, to look at a function of several neurons
SIZES = (0.01, 0.1, 1.0, 10.0)
_DIRECTIONS = 24  # of the Krylov space in which curvatures are looked for


class Elementwise(Lagrangian):
    """A Lagrangian given as a function L(x) of one neuron, written in torch operations on a tensor of any shape.

    Choose it to try out an activation of single neurons without writing a class; `FromDensity` is for coupled ones.

    What is said about it is checked at construction, in float64, at points `SPACING` apart up to `REACH` on either
    side of 0: by its slopes there and by the chords between them. That can refute a claim, not prove it.

    Args:
        function: L(x), elementwise. A module's parameters are registered.
        convex: Whether L is convex. Default: what its slopes at those points say, which proves nothing.
        lipschitz: Largest absolute slope of the activation; math.inf if there is none. Default: the largest at those
            points, likewise.
        activation: dL/dx, elementwise. Default: by differentiating `function`.

    Raises:
        ValueError: If the function is not elementwise or not finite, if `activation` is not its gradient, if a slope
            contradicts `convex` or exceeds `lipschitz`, or if lipschitz is negative.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        convex: bool | None = None,
        lipschitz: float | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if lipschitz is not None and not lipschitz >= 0:
            raise ValueError(f"lipschitz is {lipschitz}; it must be 0 or more")
        for name, given in (("function", function), ("activation", activation)):
            if given is not None and not callable(given):
                raise ValueError(f"{name} is {given!r}; give a function of a tensor, elementwise")
        self.function = function
        self.closed_form = activation
        self.proven = convex is not None and lipschitz is not None
        slope, rounding, x = self._slopes()
        if convex:
            message = "convex is claimed, but the slope of activation is {value:.6g} at x = {x:.4g}"
            _refuse(slope < -rounding, x, slope, message)
        if lipschitz is not None and math.isfinite(lipschitz):
            message = f"lipschitz is claimed to be {lipschitz:.6g}, "
            message += "but the slope of activation is {value:.6g} at x = {x:.4g}"
            _refuse(slope.abs() > lipschitz + rounding, x, slope, message)
        self._convex = bool((slope >= -rounding).all()) if convex is None else convex
        self._lipschitz = float(slope.abs().max()) if lipschitz is None else float(lipschitz)

    @property
    def convex(self) -> bool:
        """Whether L is convex, as given or as measured."""
        return self._convex

    @property
    def lipschitz(self) -> float:
        """Largest absolute slope of the activation, as given or as measured."""
        return self._lipschitz

    def density(self, x: Tensor) -> Tensor:
        """Compute the given function L(x)."""
        return self.function(x)

    def activation(self, x: Tensor) -> Tensor:
        """Compute dL/dx, by the given function or by differentiating L."""
        return self._gradient(x) if self.closed_form is None else self.closed_form(x)

    def extra_repr(self) -> str:
        """Show the options in a printed module, and whether they are claims or measurements."""
        measured = "" if self.proven else f", measured on [-{REACH:g}, {REACH:g}]"
        return f"{_name(self.function)}, convex={self.convex}, lipschitz={self.lipschitz:g}{measured}"

    def _gradient(self, x: Tensor) -> Tensor:
        return gradients(self.function, x)[0]

    @torch.no_grad()
    def _slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return slopes of the activation, what rounding may add to them, and where they are."""
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
        return slope, rounding, torch.cat([x, (x[1:] + x[:-1]) / 2])


class FromDensity(Lagrangian):
    """A Lagrangian given as a function L(x) of all neurons of a layer together, written in torch operations.

    Choose it to try out an activation that couples its neurons: the gradient of L is the activation, by autograd. For a
    function of one neuron `Elementwise` is cheaper, and lets single neurons be clamped.

    Whether L is convex and how steep its activation is are measured at construction, by the curvatures at `POINTS`
    random states of each of the `SIZES`, in the precision of its parameters or else in float64. That proves nothing.
    Descent along such a network is therefore `observed` at best, and its energy not known to be bounded.

    Args:
        function: L(x), from a batch of states (B, *shape) to one number a sample (B,). A module's parameters are
            registered.
        shape: Shape of the layer.

    Attributes:
        smallest_curvature: Smallest eigenvalue of the Hessian that was seen.
        largest_curvature: Largest one.

    Raises:
        ValueError: If the function cannot be called or fails, returns anything but one real number a sample, or one
            that has no gradient, lets samples depend on each other, or is not finite.

    Source: the curvatures are those of Krylov spaces (Lanczos 1950).
    """

    elementwise = False
    proven = False
    shape: tuple[int, ...]

    def __init__(self, function: Callable[[Tensor], Tensor], shape: int | Sequence[int]) -> None:
        super().__init__()
        self.function = function
        self.shape = layer_shape(shape)
        self.axis = tuple(range(-len(self.shape), 0))
        self.smallest_curvature, self.largest_curvature = self._measure()

    @property
    def convex(self) -> bool:
        """Whether no negative curvature was seen, but for rounding."""
        return self.smallest_curvature >= -self._rounding * (1 + abs(self.largest_curvature))

    @property
    def lipschitz(self) -> float:
        """Largest norm of the Hessian that was seen."""
        return max(abs(self.smallest_curvature), abs(self.largest_curvature))

    def density(self, x: Tensor) -> Tensor:
        """Compute the given function L(x), of size 1 along all axes of the layer."""
        batch = x.shape[: x.dim() - len(self.shape)]
        return self.function(x.reshape(-1, *self.shape)).view(*batch, *[1] * len(self.shape))

    def extra_repr(self) -> str:
        """Show the options in a printed module, and what was measured."""
        return (
            f"{_name(self.function)}, shape={self.shape}, convex={self.convex}, lipschitz={self.lipschitz:.4g}, "
            f"measured at {POINTS * len(SIZES)} states"
        )

    @torch.no_grad()
    def _measure(self) -> tuple[float, float]:
        """Return the smallest and the largest curvature at random states."""
        generator = torch.Generator().manual_seed(0)
        sizes = torch.tensor(SIZES, dtype=torch.float64).repeat_interleave(POINTS)
        x = torch.randn(len(sizes), math.prod(self.shape), dtype=torch.float64, generator=generator) * sizes[:, None]
        direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        like = next(self.parameters(), x)
        self._rounding = max(1e-9, 1e3 * torch.finfo(like.dtype).eps)
        x, direction = (each.to(like).unflatten(1, self.shape) for each in (x, direction))
        if not callable(self.function):
            raise ValueError(
                f"the density is {type(self.function).__name__}; give a function of the states (B, *shape)"
            )
        try:
            with torch.enable_grad():
                value = self.function(x.detach().requires_grad_())
        except (RuntimeError, TypeError, IndexError) as error:
            said = in_short(error)
            raise ValueError(
                f"the density fails on {len(x)} samples of shape {self.shape}: {said}; let it take (B, *shape)"
            ) from error
        if not isinstance(value, Tensor) or value.shape != (len(x),):
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the density of {len(x)} samples of shape {self.shape} is {what}; "
                "return one number a sample, as x.flatten(1).sum(1) does"
            )
        if not value.is_floating_point() or not value.requires_grad:
            flaw = f"of {value.dtype}" if not value.is_floating_point() else "cut off from the states"
            raise ValueError(f"the density is {flaw}; compute real numbers from the states, by torch operations")
        value = value.detach()
        if not torch.allclose(self.function(x[::7]), value[::7], rtol=self._rounding, atol=1e-6, equal_nan=True):
            raise ValueError("the density of a sample depends on the others; sum over the layer's axes alone")
        if not value.isfinite().all() or not self.activation(x).isfinite().all():
            raise ValueError(
                f"the density or its gradient is not finite at {int((~value.isfinite()).sum()) or 'some'} of "
                f"{len(x)} random states; give a function that is finite everywhere"
            )
        curvatures = _curvatures(lambda u: self.hessian_product(x, u), direction)
        return float(curvatures.min()), float(curvatures.max())


def _curvatures(product: Callable[[Tensor], Tensor], direction: Tensor) -> Tensor:
    """Return the Ritz values (B, k) of symmetric matrices, whose extremes approach the extreme eigenvalues.

    Args:
        product: From vectors (B, *shape) to the matrices' products with them.
        direction: To start with, (B, *shape).
    """
    basis: list[Tensor] = []
    images: list[Tensor] = []
    generator = torch.Generator().manual_seed(1)
    new = direction.flatten(1)
    for _ in range(min(_DIRECTIONS, new.shape[1])):
        length = new.norm(dim=1, keepdim=True)
        new = _orthogonal(new, basis)
        spent = new.norm(dim=1, keepdim=True) <= 1e3 * torch.finfo(new.dtype).eps * length
        if spent.any():  # the space is exhausted, and what is left is rounding: begin another
            other = torch.randn(new.shape, dtype=torch.float64, generator=generator).to(new)
            new = torch.where(spent, _orthogonal(other, basis), new)
        basis.append(torch.nn.functional.normalize(new, dim=1))
        images.append(product(basis[-1].view(direction.shape)).flatten(1))
        new = images[-1]
    Q, MQ = torch.stack(basis, 1), torch.stack(images, 1)
    ritz = Q @ MQ.mT
    return torch.linalg.eigvalsh((ritz + ritz.mT) / 2)


def _orthogonal(vectors: Tensor, basis: Sequence[Tensor]) -> Tensor:
    """Remove from vectors (B, N) what they have of those of an orthonormal basis, each (B, N)."""
    for _ in range(2):  # once more, for what rounding leaves
        for old in basis:
            vectors = vectors - (old * vectors).sum(1, keepdim=True) * old
    return vectors


def _name(function: Callable[[Tensor], Tensor]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _evaluate(f: Callable[[Tensor], Tensor], name: str, x: Tensor) -> Tensor:
    try:
        value, some = f(x), f(x[::7])
    except Exception as error:  # the caller's, or what torch says to it
        said = f"{type(error).__name__}: {in_short(error, 120)}"
        raise ValueError(
            f"{name} fails on a tensor of {len(x)} numbers in float64, on which it is checked: {said}"
        ) from error
    alone = isinstance(value, Tensor) and value.shape == x.shape
    # Not to the bit: vectorised and remaining elements may take different code.
    if not alone or not torch.allclose(some, value[::7], rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ValueError(f"{name} is not elementwise: its value at one x must not depend on the others")
    _refuse(~value.isfinite(), x, value, name + " is {value} at x = {x:.4g}")
    return value


def _refuse(wrong: Tensor, x: Tensor, value: Tensor, message: str) -> None:
    """Raise a ValueError that names the worst of the wrong values and where it is."""
    if wrong.any():
        worst = int(torch.where(wrong, value.abs().nan_to_num(nan=math.inf), -1).argmax())
        raise ValueError(message.format(value=float(value[worst]), x=float(x[worst])))
