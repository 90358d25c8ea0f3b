"""The kinds of associative memory: how patterns become neurons and synapses.

K, N: patterns, neurons of a pattern. P, D, M: patches, pixels per patch, primitives.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imixer.errors import did_you_mean
from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians import Exponential, RectifiedPower, Softmax, Tanh
from imixer.hopfield.lagrangians.parts import positive
from imixer.hopfield.network import HopfieldNetwork
from imixer.hopfield.neurons import Neurons
from imixer.hopfield.synapses import LinearSynapse

Kind = Literal["classical", "polynomial", "exponential", "modern", "hierarchical"]

BINARY = ("classical", "polynomial", "exponential")

_HIDDEN_TAU = 0.1
_LARGEST_EXPONENT = 60.0  # e^60 leaves float32 room for sums
_MEANS_ITERATIONS = 20


@dataclass(frozen=True)
class Built:
    """A memory's network.

    Attributes:
        network: Layers from the visible one on.
        scales: Weight over pattern, of each synapse.
        options: All options of the kind.
    """

    network: HopfieldNetwork
    scales: tuple[float, ...]
    options: dict[str, Any]


def build(kind: str, patterns: Tensor, options: Mapping[str, Any]) -> Built:
    """Build the network of a kind that stores patterns (K, *shape), finite and of a floating type.

    Raises:
        ValueError: If the kind or an option is unknown or impossible, or a binary kind is given other patterns.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(_KINDS)}{did_you_mean(kind, _KINDS, 1)}")
    known = list(inspect.signature(_KINDS[kind]).parameters)[1:]
    for name in options:
        if name not in known:
            raise ValueError(f"{kind} has no option {name!r}; known: {', '.join(known)}{did_you_mean(name, known, 1)}")
    other = patterns[patterns.abs() != 1]
    if kind in BINARY and len(other):
        raise ValueError(
            f"{kind} stores patterns of -1 and +1, and {len(other)} of the patterns' values are neither, such as "
            f"{float(other[0]):g}; give binarise=True to store +1 where a pattern is above its mean, or another kind"
        )
    return _KINDS[kind](patterns, **options)


def _classical(patterns: Tensor, *, steepness: float = 10.0) -> Built:
    """Build x = sum_mu xi_mu m_mu."""
    scale = 1 / math.sqrt(patterns[0].numel())
    network = _two_layers(
        patterns, scale, Tanh(positive("steepness", steepness)), Neurons(len(patterns), tau=_HIDDEN_TAU)
    )
    return Built(network, (scale,), dict(steepness=steepness))


def _polynomial(patterns: Tensor, *, order: float = 4, threshold: float = 0.2, steepness: float = 10.0) -> Built:
    """Build x = sum_mu xi_mu (max(m_mu, 0) / threshold)^(order - 1): the energy is of that order in the overlaps."""
    if not (math.isfinite(order) and order >= 2):
        raise ValueError(f"order is {order}; the energy of a polynomial memory is of order 2 or more")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give an overlap above 0, up to 1")
    exponent = -(order - 1) * math.log(threshold)
    _check_drive(exponent, f"order {order} at threshold {threshold}", "raise the threshold or lower the order")
    # Couplings c xi give c xi (c N m)^(order - 1), both ways.
    scale = (patterns[0].numel() * threshold) ** (1 / order - 1)
    hidden = Neurons(len(patterns), RectifiedPower(order - 1), tau=_HIDDEN_TAU)
    network = _two_layers(patterns, scale, Tanh(positive("steepness", steepness)), hidden)
    return Built(network, (scale,), dict(order=order, threshold=threshold, steepness=steepness))


def _exponential(
    patterns: Tensor, *, beta: float | None = None, threshold: float = 0.0, steepness: float = 10.0
) -> Built:
    """Build x = sum_mu xi_mu e^(beta (m_mu - threshold))."""
    N = patterns[0].numel()
    beta = min(N, 40.0) if beta is None else positive("beta", beta)
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give an overlap from -1 to 1")
    _check_drive(beta * (1 - threshold), f"beta {beta:g} at threshold {threshold}", "lower beta or raise the threshold")
    field = patterns.new_full((1,), -threshold * N)
    hidden = Neurons(len(patterns), Exponential(beta / N, cutoff=_LARGEST_EXPONENT), tau=_HIDDEN_TAU, field=field)
    network = _two_layers(patterns, 1.0, Tanh(positive("steepness", steepness)), hidden)
    return Built(network, (1.0,), dict(beta=beta, threshold=threshold, steepness=steepness))


def _modern(patterns: Tensor, *, beta: float | None = None, similarity: Literal["dot", "distance"] = "dot") -> Built:
    """Build x = sum_mu xi_mu softmax_mu(beta <xi_mu, x>)."""
    if similarity not in ("dot", "distance"):
        raise ValueError(f"similarity is {similarity!r}; choose dot or distance")
    squares = patterns.flatten(1).square().sum(1)
    beta = 100 / _mean_square(squares) if beta is None else positive("beta", beta)
    field = -squares / 2 if similarity == "distance" else None
    hidden = Neurons(len(patterns), Softmax(beta), tau=_HIDDEN_TAU, field=field)
    network = _two_layers(patterns, 1.0, "identity", hidden)
    return Built(network, (1.0,), dict(beta=beta, similarity=similarity))


def _hierarchical(
    patterns: Tensor,
    *,
    patch_size: int = 4,
    primitives: int | None = None,
    beta: float | None = None,
    feedback: float = 1.0,
    n_iter: int = 5,
) -> Built:
    """Build x1 = D^T softmax(x2), x2 = D x1 - |D|^2 / 2 + A^T softmax(A softmax(x2)): D dictionary, A assembly."""
    if n_iter < 1:
        raise ValueError(f"n_iter is {n_iter}; give 1 or more, or no pattern would send anything back")
    _check_patch_size(patch_size, tuple(patterns.shape[1:]))
    patches_KPD = to_patches(patterns, patterns.dim() - 1, patch_size)
    K, P, D = patches_KPD.shape
    dictionary_MD = _dictionary(patches_KPD.flatten(0, 1), primitives)
    M = len(dictionary_MD)
    unit = _mean_square(patches_KPD.square().sum(-1))
    beta = 20 / unit if beta is None else positive("beta", beta)
    strength = positive("feedback", feedback) * unit
    which_KP = torch.cdist(patches_KPD.flatten(0, 1), dictionary_MD).argmin(1).view(K, P)
    assembly = strength * nn.functional.one_hot(which_KP, M).to(patterns)
    neurons = {
        "visible": Neurons((P, D)),
        "primitives": Neurons((P, M), Softmax(beta), tau=_HIDDEN_TAU, field=-dictionary_MD.square().sum(1) / 2),
        "patterns": Neurons(K, Softmax(beta), tau=_HIDDEN_TAU**2),
    }
    synapses = [
        (("visible", "primitives"), _synapse(dictionary_MD, axis=-1)),
        (("primitives", "patterns"), _synapse(assembly.flatten(1), axis=None)),
    ]
    options = dict(patch_size=patch_size, primitives=M, beta=beta, feedback=feedback, n_iter=n_iter)
    return Built(HopfieldNetwork(neurons, synapses), (1.0, strength), options)


_KINDS: dict[str, Callable[..., Built]] = {
    "classical": _classical,
    "polynomial": _polynomial,
    "exponential": _exponential,
    "modern": _modern,
    "hierarchical": _hierarchical,
}


def to_patches(x: Tensor, ndim: int, patch_size: int) -> Tensor:
    """Cut (..., *shape), with `ndim` axes of shape, into square patches of its last two axes (..., P, D), or pieces."""
    batch, shape = x.shape[: x.dim() - ndim], x.shape[x.dim() - ndim :]
    if ndim == 1:
        return x.unflatten(-1, (-1, patch_size))
    height, width = (side // patch_size for side in shape[-2:])
    x = x.reshape(*batch, -1, height, patch_size, width, patch_size)
    return torch.einsum("...chpwq->...hwcpq", x).flatten(-3).flatten(-3, -2)


def from_patches(x: Tensor, shape: tuple[int, ...], patch_size: int) -> Tensor:
    """Put (..., P, D) together again to (..., *shape)."""
    if len(shape) == 1:
        return x.flatten(-2)
    height, width = (side // patch_size for side in shape[-2:])
    x = x.unflatten(-1, (-1, patch_size, patch_size)).unflatten(-4, (height, width))
    return torch.einsum("...hwcpq->...chpwq", x).reshape(*x.shape[:-5], *shape)


def _two_layers(patterns: Tensor, scale: float, visible: str | Lagrangian, hidden: Neurons) -> HopfieldNetwork:
    synapse = _synapse(scale * patterns.flatten(1), axis=None)
    neurons = {"visible": Neurons(patterns.shape[1:], visible), "hidden": hidden}
    return HopfieldNetwork(neurons, [(("visible", "hidden"), synapse)])


def _synapse(weight: Tensor, axis: int | None) -> LinearSynapse:
    with torch.device("meta"):  # draws no random numbers
        synapse = LinearSynapse(weight.shape[1], weight.shape[0], axis)
    synapse.weight = nn.Parameter(weight.clone())
    return synapse


def _dictionary(patches: Tensor, size: int | None) -> Tensor:
    """Choose primitives (M, D) for patches (n, D): all that differ, or so many means of the ones near each other."""
    distinct = patches.unique(dim=0)
    if size is None or size >= len(distinct):
        return distinct
    if size < 1:
        raise ValueError(f"primitives is {size}; give 1 or more")
    # Start with patches far from each other, then k-means.
    chosen = [0]
    away = torch.cdist(distinct, distinct[:1])[:, 0]
    while len(chosen) < size:
        chosen.append(int(away.argmax()))
        away = torch.minimum(away, torch.cdist(distinct, distinct[chosen[-1:]])[:, 0])
    means = distinct[chosen]
    for _ in range(_MEANS_ITERATIONS):
        near = torch.cdist(patches, means).argmin(1)
        count = near.bincount(minlength=size)[:, None]
        total = torch.zeros_like(means).index_add_(0, near, patches)
        means = torch.where(count > 0, total / count.clamp(min=1), means)
    return means


def _check_patch_size(patch_size: int, shape: tuple[int, ...]) -> None:
    sides = shape[-2:]
    if patch_size < 1 or any(side % patch_size for side in sides):
        raise ValueError(
            f"patch_size is {patch_size}; patterns of shape {shape} need a divisor of {' and '.join(map(str, sides))}"
        )


def _check_drive(exponent: float, what: str, remedy: str) -> None:
    """Refuse a full overlap that drives the visible neurons by more than e^60."""
    if exponent > _LARGEST_EXPONENT:
        raise ValueError(
            f"{what} drives the visible neurons by e^{exponent:.0f}, beyond e^{_LARGEST_EXPONENT:.0f}; {remedy}"
        )


def _mean_square(squares: Tensor) -> float:
    """Return the mean of squared norms; 1 if all are 0."""
    return float(squares.mean()) or 1.0
