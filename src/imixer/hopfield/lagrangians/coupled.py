"""Lagrangians that couple the neurons along some axes: softmax, its sparse relatives, and the normalisations."""

import math

import torch
from torch import Tensor

from imixer.dtypes import at_least_float32
from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians.parts import Tempered, from_the_end, positive
from imixer.hopfield.lagrangians.registry import register

_ENTMAX_STEPS = 30  # of Newton's, which double the digits once near


class Attentive(Tempered):
    """A Lagrangian whose activation is a distribution over the neurons along some axes, sharper as beta grows.

    Args:
        beta: Inverse temperature at the start. Positive. A tensor of size 1 along the axes, such as (heads, 1), gives
            each distribution its own.
        axis: Axis or axes of the distribution, counted from the end.
        learnable: Make beta an `nn.Parameter`.

    Raises:
        ValueError: If beta is not positive and finite or varies along the axes, or an axis is not counted from the end.
    """

    elementwise = False
    asymptotic_slope = 0.0

    def __init__(
        self, beta: float | Tensor = 1.0, axis: int | tuple[int, ...] = -1, *, learnable: bool = False
    ) -> None:
        super().__init__(beta, learnable=learnable)
        self.axis = from_the_end(axis)
        if isinstance(self.beta, Tensor):
            shape = tuple(self.beta.shape)
            if any(-a <= len(shape) and shape[a] != 1 for a in self.axis):
                raise ValueError(
                    f"beta has shape {shape}, but neurons along axis {axis} share one distribution and so one inverse "
                    "temperature; give size 1 there"
                )

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"{super().extra_repr()}, axis={self.axis}"


@register("softmax")
class Softmax(Attentive):
    """g = softmax(beta x), L = log(sum(e^(beta x))) / beta: the hidden neurons of a modern Hopfield network.

    Choose it for a memory of real-valued patterns that answers with a mean of those near the query. Descent can be
    guaranteed.

    Args:
        beta: Inverse temperature at the start. Positive. A tensor of size 1 along the axes, such as (heads, 1), gives
            each distribution its own.
        axis: Axis or axes of the sum, counted from the end.
        learnable: Make beta an `nn.Parameter`.

    Raises:
        ValueError: If beta is not positive and finite or varies along the axes, or an axis is not counted from the end.

    Source: Krotov & Hopfield, arXiv 2008.06996, model B; Ramsauer et al., arXiv 2008.02217.
    """

    max_slope = 1 / 2

    def density(self, x: Tensor) -> Tensor:
        """Compute log(sum(e^(beta x))) / beta, of size 1 along the axes."""
        z = self.beta * x
        # torch.logsumexp's own gradient loses digits where z is large.
        top = z.detach().amax(self.axis, keepdim=True)
        return (top + torch.exp(z - top).sum(self.axis, keepdim=True).log()) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        """Compute softmax(beta x) over the axes."""
        z = self.beta * x
        if len(self.axis) == 1:
            return torch.softmax(z, self.axis[0])
        e = torch.exp(z - z.detach().amax(self.axis, keepdim=True))
        return e / e.sum(self.axis, keepdim=True)


@register("entmax")
class Entmax(Attentive):
    """g = alpha-entmax(beta x): like softmax, but exactly 0 for neurons that lie too far below the largest.

    With z = beta x, g is the distribution p that maximises <p, z> + H(p), and L is that maximum over beta. H is the
    Tsallis entropy sum(p - p^alpha) / (alpha (alpha - 1)), whose limit at alpha = 1 is softmax's. So
    p = max((alpha - 1) z - tau, 0)^(1 / (alpha - 1)), with the threshold tau at which p sums to 1.

    Choose it for a memory that answers with one pattern or few, and exactly so: a query near a pattern rests on it
    after one step. alpha = 2 is `sparsemax`.

    Args:
        alpha: Above 1, and 2 at most. The larger, the sparser.
        beta: Inverse temperature at the start. Positive. A tensor of size 1 along the axes, such as (heads, 1), gives
            each distribution its own.
        axis: Axis or axes of the distribution, counted from the end.
        learnable: Make beta an `nn.Parameter`.

    Raises:
        ValueError: If alpha is not in (1, 2], beta is not positive and finite or varies along the axes, or an axis is
            not counted from the end.

    Source: Martins & Astudillo, arXiv 1602.02068; Peters et al., arXiv 1905.05702; as memories Hu et al., arXiv
    2309.12673, and Santos et al., arXiv 2402.13725.
    """

    max_slope = 1.0  # approached as many small probabilities stand beside one near 1

    def __init__(
        self,
        alpha: float = 1.5,
        beta: float | Tensor = 1.0,
        axis: int | tuple[int, ...] = -1,
        *,
        learnable: bool = False,
    ) -> None:
        super().__init__(beta, axis, learnable=learnable)
        if not 1 < alpha <= 2:
            raise ValueError(
                f"alpha is {alpha}; give more than 1, up to 2 (sparsemax), or take Softmax, which is the limit at 1"
            )
        self.alpha = float(alpha)

    def density(self, x: Tensor) -> Tensor:
        """Compute the largest <p, x> + H(p) / beta, of size 1 along the axes."""
        z = self.beta * x
        p = self._distribution(z)
        entropy = (p - p**self.alpha) / (self.alpha * (self.alpha - 1))
        top = z.detach().amax(self.axis, keepdim=True)  # p sums to 1, and large z would cost the gradient its digits
        return (top + (p * (z - top) + entropy).sum(self.axis, keepdim=True)) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        """Compute alpha-entmax(beta x) over the axes."""
        return self._distribution(self.beta * x)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"alpha={self.alpha:g}, {super().extra_repr()}"

    def _distribution(self, z: Tensor) -> Tensor:
        scaled = (self.alpha - 1) * (z - z.detach().amax(self.axis, keepdim=True))
        # At -1 the largest neuron alone has the weight 1. The sum is convex in the threshold, so that Newton's steps
        # rise from there to where it is 1, and never pass.
        tau = torch.full_like(scaled.detach().amax(self.axis, keepdim=True), -1.0)
        for _ in range(_ENTMAX_STEPS):
            tau = self._newton(scaled.detach(), tau)
        for _ in range(2):  # with gradients, of the first order and then of the second
            tau = self._newton(scaled, tau)
        return self._power(scaled - tau, 1 / (self.alpha - 1))

    def _newton(self, scaled: Tensor, tau: Tensor) -> Tensor:
        exponent = 1 / (self.alpha - 1)
        total = self._power(scaled - tau, exponent).sum(self.axis, keepdim=True)
        slope = exponent * self._power(scaled - tau, exponent - 1).sum(self.axis, keepdim=True)
        return tau + (total - 1) / slope

    @staticmethod
    def _power(x: Tensor, exponent: float) -> Tensor:
        """Compute x^exponent where x is positive, 0 elsewhere; so are its derivatives."""
        positive_part = x > 0
        return torch.where(positive_part, torch.where(positive_part, x, 1.0) ** exponent, 0.0)


@register("sparsemax")
class Sparsemax(Entmax):
    """g = sparsemax(beta x), the point of the simplex nearest to beta x: `Entmax` with alpha = 2.

    Choose it for the sparsest of them; a pattern that leads by 1 / beta has the whole weight.

    Args:
        beta: Inverse temperature at the start. Positive. A tensor of size 1 along the axes, such as (heads, 1), gives
            each distribution its own.
        axis: Axis or axes of the distribution, counted from the end.
        learnable: Make beta an `nn.Parameter`.

    Raises:
        ValueError: If beta is not positive and finite or varies along the axes, or an axis is not counted from the end.

    Source: Martins & Astudillo, arXiv 1602.02068; as a memory Hu et al., arXiv 2309.12673.
    """

    def __init__(
        self, beta: float | Tensor = 1.0, axis: int | tuple[int, ...] = -1, *, learnable: bool = False
    ) -> None:
        super().__init__(2.0, beta, axis, learnable=learnable)


@register("layer_norm")
class LayerNorm(Lagrangian):
    """g = gain (x - mean) / sqrt(var + eps) + shift, L = N gain sqrt(var + eps) + sum(shift x).

    N is the number of neurons along the axes. The gain is one number: with one per neuron, torch's affine weight, g is
    not the gradient of anything.

    Choose it for the visible neurons of a mixer or an attention network, in torch's scaling. Where the gain is not
    negative, descent can be guaranteed.

    Args:
        axis: Axis or axes that are normalised, counted from the end.
        eps: Added to the variance. Positive.
        gain: Factor. A negative one makes L concave.
        shift: Added; a tensor must broadcast to x. An `nn.Parameter` stays one, another tensor becomes a buffer.

    Raises:
        ValueError: If an axis is not counted from the end, eps not positive, or gain or shift not finite.

    Source: Tang & Kopp, arXiv 2105.15034; paper (8), (10), (36), which differ by the factor sqrt(N): see
    `UnitLayerNorm`.
    """

    elementwise = False
    zero_mode = True
    asymptotic_slope = 0.0
    shift: float | Tensor

    def __init__(
        self,
        axis: int | tuple[int, ...] = -1,
        eps: float = 1e-6,
        gain: float = 1.0,
        shift: float | Tensor = 0.0,
    ) -> None:
        super().__init__()
        self.axis = from_the_end(axis)
        self.eps = positive("eps", eps)
        if not math.isfinite(gain):
            raise ValueError(f"gain is {gain}; it must be finite")
        self.gain = gain
        if not torch.as_tensor(shift).isfinite().all():
            raise ValueError(f"shift is {shift}; it must be finite")
        if isinstance(shift, Tensor) and not isinstance(shift, torch.nn.Parameter):
            self.register_buffer("shift", shift)
        else:
            self.shift = shift

    @property
    def convex(self) -> bool:
        """Whether the gain is not negative."""
        return self.gain >= 0

    @property
    def lipschitz(self) -> float:
        """Slope where all neurons are alike, |gain| / sqrt(eps)."""
        return abs(self.gain) / math.sqrt(self.eps)

    def density(self, x: Tensor) -> Tensor:
        """Compute N gain sqrt(var + eps) + sum(shift x), of size 1 along the axes."""
        wide = at_least_float32(x)
        deviation = self._deviation(wide - wide.mean(self.axis, keepdim=True))
        neurons = math.prod([x.shape[axis] for axis in self.axis])
        tilt = (self._shift_for(x) * wide).sum(self.axis, keepdim=True)
        return (neurons * self.gain * deviation + tilt).to(x.dtype)

    def activation(self, x: Tensor) -> Tensor:
        """Compute gain (x - mean) / sqrt(var + eps) + shift."""
        wide = at_least_float32(x)
        centred = wide - wide.mean(self.axis, keepdim=True)
        return (self.gain * centred / self._deviation(centred) + self._shift_for(x)).to(x.dtype)

    def _deviation(self, centred: Tensor) -> Tensor:
        return torch.sqrt(centred.square().mean(self.axis, keepdim=True) + self.eps)

    def _shift_for(self, x: Tensor) -> float | Tensor:
        shift = self.shift
        if isinstance(shift, Tensor):
            pairs = list(zip(reversed(shift.shape), reversed(x.shape), strict=False))
            if shift.ndim > x.ndim or any(mine not in (1, size) for mine, size in pairs):
                raise ValueError(f"shift {tuple(shift.shape)} does not broadcast to x {tuple(x.shape)}")
        return shift

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        shift = tuple(self.shift.shape) if isinstance(self.shift, Tensor) else f"{self.shift:g}"
        return f"axis={self.axis}, eps={self.eps:g}, gain={self.gain:g}, shift={shift}"


@register("spherical")
class Spherical(Lagrangian):
    """g = radius x / sqrt(sum(x^2) + eps), L = radius sqrt(sum(x^2) + eps): neurons projected on a sphere.

    Choose it for visible neurons of which only the direction counts. Descent can be guaranteed.

    Args:
        axis: Axis or axes of the sum, counted from the end.
        radius: Radius of the sphere. Positive.
        eps: Added to the sum of squares. Positive.

    Raises:
        ValueError: If an axis is not counted from the end, or radius or eps not positive.

    Source: Krotov & Hopfield, arXiv 2008.06996, model C.
    """

    elementwise = False
    zero_mode = True
    asymptotic_slope = 0.0

    def __init__(self, axis: int | tuple[int, ...] = -1, radius: float = 1.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.axis = from_the_end(axis)
        self.radius = positive("radius", radius)
        self.eps = positive("eps", eps)

    @property
    def lipschitz(self) -> float:
        """Slope at 0, radius / sqrt(eps)."""
        return self.radius / math.sqrt(self.eps)

    def density(self, x: Tensor) -> Tensor:
        """Compute radius sqrt(sum(x^2) + eps), of size 1 along the axes."""
        return (self.radius * self._norm(at_least_float32(x))).to(x.dtype)

    def activation(self, x: Tensor) -> Tensor:
        """Compute radius x / sqrt(sum(x^2) + eps)."""
        wide = at_least_float32(x)
        return (self.radius * wide / self._norm(wide)).to(x.dtype)

    def _norm(self, wide: Tensor) -> Tensor:
        return torch.sqrt(wide.square().sum(self.axis, keepdim=True) + self.eps)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"axis={self.axis}, radius={self.radius:g}, eps={self.eps:g}"


@register("unit_layer_norm")
class UnitLayerNorm(Spherical):
    """g = (x - mean) / sqrt(sum((x - mean)^2) + eps), L = sqrt(sum((x - mean)^2) + eps): LayerNorm to length 1.

    Choose it to compute in the paper's own scaling; `layer_norm`, torch's, is sqrt(N) times as long.

    Args:
        axis: Axis or axes that are normalised, counted from the end.
        eps: Added to the sum of squares, N times that of `layer_norm`. Positive; the paper's is 0, which leaves g
            undefined where all neurons are alike.

    Raises:
        ValueError: If an axis is not counted from the end, or eps not positive.

    Source: paper (8), (10), (36); Krotov & Hopfield, arXiv 2008.06996, model C.
    """

    def __init__(self, axis: int | tuple[int, ...] = -1, eps: float = 1e-6) -> None:
        super().__init__(axis, eps=eps)

    def density(self, x: Tensor) -> Tensor:
        """Compute sqrt(sum((x - mean)^2) + eps), of size 1 along the axes."""
        return super().density(self._centred(x)).to(x.dtype)

    def activation(self, x: Tensor) -> Tensor:
        """Compute (x - mean) / sqrt(sum((x - mean)^2) + eps)."""
        return super().activation(self._centred(x)).to(x.dtype)

    def _centred(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        return wide - wide.mean(self.axis, keepdim=True)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"axis={self.axis}, eps={self.eps:g}"
