"""Lipschitz constants of modules: what they state themselves, what is known of torch's, and what composition makes."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from imixer.implicit.contraction import Contraction
from imixer.implicit.nest import levels
from imixer.implicit.spectral import NormalizedLinear, exact_sigma
from imixer.implicit.transposed import owns_weight
from imixer.implicit.worst_case import rounding, worst_case

GELU_SLOPE = (1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi)  # its largest, at sqrt(2): 1.1289...
GELU_TANH_SLOPE = 1.1289930686587718  # at 1.4185

# Each with respect to the Euclidean norm of a sample, and as it is in evaluation.
_SLOPES: dict[type[nn.Module], float] = {
    nn.AlphaDropout: 1.0,
    nn.CELU: 1.0,
    nn.Dropout: 1.0,
    nn.Dropout1d: 1.0,
    nn.Dropout2d: 1.0,
    nn.Dropout3d: 1.0,
    nn.FeatureAlphaDropout: 1.0,
    nn.Flatten: 1.0,
    nn.GELU: GELU_SLOPE,
    nn.Hardsigmoid: 1 / 6,
    nn.Hardswish: 1.5,
    nn.Hardtanh: 1.0,
    nn.Identity: 1.0,
    nn.LogSigmoid: 1.0,
    nn.Mish: 1.0884981613,  # at 1.4906, rounded up
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.SELU: 1.7580993408473766,  # below 0
    nn.Sigmoid: 0.25,
    nn.SiLU: 1.099839320128867,  # (1 + u) / 2 at 2 u, where u tanh(u) = 1
    nn.Softmax: 0.5,
    nn.Softmin: 0.5,
    nn.Softplus: 1.0,
    nn.Softshrink: 1.0,
    nn.Softsign: 1.0,
    nn.Tanh: 1.0,
    nn.Tanhshrink: 1.0,
    nn.Unflatten: 1.0,
}


def activation_slope(act: nn.Module, name: str | None = None) -> float | None:
    """Return the Lipschitz constant of one of torch's activations, or what the module states; None if not known.

    Args:
        act: The activation.
        name: What to call it in messages. Default: its type.

    Raises:
        ValueError: If a slope that it has been given or has learned is not finite, or it states no number of 0 or more.
    """
    stated = _stated(act)
    if stated is not None:
        return stated
    if isinstance(act, nn.GELU) and act.approximate == "tanh":
        return GELU_TANH_SLOPE
    if type(act) is nn.LeakyReLU:
        return _at_least_1(act.negative_slope, act, name)
    if type(act) is nn.PReLU:
        return _at_least_1(float(act.weight.detach().abs().max()), act, name)
    if type(act) is nn.RReLU:
        return _at_least_1((act.lower + act.upper) / 2, act, name)
    if type(act) is nn.ELU:
        return _at_least_1(act.alpha, act, name)
    return _SLOPES.get(type(act))


def _at_least_1(slope: float, act: nn.Module, name: str | None) -> float:
    """Return the size of the slope that an activation has on one side, or 1, which it has on the other."""
    if not math.isfinite(slope):  # max() would let 1 stand for what is not a number
        raise ValueError(_not_finite(name or type(act).__name__))
    return max(1.0, abs(slope))


def lipschitz_bound(module: nn.Module) -> float:
    """Bound the Lipschitz constant of a module in evaluation, in the Euclidean norm of a sample.

    Choose it to look at one layer; `certify` says whether an F is a contraction. A module states its own by a method
    `lipschitz_bound()` that returns a number, which is taken at its word. `nn.Sequential` multiplies. Known besides are
    linear layers, by SVD, torch's elementwise activations, and `Contraction`.

    Args:
        module: The module.

    Returns:
        The bound; infinity if some part states none.

    Raises:
        ValueError: If a matrix or a slope is not finite, or a method returns anything but a number of 0 or more.
    """
    return _bound(module, "F", [], None)[0]


def stated_bound(module: nn.Module, z: torch.Tensor) -> tuple[float, float, tuple[str, ...]]:
    """Return `lipschitz_bound`, that with room for rounding in each layer, and the parts that state none.

    Args:
        module: The module.
        z: Inputs, samples along the first axis.

    Returns:
        Both bounds, see `WorstCase`, and the parts, each as `name (type)`.
    """
    unstated: list[str] = []
    return *_bound(module, "F", unstated, z), tuple(unstated)


@torch.no_grad()
def _bound(module: nn.Module, name: str, unstated: list[str], z: torch.Tensor | None) -> tuple[float, float]:
    """Return the bound of what a module computes exactly, and of what it computes with rounding."""
    if type(module) is nn.Sequential:
        parts = [_bound(part, f"{name}[{i}]", unstated, z) for i, part in enumerate(module)]
        exact, computed = zip(*parts, strict=True) if parts else ((), ())
        return _product(exact), _product(computed)
    slope = activation_slope(module, f"{name} ({type(module).__name__})")
    if slope is not None:
        return slope, slope * _rounding(module, z)
    if (isinstance(module, NormalizedLinear) or type(module) is nn.Linear) and owns_weight(module):
        return _of_matrix(module, name)
    if isinstance(module, Contraction):
        acts = [module.act, *(level.act_hidden for level in levels(module))]
        slopes = [_bound(act, f"{name}, activation {i}", unstated, None)[0] for i, act in enumerate(acts, 2)]
        worst = worst_case(module, slopes)
        return worst.bounds[0], worst.computed_bounds[0]
    unstated.append(f"{name} ({type(module).__name__})")
    return math.inf, math.inf


def _product(factors: Sequence[float]) -> float:
    return math.inf if math.inf in factors else math.prod(factors)


def _of_matrix(layer: nn.Linear, name: str) -> tuple[float, float]:
    _require_finite(layer, f"{name} ({type(layer).__name__})")
    weight = _in_evaluation(layer) if isinstance(layer, NormalizedLinear) else layer.weight
    sigma = float(exact_sigma(weight.double()))
    return sigma, sigma * rounding(weight.shape[1], weight.dtype)


def _require_finite(module: nn.Module, name: str) -> None:
    if not all(p.isfinite().all() for p in module.parameters()):
        raise ValueError(_not_finite(name))


def _not_finite(name: str) -> str:
    return f"{name} is not finite; no bound is to be had of it"


def _rounding(module: nn.Module, z: torch.Tensor | None) -> float:
    """Get the factor of a module that states its bound; what it sums is not known, and taken to be a sample or less."""
    if z is None or _stated(module) is None:
        return 1.0
    types = [z.dtype, *(p.dtype for p in module.parameters() if p.is_floating_point())]
    return max(rounding(z[0].numel(), dtype) for dtype in types)


def _in_evaluation(layer: NormalizedLinear) -> torch.Tensor:
    training = layer.training
    try:
        return layer.eval().normalized_weight()
    finally:
        layer.train(training)


def _stated(module: nn.Module) -> float | None:
    """Return what a module says of itself, if it does."""
    method = getattr(module, "lipschitz_bound", None)
    if not callable(method):
        return None
    try:
        bound = method()
    except torch.linalg.LinAlgError:  # of a matrix that is not finite
        bound = math.nan
    try:
        value = float(bound)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if math.isnan(value):
        _require_finite(module, type(module).__name__)
    if not value >= 0:
        raise ValueError(
            f"{type(module).__name__}.lipschitz_bound() returns {bound!r}; return a number of 0 or more, infinity if "
            "there is no bound"
        )
    return value
