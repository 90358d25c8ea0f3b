"""Lagrangians of one neuron at a time: the integrals of the usual activations."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians.parts import Tempered
from imixer.hopfield.lagrangians.registry import register


@register("identity")
class Identity(Lagrangian):
    """g = x, L = x^2 / 2.

    Choose it for neurons that are their own activation, such as the visible ones of a `modern` memory. g never falls:
    descent can be guaranteed.
    """

    lipschitz = 1.0

    def density(self, x: Tensor) -> Tensor:
        """Compute x^2 / 2."""
        return x.square() / 2

    def activation(self, x: Tensor) -> Tensor:
        """Return x."""
        return x


@register("relu")
class ReLU(Lagrangian):
    """g = max(x, 0), L = g^2 / 2.

    Choose it for the hidden neurons of a mixer in the place of `GELU`. g never falls: descent can be guaranteed.
    """

    lipschitz = 1.0

    def density(self, x: Tensor) -> Tensor:
        """Compute max(x, 0)^2 / 2."""
        return torch.relu(x).square() / 2

    def activation(self, x: Tensor) -> Tensor:
        """Compute max(x, 0)."""
        return torch.relu(x)


@register("rectified_power")
class RectifiedPower(Lagrangian):
    """g = max(x, 0)^n, L = max(x, 0)^(n + 1) / (n + 1): the hidden neurons of a dense associative memory.

    Choose it for a memory of many patterns of +-1, such as `polynomial`. g never falls: descent can be guaranteed.

    Args:
        power: The n of g, 1 or more (1: ReLU). The memory's energy is then of order n + 1.

    Raises:
        ValueError: If power is below 1 or not finite.

    Source: Krotov & Hopfield, arXiv 1606.01164; arXiv 2008.06996, model A.
    """

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        if not (math.isfinite(power) and power >= 1):
            raise ValueError(f"power is {power}; below 1 the activation has no finite slope at 0, give 1 or more")
        self.power = power

    @property
    def lipschitz(self) -> float:
        """1 for ReLU; infinity for a higher power, which is ever steeper."""
        return 1.0 if self.power == 1 else math.inf

    def density(self, x: Tensor) -> Tensor:
        """Compute max(x, 0)^(n + 1) / (n + 1)."""
        return torch.relu(x) ** (self.power + 1) / (self.power + 1)

    def activation(self, x: Tensor) -> Tensor:
        """Compute max(x, 0)^n."""
        return torch.relu(x) ** self.power

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"power={self.power:g}"


@register("softplus")
class Softplus(Lagrangian):
    """g = log(1 + e^x), L = -Li2(-e^x), which vanishes at -inf.

    Choose it in the place of `ReLU` where the slope is to be continuous. g never falls: descent can be guaranteed.
    """

    lipschitz = 1.0

    def density(self, x: Tensor) -> Tensor:
        """Compute -Li2(-e^x)."""
        return _softplus_integral(x)

    def activation(self, x: Tensor) -> Tensor:
        """Compute log(1 + e^x)."""
        return _softplus(x)


@register("sigmoid")
class Sigmoid(Tempered):
    """g = 1 / (1 + e^(-beta x)), L = log(1 + e^(beta x)) / beta.

    Choose it for neurons that are on or off, from 0 to 1. g never falls: descent can be guaranteed. It is bounded,
    which leaves couplings free.
    """

    max_slope = 1 / 4
    asymptotic_slope = 0.0

    def density(self, x: Tensor) -> Tensor:
        """Compute log(1 + e^(beta x)) / beta."""
        return _softplus(self.beta * x) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        """Compute 1 / (1 + e^(-beta x))."""
        return torch.sigmoid(self.beta * x)


@register("tanh")
class Tanh(Tempered):
    """g = tanh(beta x), L = log(cosh(beta x)) / beta.

    Choose it for neurons that stand for signs, as in memories of patterns of +-1. g never falls: descent can be
    guaranteed. It is bounded, which leaves couplings free.
    """

    max_slope = 1.0
    asymptotic_slope = 0.0

    def density(self, x: Tensor) -> Tensor:
        """Compute log(cosh(beta x)) / beta."""
        z = self.beta * x
        # Two forms: one does not overflow, the other does not cancel where L is about z^2 / 2.
        small = z.abs() < 1
        near = torch.log1p(2 * torch.sinh(torch.where(small, z, 0) / 2).square())
        return torch.where(small, near, _softplus(2 * z) - z - math.log(2)) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        """Compute tanh(beta x)."""
        return torch.tanh(self.beta * x)


@register("exponential")
class Exponential(Tempered):
    """g = e^(beta x), L = e^(beta x) / beta, up to beta x = cutoff; beyond it g goes on as its tangent.

    Choose it for a memory of the most patterns of +-1, such as `exponential`. g never falls: descent can be guaranteed.

    So L is convex with a continuous Hessian, and float32 holds it to |beta x| = 1e4 and beyond. The Lipschitz
    constant is that of the tangent, beta e^cutoff: finite, but no use as a bound unless the cutoff is small.

    Args:
        beta: Inverse temperature at the start. Positive.
        learnable: Make beta an `nn.Parameter`.
        cutoff: Largest beta x that is exponentiated. 60 suits float32 and bfloat16, not float16.

    Raises:
        ValueError: If beta is not positive and finite, or e^cutoff not finite in float64.
    """

    def __init__(self, beta: float | Tensor = 1.0, *, learnable: bool = False, cutoff: float = 60.0) -> None:
        super().__init__(beta, learnable=learnable)
        if not (math.isfinite(cutoff) and cutoff < 709):
            raise ValueError(f"cutoff is {cutoff}; e^cutoff must be finite (float64: below 709, float32: below 88)")
        self.cutoff = cutoff
        self.max_slope = math.exp(cutoff)

    def density(self, x: Tensor) -> Tensor:
        """Compute e^(beta x) / beta; beyond the cutoff, the integral of the tangent."""
        z = self.beta * x
        head = torch.clamp(z, max=self.cutoff)
        tail = z - head
        return torch.exp(head) * (1 + tail + tail.square() / 2) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        """Compute e^(beta x); beyond the cutoff, its tangent."""
        z = self.beta * x
        head = torch.clamp(z, max=self.cutoff)
        return torch.exp(head) * (1 + (z - head))

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"{super().extra_repr()}, cutoff={self.cutoff:g}"


@register("gelu")
class GELU(Lagrangian):
    """g = x Phi(x), L = [(x^2 - 1) Phi(x) + x phi(x)] / 2, which vanishes at -inf. Not convex: g falls below -0.75.

    Choose it to compute what the paper's models and timm's compute; descent is then observed at best, and `ReLU` allows
    a guaranteed one. It is the exact form, by erf; its slope is largest at sqrt 2.
    """

    convex = False
    lipschitz = (1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi)
    asymptotic_slope = 1.0

    def density(self, x: Tensor) -> Tensor:
        """Compute [(x^2 - 1) Phi(x) + x phi(x)] / 2."""
        # erfc rather than 1 + erf: the tail at -inf is all there is of L there.
        Phi = torch.erfc(-x * math.sqrt(1 / 2)) / 2
        phi = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        return ((x.square() - 1) * Phi + x * phi) / 2

    def activation(self, x: Tensor) -> Tensor:
        """Compute x Phi(x)."""
        return F.gelu(x)


@register("gelu_1lip")
class GELU1Lip(GELU):
    """GELU divided by its steepest slope, 1.1289: Lipschitz constant 1. Not convex either.

    Choose it where GELU's shape is wanted and a ceiling on the couplings is to bound F, as the activation of this name
    does in models. Descent is observed at best.
    """

    lipschitz = 1.0
    asymptotic_slope = 1 / GELU.lipschitz

    def density(self, x: Tensor) -> Tensor:
        """Compute GELU's L over its steepest slope."""
        return super().density(x) / GELU.lipschitz

    def activation(self, x: Tensor) -> Tensor:
        """Compute GELU over its steepest slope."""
        return super().activation(x) / GELU.lipschitz


@register("silu")
class SiLU(Lagrangian):
    """g = x / (1 + e^-x), L = x log(1 + e^x) + Li2(-e^x), which vanishes at -inf. Not convex: g falls below -1.28.

    Choose it to study networks with this activation, also called swish; descent is observed at best, and `Softplus`
    allows a guaranteed one.
    """

    convex = False
    # The slope is largest at x tanh(x / 2) = 2, where it is 1/2 + x/4.
    lipschitz = 1.099839320128867
    asymptotic_slope = 1.0

    def density(self, x: Tensor) -> Tensor:
        """Compute x log(1 + e^x) + Li2(-e^x)."""
        return x * _softplus(x) - _softplus_integral(x)

    def activation(self, x: Tensor) -> Tensor:
        """Compute x / (1 + e^-x)."""
        return F.silu(x)


def _softplus(x: Tensor) -> Tensor:
    # torch's own threshold of 20 leaves an error of 2e-9.
    return F.softplus(x, threshold=40)


# -Li2(-e^t) as a series in u = log(1 + e^t): du/dt = 1 - e^-u, so that its derivative in u is
# u / (1 - e^-u) = 1 + u/2 + sum_k B_2k u^2k / (2k)!, and it is u + u^2/4 + sum_k B_2k u^(2k+1) / (2k+1)!.
# For t <= 0, u <= log 2 and eight terms leave 1e-18.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_COEFFICIENTS = tuple(B / math.factorial(2 * k + 1) for k, B in enumerate(_BERNOULLI, start=1))


def _softplus_integral(x: Tensor) -> Tensor:
    """Compute -Li2(-e^x), the integral of softplus from -inf."""
    above = x > 0
    u = _softplus(torch.where(above, -x, x))
    w = u.square()
    series = torch.zeros_like(u)
    for coefficient in reversed(_COEFFICIENTS):
        series = coefficient + w * series
    below = u + w / 4 + u * w * series
    # Above 0 by the inversion formula f(x) = pi^2/6 + x^2/2 - f(-x).
    return torch.where(above, math.pi**2 / 6 - below, below) + torch.relu(x).square() / 2
