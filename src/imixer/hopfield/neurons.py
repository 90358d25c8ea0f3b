"""A layer of neurons: a shape, a Lagrangian, and how fast its neurons move and decay."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians import lagrangian as named
from imixer.hopfield.lagrangians.parts import layer_shape, real_numbers


class Neurons(nn.Module):
    """Layer A of a network: tau dx/dt = inputs + b - alpha x, with activations g = dL/dx.

    Choose it for every layer of a `HopfieldNetwork`; `chain` and its relatives make the layers themselves.

    Args:
        shape: Shape of x for one sample, such as (tokens, channels).
        lagrangian: L, an instance or a name such as `gelu`.
        tau: Time constant, in the time unit of the network. Positive.
        decay: alpha, introduced in paper (12). 0 only where the Lagrangian has a zero mode, by (13).
        field: External field b, any tensor that broadcasts to `shape`; it becomes a parameter. Default: none.

    Raises:
        ValueError: If shape, tau, decay or field is impossible, or the Lagrangian is of neurons of another shape.

    Source: paper (3)-(4), (12), (32). The field is ours, see docs/theory.md, section 1.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        lagrangian: str | Lagrangian = "identity",
        *,
        tau: float = 1.0,
        decay: float = 1.0,
        field: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.shape = layer_shape(shape)
        self.lagrangian = named(lagrangian)
        self.tau = float(tau)
        self.decay = float(decay)
        if not (self.tau > 0 and math.isfinite(self.tau)):
            raise ValueError(f"tau is {tau}; a time constant must be positive and finite")
        if not (self.decay >= 0 and math.isfinite(self.decay)):
            raise ValueError(f"decay is {decay}; give 0 or more")
        if self.decay == 0 and not self.lagrangian.zero_mode:
            raise ValueError(
                f"decay is 0, but {type(self.lagrangian).__name__} has no zero mode: nothing would hold the neurons; "
                "give a positive decay, or layer_norm or spherical as the Lagrangian"
            )
        require_fit(self.lagrangian, self.shape)
        field = None if field is None else real_numbers("field", field)
        if field is not None and not fits(field.shape, self.shape):
            raise ValueError(f"field has shape {tuple(field.shape)}, which does not broadcast to {self.shape}")
        self.field = None if field is None else nn.Parameter(field.clone())

    def activation(self, x: Tensor) -> Tensor:
        """Compute g(x) for x (..., *shape)."""
        return self.lagrangian.activation(x)

    def energy(self, x: Tensor, g: Tensor) -> Tensor:
        """Compute the energy alpha (<x, g> - L(x)) - <b, g>, for x and g (..., *shape) -> (...).

        Source: paper (6) for alpha = 1 and b = 0; the factor alpha and the field are ours.
        """
        energy = self.decay * (self.total(x * g) - self.total(self.lagrangian.density(x)))
        return energy if self.field is None else energy - self.total(self.field * g)

    def total(self, density: Tensor) -> Tensor:
        """Sum over the neurons, (..., *shape) -> (...)."""
        return density.flatten(-len(self.shape)).sum(-1)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"{self.shape}, tau={self.tau:g}, decay={self.decay:g}" + ("" if self.field is None else ", field")


def require_fit(lagrangian: Lagrangian, shape: tuple[int, ...]) -> None:
    """Refuse a Lagrangian that is not one of neurons of a shape.

    Raises:
        ValueError: If it couples more axes than there are, or takes neurons of another shape.
    """
    kind = type(lagrangian).__name__
    reach = -min(getattr(lagrangian, "axis", (-1,)))
    if reach > len(shape):
        raise ValueError(f"{kind} acts on axis {-reach}, beyond the shape {shape}: it would couple samples")
    own = lagrangian.shape
    if own is not None and shape[-len(own) :] != own:
        raise ValueError(f"{kind} takes neurons of shape {own}, and the layer has {shape}; build it for that shape")


def fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Tell whether a tensor of that shape broadcasts to the target, and no further."""
    last = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape, last, strict=True))
