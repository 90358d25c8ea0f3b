"""Linear layers whose spectral norm is held at a ceiling: W / max(1, sigma(W) / c), and its variations.

Power iteration finds sigma from below: v <- normalise(W^T W v). Only `v` is kept. The estimate
sigma = ||W v|| / ||v|| does not depend on the length of v, so averaging or rounding the buffer (EMA, bf16) cannot
shrink sigma and thereby switch the normalisation off. What is squared on the way is first divided by a power of two
near its largest entry, so that neither the size of W nor this division costs a digit.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imixer.dtypes import at_least_float32
from imixer.errors import check_whole
from imixer.implicit.low_rank import added_weight, changes_weight, chosen_adapters

WARM_UP_STEPS = 64

PowerIteratedT = TypeVar("PowerIteratedT", bound="PowerIterated")

Sigma = Literal["power", "exact", "row_norm"]
Scaling = Literal["soft", "hard"]


def exact_sigma(weight: Tensor) -> Tensor:
    """Compute the largest singular value of a matrix, by SVD in at least float32. Differentiable."""
    return torch.linalg.matrix_norm(at_least_float32(weight), ord=2)


def row_norm_bound(weight: Tensor) -> Tensor:
    """Bound the largest singular value by sqrt(||W||_1 ||W||_inf), in at least float32. Differentiable.

    ||W||_inf is the largest sum of absolute values along a row, and ||W||_1 that along a column. The bound costs one
    pass over the matrix and is never below the truth. It is loose: about 10 times too large for a random matrix of
    256 x 512.
    """
    size = at_least_float32(weight).abs()
    least, _ = _limits(size)
    row, column = size.sum(1).amax(), size.sum(0).amax()
    # Two roots, as the product of the sums would overflow; and none of zero, where it has no derivative.
    bound = row.clamp_min(least).sqrt() * column.clamp_min(least).sqrt()
    return torch.where(row > 0, bound, row)


class NormalizedLinear(nn.Linear):
    """Linear layer that multiplies by a function of its weight, whose spectral norm has a ceiling.

    Write a subclass for a normalisation other than `SpectralLinear` and `OrthogonalLinear`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Add a bias.
        coeff: Ceiling c of the spectral norm. Must be positive.

    Raises:
        ValueError: If coeff is not positive, or a width not whole.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        coeff: float = 0.9,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_whole(in_features=in_features, out_features=out_features)
        if not coeff > 0:
            raise ValueError(f"coeff is {coeff}; the spectral norm ceiling must be above 0")
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.coeff = coeff
        self._lora: tuple[nn.Module, ...] = ()  # in a tuple, lest it be a submodule of what it contains

    def wrapped_by(self, lora: nn.Module | None) -> None:
        """Have what a LoRA around this layer adds to its weight held at the ceiling too.

        `imixer.implicit.Contraction` calls this when PEFT wraps one of its layers.

        Args:
            lora: The wrapper, see `imixer.implicit.low_rank`. None: there is none any more.
        """
        self._lora = () if lora is None else (lora,)

    def free_weight(self) -> Tensor:
        """Return the matrix that is normalised (out_features, in_features): `weight`, and what a LoRA adds to it."""
        added = added_weight(self._lora[0]) if self._lora else None
        weight = self.weight
        if type(weight).__module__.startswith("torchao."):  # whose integers know no product with a vector
            weight = weight.dequantize()
        return weight if added is None else weight + added.to(weight.dtype)

    def normalized_weight(self) -> Tensor:
        """Return the matrix that multiplies the input, (out_features, in_features), in the dtype of `weight`."""
        raise NotImplementedError

    def sigma(self) -> Tensor:
        """Return the spectral norm that the layer has before normalisation, as it is found here."""
        raise NotImplementedError

    def normalized_sigma(self) -> Tensor:
        """Return the spectral norm of `normalized_weight()` as this layer knows it, without looking at that matrix."""
        raise NotImplementedError

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Apply the normalised layer.

        Args:
            x: Input (..., in_features).
            weight: What `normalized_weight()` gave, for an owner that calls the layer several times per forward and
                normalises once. Default: normalise now.
            bias: Bias (out_features,) to add. Default: the layer's own.

        Returns:
            Output (..., out_features).
        """
        if weight is None:
            weight = self.normalized_weight()
            added = added_weight(self._lora[0]) if self._lora else None
            if added is not None:  # by the wrapper, once this has returned
                weight = weight - added.to(weight.dtype)
        return F.linear(x, weight, self.bias if bias is None else bias)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"{super().extra_repr()}, coeff={self.coeff}"


class PowerIterated(nn.Module):
    """Base of layers whose norm is found by power iteration, from the vector `v` that the last one left.

    Choose it for a layer with such a buffer: whatever weights are loaded, the vector is one of theirs. It goes before
    other bases.

    Attributes:
        advances_itself: Whether a training forward runs the power iterations. An owner that calls `advance()` once per
            forward, outside whatever it checkpoints, sets it to False: the replay of a checkpointed region inside a
            compiled graph cannot be told from its forward. `advance_once` does both.
        v: The vector, a buffer; None where the norm is found otherwise.
    """

    v: Tensor | None
    weight: Tensor
    advances_itself: bool
    _loaded_v = False

    def init_non_persistent_buffers(self) -> None:
        """Begin the power iteration anew, and bring it to rest.

        timm and Transformers call this once they have given memory to a model that was built without any. The weight
        must have its numbers. A vector that Transformers has read from a file, and marked as read, stays as it is.
        """
        if self.v is None or getattr(self.v, "_is_hf_initialized", False):
            return
        if not self.v.is_meta:
            with torch.no_grad():
                self.v.copy_(self._first_v(self.v))
            self.warm_up()

    def _first_v(self, v: Tensor) -> Tensor:
        """Draw the vector to begin with, like v, on the CPU."""
        # From a generator of its own: building a model must neither depend on nor advance the global one.
        return torch.randn(v.shape, device="cpu", generator=torch.Generator().manual_seed(0))

    def warm_up(self) -> None:
        """Bring the power iteration to rest: call it whenever `weight` was changed other than by training."""
        raise NotImplementedError

    def advance(self) -> None:
        """Run one training forward's power iterations."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.v is None:
            state_dict.pop(prefix + "v", None)  # from a model with power iteration
            return super()._load_from_state_dict(state_dict, prefix, *args)
        # Weights from elsewhere come without a vector. One that does come belongs to them: moving it would
        # make a resumed run differ from an uninterrupted one.
        self._loaded_v = prefix + "v" in state_dict
        foreign = state_dict.get(prefix + "weight") is not None and not self._loaded_v
        if foreign:
            state_dict[prefix + "v"] = self.v
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not foreign:
            return
        if self.v.device != self.weight.device:  # the weight took the place of one without memory
            self.v = torch.empty_like(self.v, device=self.weight.device)
            self.init_non_persistent_buffers()
        else:
            self.warm_up()


class SpectralLinear(PowerIterated, NormalizedLinear):
    """Linear layer whose spectral norm is held at a ceiling by dividing its weight.

    The parameter `weight` is the free matrix W; what multiplies the input is `normalized_weight()`,
    W / max(1, sigma / coeff). The gradient goes through sigma, so above the ceiling it has no radial component: the
    loss cannot bring a matrix below the ceiling again. Choose it for the paper's normalisation, `OrthogonalLinear`
    where all directions are to be scaled alike.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Add a bias.
        coeff: Ceiling c of the spectral norm (paper: 0.9). Must be positive.
        n_power_iterations: Power iterations n_p per training forward (paper: 8), starting from the last vector.
            None run in evaluation or while a checkpointed forward is replayed.
        sigma: How the spectral norm is found. `power` (paper): by power iteration. It is cheap and from below, so the
            norm can lie a little above the ceiling. `exact`: by SVD at each forward. The ceiling holds to rounding.
            `row_norm`: `row_norm_bound`, from above. It is the cheapest and the ceiling holds for certain; norms end
            far below it.
        scaling: `soft` (paper) leaves smaller norms as they are. `hard` multiplies by c / sigma always, so that the
            norm is the ceiling. A matrix of zeros stays one.
        detach_sigma: Keep the gradient from going through sigma. It then has a radial component, by which a matrix can
            come below its ceiling again.

    Attributes:
        advances_itself: Whether a training forward runs the power iterations, see `PowerIterated`.
        v: The power iteration's vector, (in_features,). None unless sigma is `power`.

    Raises:
        ValueError: If coeff is not positive, n_power_iterations is negative, or sigma or scaling is unknown.

    Source: paper section 4.1; Behrmann et al., arXiv 1811.00995, section 2.1. `hard`: Miyato et al., arXiv 1802.05957.
    """

    v: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        coeff: float = 0.9,
        n_power_iterations: int = 8,
        sigma: Sigma = "power",
        scaling: Scaling = "soft",
        detach_sigma: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_whole(n_power_iterations=n_power_iterations)
        if n_power_iterations < 0:
            raise ValueError(f"n_power_iterations is {n_power_iterations}; give 0 or more")
        if sigma not in get_args(Sigma):
            raise ValueError(f"sigma is {sigma!r}; choose power, exact or row_norm")
        if scaling not in get_args(Scaling):
            raise ValueError(f"scaling is {scaling!r}; choose soft or hard")
        super().__init__(in_features, out_features, bias, coeff=coeff, device=device, dtype=dtype)
        self.n_power_iterations = n_power_iterations
        self.estimator = sigma
        self.scaling = scaling
        self.detach_sigma = detach_sigma
        self.advances_itself = True
        self._v_of: tuple[str, ...] = ()  # the adapters that `v` has been iterated with
        self._other_v: dict[tuple[str, ...], Tensor] = {}
        # In float32 whatever the weights are.
        v = torch.empty(in_features, device=self.weight.device) if sigma == "power" else None
        self.register_buffer("v", v)
        self.init_non_persistent_buffers()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, and bring the power iteration to rest: for memory that was only allocated."""
        super().reset_parameters()
        if "v" in self._buffers:  # not while nn.Linear is being built
            self.init_non_persistent_buffers()

    def _first_v(self, v: Tensor) -> Tensor:
        return F.normalize(super()._first_v(v), dim=0)

    def warm_up(self) -> None:
        """Bring the power iteration to rest: call it whenever `weight` was changed other than by training."""
        if self.v is not None:
            _power_iteration(self.free_weight(), self.v, WARM_UP_STEPS, restart=True)

    def wrapped_by(self, lora: nn.Module | None) -> None:
        """Have what a LoRA around this layer adds to its weight held at the ceiling too."""
        if self._lora:
            (before,) = self._lora
            self._follow(before, chosen_adapters(before) if before.merged else ())  # what stays in the weight
            self._v_of = ()
            self._other_v.clear()
        super().wrapped_by(lora)
        if lora is not None:
            lora.register_load_state_dict_post_hook(_warm_up_if_v_is_missing)

    def _follow_adapters(self) -> None:
        """Give `v` the direction that belongs to the adapters that are in effect now."""
        if self._lora:
            (lora,) = self._lora
            self._follow(lora, chosen_adapters(lora))

    @torch.no_grad()
    def _follow(self, lora: nn.Module, chosen: tuple[str, ...]) -> None:
        if self.v is None or chosen == self._v_of:
            return
        self._other_v[self._v_of] = self.v.clone()
        self._v_of = chosen
        if chosen in self._other_v:
            self.v.copy_(self._other_v[chosen])
        elif changes_weight(lora):  # else `v` would move, and the base with it
            self.warm_up()

    def advance(self) -> None:
        """Run one training forward's power iterations. Those of a frozen matrix have come to rest and stay there."""
        if self.v is not None and _is_trained(self):
            self._follow_adapters()
            _power_iteration(self.free_weight(), self.v, self.n_power_iterations)

    def sigma(self, exact: bool = False) -> Tensor:
        """Return the spectral norm of `weight` as it is found here, or exactly by SVD.

        By power iteration it never exceeds the truth; by `row_norm` it is never below.
        """
        self._follow_adapters()
        return _sigma(self.free_weight(), self.v, "exact" if exact else self.estimator)

    def normalized_weight(self) -> Tensor:
        """Return W / max(1, sigma / c), or W c / sigma, in the dtype of W.

        In training it advances the power iteration first.
        """
        if self.training and self.advances_itself and not replaying():
            self.advance()
        self._follow_adapters()
        return _normalise(
            self.free_weight(), self.v, self.coeff, self.estimator, self.scaling == "hard", self.detach_sigma
        )

    def normalized_sigma(self) -> Tensor:
        """Return min(sigma, c), or c where scaling is `hard`."""
        sigma = self.sigma()
        if self.scaling == "hard":
            return torch.where(sigma > 0, self.coeff, sigma)
        return sigma.clamp_max(self.coeff)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        norm = f"n_power_iterations={self.n_power_iterations}" if self.v is not None else f"sigma={self.estimator}"
        options = ", scaling=hard" * (self.scaling == "hard") + ", detach_sigma=True" * self.detach_sigma
        return f"{super().extra_repr()}, {norm}{options}"


class OrthogonalLinear(NormalizedLinear):
    """Linear layer whose matrix is c Q, Q having orthonormal columns, or rows where it is wide.

    All its singular values are c: it shrinks every direction alike, where a `SpectralLinear` shrinks most of them
    further. Q is the Cayley transform of the free parameter `weight`, in float64. So the ceiling holds to rounding, and
    Q can be differentiated at every weight, that of zeros included. Choose it to have the norm exactly, without an
    iteration; it costs one inverse of the narrower side's size per forward.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Add a bias.
        coeff: The singular values c. Must be positive.

    Raises:
        ValueError: If coeff is not positive.

    Source: Trockman & Kolter, arXiv 2104.07167, and its appendix on semi-orthogonal layers.
    """

    def sigma(self) -> Tensor:
        """Return c: the norm of the free parameter says nothing about the matrix."""
        return torch.full((), self.coeff, device=self.weight.device)

    def normalized_weight(self) -> Tensor:
        """Return c Q, in the dtype of `weight`."""
        return _cayley(self.free_weight(), self.coeff)

    def normalized_sigma(self) -> Tensor:
        """Return c."""
        return self.sigma()


def advance_once(layers: Iterable[PowerIteratedT]) -> list[PowerIteratedT]:
    """Run the power iterations that a training forward of layers would, once however often they are then called.

    Choose it before a forward that evaluates layers several times, or checkpoints them; `release` comes after it.

    Args:
        layers: The layers. Those that are in evaluation, or that another owner has advanced, are left alone.

    Returns:
        The layers that do not run their power iterations until they are released.
    """
    held = [layer for layer in layers if layer.training and layer.advances_itself and not replaying()]
    advance(held)
    for layer in held:
        layer.advances_itself = False
    return held


def release(layers: Iterable[PowerIterated]) -> None:
    """Let layers that `advance_once` gave run their power iterations themselves again."""
    for layer in layers:
        layer.advances_itself = True


def advance(layers: Iterable[PowerIterated]) -> None:
    """Run one training forward's power iterations of several layers.

    On an accelerator those of one shape are run at once, by few large kernels instead of many small ones; on a CPU that
    would be slower.
    """
    alike: dict[Any, list[SpectralLinear]] = {}
    for number, layer in enumerate(layers):
        if not isinstance(layer, SpectralLinear):
            layer.advance()
            continue
        if not _is_trained(layer):
            continue
        apart = isinstance(layer.weight, torch.fx.Proxy) or layer.weight.device.type == "cpu"
        key = number if apart or layer.v is None else (layer.weight.shape, layer.n_power_iterations)
        alike.setdefault(key, []).append(layer)
    for group in alike.values():
        group[0].advance() if len(group) == 1 else _advance_together(group)


def _is_trained(layer: SpectralLinear) -> bool:
    """Tell whether training moves what is normalised: a weight, computed ones included, or a LoRA on a frozen one."""
    return bool(layer._lora) or not isinstance(layer.weight, nn.Parameter) or layer.weight.requires_grad


@torch.no_grad()
def _advance_together(layers: Sequence[SpectralLinear]) -> None:
    """Advance layers of one shape, all with vectors. G: layers, O: out_features, I: in_features."""
    if layers[0].weight.is_meta:
        return
    vectors = [layer.v for layer in layers if layer.v is not None]
    for layer in layers:
        layer._follow_adapters()
    W_GOI = torch.stack([at_least_float32(layer.free_weight()) for layer in layers])
    start_GI = torch.stack(vectors).to(W_GOI.dtype)
    v_GI = start_GI
    # not as matrix products, which GPUs round to TF32
    u_GO = (W_GOI * v_GI[:, None, :]).sum(2)
    scale_G1 = binade(u_GO)
    for step in range(layers[0].n_power_iterations):
        u_GO = (W_GOI * v_GI[:, None, :]).sum(2) if step else u_GO
        v_GI = unit((W_GOI * (u_GO / scale_G1)[:, :, None]).sum(1) / scale_G1)
    for v, moved in zip(vectors, unless_lost(v_GI, start_GI).unbind(), strict=True):
        v.copy_(moved)


def _warm_up_if_v_is_missing(lora: nn.Module, _: object) -> None:
    """Bring the power iteration of a wrapped layer to rest once an adapter's file, which has no `v`, was loaded."""
    layer = lora._modules.get("base_layer")
    if isinstance(layer, SpectralLinear) and not layer._loaded_v:
        layer._other_v.clear()
        layer.warm_up()


@torch.fx.wrap  # one node of a traced graph
@torch.no_grad()
def _power_iteration(weight: Tensor, v: Tensor, steps: int, restart: bool = False) -> None:
    """Move v in place. With `restart`, from another vector if W v vanishes though W does not."""
    if weight.is_meta:  # has no numbers
        return
    W = at_least_float32(weight)
    start = v.to(W.dtype)
    with full_precision(W.device):
        if restart:
            row = W.index_select(0, W.abs().amax(1).argmax(0, keepdim=True))[0]  # no number is asked for
            scale = binade(row)
            seen = torch.linalg.vector_norm(torch.mv(W, start) / scale)
            kept = (seen >= 1e-6 * torch.linalg.vector_norm(row / scale)) & seen.isfinite()
            start = torch.where(~kept, unit(row / scale), start)
        moved, u = start, torch.mv(W, start)
        scale = binade(u)
        for step in range(steps):
            u = torch.mv(W, moved) if step else u
            moved = unit(torch.mv(W.t(), u / scale) / scale)
    v.copy_(unless_lost(moved, start))


torch.fx.node.has_side_effect(_power_iteration)  # lest it be removed from a graph, whose value nothing uses


def unless_lost(v: Tensor, before: Tensor) -> Tensor:
    """Return v (..., I), or what was before where it has no length: W is zero, or not finite."""
    length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return torch.where((length > 0) & length.isfinite(), v, before)


def unit(x: Tensor) -> Tensor:
    """Divide vectors along the last axis by their lengths, if these are not 0."""
    return F.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)


def binade(x: Tensor) -> Tensor:
    """Return a power of two near the largest |x| along the last axis, (..., 1). Dividing by it is exact."""
    tiny, most = _limits(x)
    largest = torch.linalg.vector_norm(x.detach(), ord=math.inf, dim=[-1], keepdim=True)
    return torch.exp2(torch.floor(torch.log2(largest.clamp(tiny, most))))


def _limits(x: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest normal number of float64 or float32. TorchScript knows no `torch.finfo`."""
    if x.dtype == torch.float64:
        return 2.2250738585072014e-308, 1.7976931348623157e308
    return 1.1754943508222875e-38, 3.4028234663852886e38


# Symbolic tracing must not look inside, where the dtype decides. What it leaves is scripted, as timm's extractors are.
@torch.fx.wrap
def _normalise(weight: Tensor, v: Tensor | None, coeff: float, estimator: str, hard: bool, detach: bool) -> Tensor:
    sigma = _sigma(weight, v, estimator)
    if detach:
        sigma = sigma.detach()
    W = at_least_float32(weight)
    if hard:
        # Divided first, as c / sigma of a tiny matrix would overflow; zeros by anything but zero.
        return (W / torch.where(sigma > 0, sigma, coeff) * coeff).to(weight.dtype)
    excess = torch.clamp(sigma / coeff, min=1.0)
    return (W * excess.reciprocal()).to(weight.dtype)


def _sigma(weight: Tensor, v: Tensor | None, estimator: str) -> Tensor:
    if estimator == "exact":
        return exact_sigma(weight)
    if estimator == "row_norm" or v is None:
        return row_norm_bound(weight)
    W = at_least_float32(weight)
    # A copy: the backward may come after the next forward has moved the buffer on.
    v = v.to(W.dtype, copy=True)
    if torch.jit.is_scripting():
        return _stretch(W, v)
    with full_precision(W.device):
        return _stretch(W, v)


def _stretch(W: Tensor, v: Tensor) -> Tensor:
    """Compute ||W v|| / ||v||."""
    u = torch.mv(W, v)
    scale = binade(u)
    return scale[0] * torch.linalg.vector_norm(u / scale) / torch.linalg.vector_norm(v)


@torch.fx.wrap
def _cayley(weight: Tensor, coeff: float) -> Tensor:
    """Compute c [2 K - 1; -2 V K], K = (1 + U - U^T + V^T V)^-1, of W = [U; V] with U square."""
    d_out, d_in = weight.shape
    W = (weight if d_out >= d_in else weight.t()).to(torch.float64)
    n = min(d_out, d_in)
    U, V = W[:n], W[n:]
    if torch.jit.is_scripting():
        Q = coeff * _orthonormal(U, V)
    else:
        with full_precision(W.device):
            Q = coeff * _orthonormal(U, V)
    return (Q if d_out >= d_in else Q.t()).to(weight.dtype)


def _orthonormal(U: Tensor, V: Tensor) -> Tensor:
    one = torch.eye(U.shape[0], dtype=U.dtype, device=U.device)
    K = torch.linalg.inv(one + U - U.t() + V.t() @ V)
    return torch.cat([2 * K - one, -2 * V @ K])


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Turn autocast off on a device."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def replaying() -> bool:
    """Tell whether a backward is running, hence this forward is the replay of a checkpointed one."""
    if torch.compiler.is_compiling():
        return False  # not visible while tracing, see `advances_itself`
    return torch._C._current_graph_task_id() != -1
