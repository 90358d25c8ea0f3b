"""What a Lagrangian is: one scalar function of a layer's neurons, whose gradient is their activation."""

import math

import torch
from torch import Tensor, nn

from imixer.hopfield.differentiation import gradients


class Lagrangian(nn.Module):
    """A function L(x) of the neurons of a layer; g(x) = dL/dx is their activation, M(x) = dg/dx its Hessian.

    Write a subclass for an activation that is none of those here: give it `density`, `activation` where the gradient
    has a closed form, and set those attributes below, and `asymptotic_slope`, that differ. For a function alone,
    without a class, there are `Elementwise` (of one neuron) and `FromDensity` (of all neurons of a layer).

    Attributes:
        elementwise: Whether each neuron's activation depends on that neuron alone, so that M is diagonal.
        convex: Whether M is positive semi-definite everywhere, which energy descent needs.
        lipschitz: Largest norm of M, the Lipschitz constant of the activation; infinite if there is none.
        zero_mode: Whether M(x) x = 0 (for LayerNorm: after centring x), up to eps. Then the decay of the neurons
            leaves their energy alone and may be switched off.
        proven: Whether `convex` and `lipschitz` are known. Otherwise they were measured at some points, and nothing
            that rests on them is guaranteed.
        shape: Shape of the neurons that L takes, where that is one; None for any.

    Source: Krotov & Hopfield, arXiv 2008.06996; paper (5), (18), the Hessian (13).
    """

    elementwise: bool = True
    zero_mode: bool = False
    proven: bool = True
    shape: tuple[int, ...] | None = None

    @property
    def convex(self) -> bool:
        """Whether M is positive semi-definite everywhere."""
        return True

    @property
    def lipschitz(self) -> float:
        """Lipschitz constant of the activation; infinity if there is none."""
        return math.inf

    @property
    def asymptotic_slope(self) -> float | None:
        """Slope of g far out: 0 if activations are bounded, 1 if they end like x; None if not known.

        Precisely, it is the smallest s that allows, for every s' > s, a bound <x, g> - L(x) >= ||g||^2 / (2 s') - C
        with some C. The Lipschitz constant of a convex L is one, since the convex conjugate of L is then 1 / lipschitz
        strongly convex.
        A subclass says 0 only where activations are bounded and <x, g> - L(x) is bounded from below.
        """
        return self.lipschitz if self.convex and self.proven else None

    def density(self, x: Tensor) -> Tensor:
        """Compute what sums over the neurons to L(x). Axes that L couples are kept with size 1."""
        raise NotImplementedError(f"{type(self).__name__} has no density")

    def activation(self, x: Tensor) -> Tensor:
        """Compute g(x) = dL/dx, of the shape of x; by differentiating `density` unless a subclass has a closed form."""
        return gradients(self.density, x)[0]

    def hessian_product(self, x: Tensor, u: Tensor) -> Tensor:
        """Compute M(x) u, of the shape of x."""
        # torch cannot lay a tangent out like an expanded x.
        return torch.func.jvp(self.activation, (x.contiguous(),), (u,))[1]
