"""The contraction F of x = z + F(x): two linear layers with an activation before each, and room for another inside."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.nn.utils import parametrize

from imixer.errors import as_whole, check_whole
from imixer.implicit.low_rank import wrapped_by_lora
from imixer.implicit.spectral import NormalizedLinear, OrthogonalLinear, Scaling, Sigma, SpectralLinear
from imixer.implicit.transposed import TransposedLinear, owns_weight, refuse_wrapped

Norm = Literal["spectral", "orthogonal", "none", "batch"]


class Contraction(nn.Module):
    """F(x) = W2 g'((1 - F')^-1 (W1 g(x) + b1)) + b2, its Lipschitz constant bounded by what `norm` does to W1 and W2.

    F' is `inner`, one more contraction, for the layer above; without it the inverse is 1. The paper's F^A is F, and
    F^(A+1) is F'.

    Choose it to have the paper's F outside of a model, for `solve` and `certify`; `IMLP` makes its own.

    `F(x, weights)` takes all that F depends on besides x from `F.weights()`: the effective matrices, the biases, and
    what activations learn. So the caller decides how often matrices are normalised: once per forward, however often F
    and all inside it are applied. And `solve(lambda x, *w: F(x, list(w)), z, F.weights())` has a gradient for
    everything, but with norm=batch. The caller draws the dropout too, see `masks`.

    Each evaluation calls `fc1` and `fc2` as modules, and hands a normalised layer its effective matrix: hooks and
    counters see every call. A layer put in their place, such as a LoRA wrapper, is called with x alone. What it adds is
    not held at the ceiling; a warning says so. To have a change of the weight held too, make it a parametrization of
    `fc1.weight`, see `torch.nn.utils.parametrizations`.

    Args:
        features: Width of x, D_S in a token mixing MLP.
        hidden_features: Inner width N_h, or those of a chain of layers, outermost first: each beyond the first nests
            one more contraction.
        act_layer: Makes the activations, or a sequence: g of x, then one per inner width.
        norm: `spectral` bounds the norms of W1 and W2 by coeff, see `SpectralLinear`; `orthogonal` makes all their
            singular values coeff, see `OrthogonalLinear`; `none` leaves them free; `batch` follows each linear layer
            with BatchNorm over its features (paper, Table 3).
        tied: W2 is the transpose of W1, normalised alike: a symmetric coupling. `fc2` then has only a bias.
        coeff: Ceiling c of the spectral norms.
        n_power_iterations: Power iterations n_p per training forward.
        sigma, scaling, detach_sigma: How `spectral` finds the norm and what it does with it, see `SpectralLinear`.
        drop_rate: Probability that a neuron is dropped in training, after each activation inside F: that of
            Algorithm 2, but drawn once per forward. Dropout makes F steeper by 1 / (1 - p) per activation.

    Raises:
        ValueError: If norm is none of the four, sigma, scaling or detach_sigma is asked of another norm than
            `spectral`, drop_rate is not from 0, below 1, a width is not whole or there is no inner one, the activations
            are not one more than the inner widths, or SpectralLinear refuses its arguments.

    Source: paper (24); F^2 = H^3 . G^2 by (40); for any depth the nest (38)-(41).
    """

    def __init__(
        self,
        features: int,
        hidden_features: int | Sequence[int],
        act_layer: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]] = nn.GELU,
        *,
        norm: Norm = "spectral",
        tied: bool = False,
        coeff: float = 0.9,
        n_power_iterations: int = 8,
        sigma: Sigma = "power",
        scaling: Scaling = "soft",
        detach_sigma: bool = False,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if norm not in get_args(Norm):
            raise ValueError(f"norm is {norm!r}; choose spectral, orthogonal, none or batch")
        spectral: dict[str, Any] = dict(sigma=sigma, scaling=scaling, detach_sigma=detach_sigma)
        for option, default in (("sigma", "power"), ("scaling", "soft"), ("detach_sigma", False)):
            if norm != "spectral" and spectral[option] != default:
                raise ValueError(
                    f"{option} is {spectral[option]}, an option of norm=spectral, and norm is {norm}; leave one out"
                )
        if not 0 <= drop_rate < 1:
            raise ValueError(f"the dropout inside F is {drop_rate}; give a probability from 0, below 1")
        check_whole(features=features)
        widths = as_whole(hidden_features)
        if not widths:
            raise ValueError(f"hidden_features is {hidden_features!r}; give a whole number, or one per inner layer")
        hidden, *deeper = widths
        acts = list(act_layer) if isinstance(act_layer, Sequence) else [act_layer] * (len(deeper) + 2)
        if len(acts) != len(deeper) + 2:
            raise ValueError(f"act_layer has {len(acts)} entries; {len(deeper) + 1} inner widths take one more")

        def linear(d_in: int, d_out: int) -> nn.Linear:
            if norm == "spectral":
                options = spectral | dict(coeff=coeff, n_power_iterations=n_power_iterations)
                return SpectralLinear(d_in, d_out, **options, **dd)
            if norm == "orthogonal":
                return OrthogonalLinear(d_in, d_out, coeff=coeff, **dd)
            return nn.Linear(d_in, d_out, **dd)

        def normalise(d: int) -> nn.Module:
            return nn.BatchNorm1d(d, **dd) if norm == "batch" else nn.Identity()

        self.features = features
        self.hidden_features = hidden
        self.drop_rate = drop_rate
        self.act = acts[0]()
        self.fc1 = linear(features, hidden)
        self.bn1 = normalise(hidden)
        self.inner: Contraction | None = None
        if deeper:
            options: dict[str, Any] = dict(norm=norm, tied=tied, coeff=coeff, n_power_iterations=n_power_iterations)
            self.inner = Contraction(hidden, deeper, acts[1:], **options, **spectral, drop_rate=drop_rate, **dd)
        self.act_hidden = acts[1]()
        self.fc2 = TransposedLinear(features, **dd) if tied else linear(hidden, features)
        self.bn2 = normalise(features)

    def weights(self) -> list[Tensor]:
        """Return what F depends on besides x.

        Returns:
            W1, W2, b1 and b2, the matrices as they multiply, after normalisation; then the parameters of `act` and
            `act_hidden`, if they have any, and those of `inner`. If another kind of layer is in the place of `fc1` or
            `fc2`, its parameters instead, after those of `fc1` those of `fc2`.

        Raises:
            ValueError: If the couplings are tied and `fc1` or `fc2` is wrapped.
        """
        weights = _in_order(*layer_tensors(self.fc1, self.fc2))
        weights += [*self.act.parameters(), *self.act_hidden.parameters()]
        if self.inner is not None:
            weights += self.inner.weights()
        return weights

    def masks(self, x: Tensor) -> list[Tensor] | None:
        """Draw one forward's dropout, so that all iterations apply the same map.

        Args:
            x: Any point (..., features) of the shape and dtype that F will be given.

        Returns:
            A factor for each activation of each level, 0 or 1 / (1 - p); None where nothing is dropped.
        """
        if not self.training or self.drop_rate == 0:
            return None
        widths = [self.features, self.hidden_features]
        inner = self.inner.masks(x) if self.inner is not None else None
        return [_dropout_mask(x, width, self.drop_rate) for width in widths] + (inner or [])

    def forward(
        self, x: Tensor, weights: list[Tensor], n_iter: int | None = None, masks: list[Tensor] | None = None
    ) -> Tensor:
        """Apply F to x (..., features).

        Args:
            x: The point.
            weights: What `weights()` gave.
            n_iter: Fixed point iterations n of each inner inverse. Needed if there is one.
            masks: What `masks(x)` gave. Without them nothing is dropped.

        Raises:
            ValueError: If n_iter is missing.
        """
        first, second, of_act, of_act_hidden, deeper = self._divided(weights)
        g = _call(self.act, x, of_act)
        if masks is not None:
            g = g * masks[0]
        h = over_features(self.bn1, _call(self.fc1, g, first))
        if self.inner is not None:
            if n_iter is None:
                raise ValueError("n_iter is missing, and this contraction has another inside: F(x, weights, n_iter)")
            inner_masks = None if masks is None else masks[2:]
            z = h
            for _ in range(n_iter):
                h = z + self.inner(h, deeper, n_iter, inner_masks)
        g = _call(self.act_hidden, h, of_act_hidden)
        if masks is not None:
            g = g * masks[1]
        return over_features(self.bn2, _call(self.fc2, g, second))

    def _divided(self, weights: list[Tensor]) -> list[list[Tensor]]:
        """Divide what `weights()` gave into the tensors of fc1, fc2, act, act_hidden, and `inner`."""
        counts = [_count(part) for part in (self.fc1, self.fc2, self.act, self.act_hidden)]
        ends = list(accumulate(counts))
        parts = [weights[end - count : end] for end, count in zip(ends, counts, strict=True)]
        if counts[:2] == [2, 2]:
            parts[:2] = weights[:4:2], weights[1:4:2]
        return [*parts, weights[ends[-1] :]]

    def __setattr__(self, name: str, value: Any) -> None:
        old = self.__dict__.get("_modules", {}).get(name)
        if isinstance(old, TransposedLinear) and not isinstance(value, TransposedLinear):
            raise ValueError(
                f"{name} is the transpose of fc1, and {type(value).__name__} would untie them. Put the change "
                "into fc1.weight, see torch.nn.utils.parametrizations, or choose tied=False"
            )
        if name in ("fc1", "fc2") and isinstance(value, nn.Module) and _adopt(value):
            return super().__setattr__(name, value)
        if name in ("fc1", "fc2") and isinstance(old, NormalizedLinear) and not isinstance(value, NormalizedLinear):
            kind = type(value).__name__
            warnings.warn(
                f"{name} of a contraction was held at spectral norm {old.coeff:g} and is now {kind}: what {kind} adds "
                "or replaces is not held, and F may be no contraction. Look with imixer.implicit.certify, or `imixer "
                "analyze contraction`. A change of the weight that is to be held too is a parametrization of "
                f"{name}.weight, see torch.nn.utils.parametrizations",
                stacklevel=2,
            )
        super().__setattr__(name, value)


def _adopt(layer: nn.Module) -> bool:
    """Hold at its ceiling what a LoRA adds, if the layer is one around a normalised layer; tell whether it is."""
    if isinstance(layer, NormalizedLinear):
        layer.wrapped_by(None)
    base = wrapped_by_lora(layer)
    if isinstance(base, NormalizedLinear):
        base.wrapped_by(layer)
        return True
    return False


def _within_lora(layer: nn.Module) -> nn.Module:
    """Return the normalised layer inside a LoRA, which knows what the LoRA adds; any other layer as it is."""
    base = wrapped_by_lora(layer)
    return base if isinstance(base, NormalizedLinear) else layer


def parametrizations_once(F: nn.Module) -> AbstractContextManager[Any]:
    """Compute parametrized weights at most once inside, as `torch.nn.utils.parametrize.cached` does."""
    parametrized = any(parametrize.is_parametrized(module) for module in F.modules())
    return parametrize.cached() if parametrized else nullcontext()


def _is_handed(layer: nn.Module) -> bool:
    """Tell whether a layer's matrix is computed once per forward and handed to each call."""
    layer = _within_lora(layer)
    if isinstance(layer, NormalizedLinear):
        return owns_weight(layer)  # else the matrix is known only once the layer is called
    return isinstance(layer, TransposedLinear)


def layer_tensors(fc1: nn.Module, fc2: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """List what each of the two layers of a contraction depends on, see `Contraction.weights`.

    Raises:
        ValueError: If fc2 is the transpose of fc1, and fc1 is wrapped.
    """
    first = _own_tensors(fc1)
    if not isinstance(fc2, TransposedLinear):
        return first, _own_tensors(fc2)
    if _is_handed(fc1):
        W1 = first[0]
    else:
        refuse_wrapped("fc1", fc1, "fc2")
        W1 = cast(Tensor, fc1.weight)
    return first, [W1.t(), *_own_tensors(fc2)]


def _own_tensors(layer: nn.Module) -> list[Tensor]:
    if not _is_handed(layer):
        return list(layer.parameters())
    layer = _within_lora(layer)
    matrix = [layer.normalized_weight()] if isinstance(layer, NormalizedLinear) else []
    bias = cast(Tensor | None, layer.bias)
    return matrix if bias is None else [*matrix, bias]


def _count(layer: nn.Module) -> int:
    """Count the tensors that `weights()` has of a layer."""
    if _is_handed(layer):
        return 1 + (_within_lora(layer).bias is not None)
    return sum(1 for _ in layer.parameters())


def _in_order(first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    if len(first) == len(second) == 2:
        return [first[0], second[0], first[1], second[1]]
    return first + second


def _call(layer: Any, x: Tensor, tensors: list[Tensor]) -> Tensor:
    """Call a layer or an activation on x (..., in), with `tensors` in the place of what it depends on."""
    y: Tensor
    if _is_handed(layer):
        layer = _within_lora(layer)
        weight = tensors[0].t() if isinstance(layer, TransposedLinear) else tensors[0]
        y = layer(x, weight=weight, bias=tensors[1] if len(tensors) > 1 else None)
        return y
    own = dict(layer.named_parameters())
    if all(mine is given for mine, given in zip(own.values(), tensors, strict=True)):
        y = layer(x)
    else:  # the backward pass of a gradient that applies F again, or another precision
        y = torch.func.functional_call(layer, dict(zip(own, tensors, strict=True)), (x,))
    return y


def over_features(bn: nn.Module, x: Tensor) -> Tensor:
    """Apply BatchNorm to the last axis of x (..., features), statistics taken over all others."""
    if isinstance(bn, nn.Identity):
        return x
    rows = x.flatten(0, -2)
    wide = {} if isinstance(x, torch.fx.Proxy) else _widened(bn, x.dtype)
    y: Tensor = (torch.func.functional_call(bn, wide, (rows,)) if wide else bn(rows)).view(x.shape)
    if wide and bn.training:  # what moved is the copy
        for name, buffer in bn.named_buffers():
            if name in wide:
                buffer.copy_(wide[name])
    return y


def _widened(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return those tensors of a module that are narrower than a type, in that type."""
    bits, tensors = torch.finfo(dtype).bits, [*module.named_parameters(), *module.named_buffers()]
    return {name: x.to(dtype) for name, x in tensors if x.is_floating_point() and torch.finfo(x.dtype).bits < bits}


@torch.fx.wrap  # shapes are not known while tracing
def _dropout_mask(x: Tensor, width: int, rate: float) -> Tensor:
    return fn.dropout(x.new_ones((*x.shape[:-1], width)), rate)
