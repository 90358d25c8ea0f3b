"""A Lagrangian of which some neurons are silent."""

import torch
from torch import Tensor

from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians.coupled import Attentive
from imixer.hopfield.lagrangians.parts import holds


class Masked(Lagrangian):
    """A Lagrangian restricted to some neurons; the activation of the others is 0, whatever their state.

    Choose it where a sample may not use some hidden neurons, such as the patterns that pad a memory.

    Args:
        inner: The Lagrangian, of single neurons or a distribution over them, such as softmax.
        mask: True for neurons that take part; it broadcasts to x.

    Raises:
        ValueError: If the Lagrangian couples its neurons in another way, or the mask is not of booleans or leaves
            nothing, or no neuron to one of the distributions.
    """

    mask: Tensor

    def __init__(self, inner: Lagrangian, mask: Tensor) -> None:
        super().__init__()
        if not inner.elementwise and not isinstance(inner, Attentive):
            raise ValueError(f"{type(inner).__name__} couples its neurons, so that none of them can be left out")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the mask is of {kind}; give booleans, true for neurons that take part")
        if not holds(_leaves_some(mask, inner.axis) if isinstance(inner, Attentive) else mask.any()):
            raise ValueError("the mask leaves no neuron that takes part; let it be true for one or more")
        self.inner = inner
        self.elementwise = inner.elementwise
        self.zero_mode = inner.zero_mode
        self.proven = inner.proven
        self.shape = inner.shape
        if isinstance(inner, Attentive):
            self.axis = inner.axis
        self.register_buffer("mask", mask)

    @property
    def convex(self) -> bool:
        """Whether the inner one is convex."""
        return self.inner.convex

    @property
    def lipschitz(self) -> float:
        """Lipschitz constant of the inner one."""
        return self.inner.lipschitz

    @property
    def asymptotic_slope(self) -> float | None:
        """Asymptotic slope of the inner one."""
        return self.inner.asymptotic_slope

    def density(self, x: Tensor) -> Tensor:
        """Compute the inner density of the neurons that take part."""
        if self.elementwise:
            return torch.where(self.mask, self.inner.density(x), 0.0)
        return self.inner.density(self._lowered(x))

    def activation(self, x: Tensor) -> Tensor:
        """Compute the inner activation, 0 where a neuron is silent."""
        return torch.where(self.mask, self.inner.activation(x if self.elementwise else self._lowered(x)), 0.0)

    def _lowered(self, x: Tensor) -> Tensor:
        # Far below all others, with room for a factor of beta.
        return torch.where(self.mask, x, -(torch.finfo(x.dtype).max ** 0.75))


def _leaves_some(mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Tell which distributions have a neuron that takes part; along axes that the mask has not, it is the same."""
    for axis in axes:
        mask = mask.any(axis, keepdim=True) if -axis <= mask.dim() else mask
    return mask
