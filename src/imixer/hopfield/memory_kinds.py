"""The kinds of associative memory: how patterns become neurons and synapses.

K, N: patterns, neurons of a pattern. P, D, M: patches, pixels per patch, primitives.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from imixer.dtypes import at_least_float32
from imixer.errors import check_options, check_whole, did_you_mean
from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians import Entmax, Exponential, RectifiedPower, Softmax, Tanh
from imixer.hopfield.lagrangians.parts import inverse_temperature, positive
from imixer.hopfield.network import HopfieldNetwork
from imixer.hopfield.neurons import Neurons
from imixer.hopfield.synapses import LinearSynapse

Kind = Literal["classical", "polynomial", "exponential", "modern", "hierarchical"]

Rule = Literal["hebbian", "storkey", "pseudo_inverse"]

BINARY = ("classical", "polynomial", "exponential")

_HIDDEN_TAU = 0.1
_LARGEST_EXPONENT = 60.0  # e^60 leaves float32 room for sums
_MEANS_ITERATIONS = 20
_MOST_COMPARED = 4096  # patterns whose cosines with all others are looked at
_SMALLEST_GAP = {torch.float32: 1e-4, torch.float64: 1e-10}  # of a cosine to 1 that a softmax has the digits for


@dataclass(frozen=True)
class Built:
    """A memory's network.

    Attributes:
        network: Layers from the visible one on.
        scales: Weight over pattern, of each synapse.
        options: All options of the kind.
        stored: Patterns (K, *shape) whose couplings are not the patterns themselves; None otherwise.
    """

    network: HopfieldNetwork
    scales: tuple[float, ...]
    options: dict[str, Any]
    stored: Tensor | None = None


def build(kind: str, patterns: Tensor, options: Mapping[str, Any]) -> Built:
    """Build the network of a kind that stores patterns (K, *shape), finite and of a floating type.

    Raises:
        ValueError: If the kind or an option is unknown or impossible, or a binary kind is given other patterns.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(_KINDS)}{did_you_mean(kind, _KINDS, 1)}")
    check_options(kind, options, list(inspect.signature(_KINDS[kind]).parameters)[1:])
    other = patterns[patterns.abs() != 1]
    if kind in BINARY and len(other):
        raise ValueError(
            f"{kind} stores patterns of -1 and +1, and {len(other)} of the patterns' values are neither, such as "
            f"{float(other[0]):g}; give binarise=True to store +1 where a pattern is above its mean, or another kind"
        )
    return _KINDS[kind](patterns, **options)


def _classical(patterns: Tensor, *, steepness: float = 10.0, rule: Rule = "hebbian") -> Built:
    """Build x = W g, with W = sum_mu xi_mu xi_mu^T / N or another rule's."""
    if rule not in get_args(Rule):
        hint = did_you_mean(str(rule), get_args(Rule), 1)
        raise ValueError(f"rule is {rule!r}; choose one of {', '.join(get_args(Rule))}{hint}")
    options = dict(steepness=steepness, rule=rule)
    visible = Tanh(positive("steepness", steepness))
    if rule == "hebbian":
        scale = 1 / math.sqrt(patterns[0].numel())
        network = _two_layers(patterns, scale, visible, Neurons(len(patterns), tau=_HIDDEN_TAU))
        return Built(network, (scale,), options)
    # Any W without negative eigenvalues is A^T A, which two layers are that A couples.
    xi = patterns.flatten(1).double()
    A = (_pseudo_inverse(xi) if rule == "pseudo_inverse" else _storkey(xi)).to(patterns)
    network = _two_layers(A.unflatten(1, patterns.shape[1:]), 1.0, visible, Neurons(len(A), tau=_HIDDEN_TAU))
    return Built(network, (1.0,), options, patterns)


def _pseudo_inverse(xi: Tensor) -> Tensor:
    """Return A (rank, N) of the projection A^T A on the patterns (K, N), of which each is a fixed point.

    Source: Personnaz, Guyon & Dreyfus 1985.
    """
    _, sizes, directions = torch.linalg.svd(xi, full_matrices=False)
    return directions[sizes > 1e-9 * sizes[0]]


def _storkey(xi: Tensor) -> Tensor:
    """Return A of A^T A = W - its smallest eigenvalue, for Storkey's W of the patterns (K, N), without its diagonal.

    The smallest eigenvalue becomes a coupling of every neuron with itself, as it does in the Hebbian memory: a step of
    all neurons at once then never raises the energy. A copy of a pattern, or of its negative, is left out: stored
    once more, the rule would take away most of what it had stored.

    Source: Storkey 1997.
    """
    N = xi.shape[1]
    W = xi.new_zeros(N, N)
    for i, pattern in enumerate(xi):
        if ((xi[:i] * pattern).sum(1).abs() == N).any():
            continue
        others = W @ pattern - W.diagonal() * pattern
        local = others[:, None] - W * pattern  # what i receives from all but i and j
        local.diagonal().copy_(others)
        W = W + (torch.outer(pattern, pattern) - pattern[:, None] * local.T - local * pattern) / N
    W.diagonal().zero_()
    values, vectors = torch.linalg.eigh(W)
    lifted = values - values[0]
    kept = lifted > 1e-9 * max(float(lifted[-1]), 1e-300)
    return lifted[kept].sqrt()[:, None] * vectors[:, kept].T if kept.any() else xi[:1] / math.sqrt(N)


def _polynomial(patterns: Tensor, *, order: float = 4, threshold: float = 0.2, steepness: float = 10.0) -> Built:
    """Build x = sum_mu xi_mu (max(m_mu, 0) / threshold)^(order - 1): the energy is of that order in the overlaps."""
    if not (math.isfinite(order) and order >= 2):
        raise ValueError(f"order is {order}; the energy of a polynomial memory is of order 2 or more")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give an overlap above 0, up to 1")
    exponent = -(order - 1) * math.log(threshold)
    room = _room(patterns.dtype, patterns[0].numel())
    remedy = _with_wider("raise the threshold or lower the order", patterns.dtype, room)
    _check_drive(exponent, f"order {order} at threshold {threshold}", remedy, room)
    # Couplings c xi give c xi (c N m)^(order - 1), both ways.
    scale = (patterns[0].numel() * threshold) ** (1 / order - 1)
    hidden = Neurons(len(patterns), RectifiedPower(order - 1), tau=_HIDDEN_TAU)
    network = _two_layers(patterns, scale, Tanh(positive("steepness", steepness)), hidden)
    return Built(network, (scale,), dict(order=order, threshold=threshold, steepness=steepness))


def _exponential(
    patterns: Tensor, *, beta: float | Tensor | None = None, threshold: float = 0.0, steepness: float = 10.0
) -> Built:
    """Build x = sum_mu xi_mu e^(beta_mu (m_mu - threshold))."""
    N = patterns[0].numel()
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give an overlap from -1 to 1")
    room = _room(patterns.dtype, max(N * len(patterns), 2 * positive("steepness", steepness)))
    if beta is None:
        beta = min(N, 40.0)
        if 0 < room < beta * (1 - threshold):
            beta = room / (1 - threshold)
    beta = inverse_temperature(beta)
    if isinstance(beta, Tensor) and beta.shape not in ((), (len(patterns),)):
        raise ValueError(f"beta has shape {tuple(beta.shape)}; give one number, or {len(patterns)}, one per pattern")
    sharpest = float(beta.max()) if isinstance(beta, Tensor) else beta
    remedy = _with_wider("lower beta or raise the threshold", patterns.dtype, room)
    _check_drive(sharpest * (1 - threshold), f"beta {sharpest:g} at threshold {threshold}", remedy, room)
    field = patterns.new_full((1,), -threshold * N)
    hidden = Neurons(len(patterns), Exponential(beta / N, cutoff=_LARGEST_EXPONENT), tau=_HIDDEN_TAU, field=field)
    network = _two_layers(patterns, 1.0, Tanh(positive("steepness", steepness)), hidden)
    return Built(network, (1.0,), dict(beta=beta, threshold=threshold, steepness=steepness))


def _modern(
    patterns: Tensor,
    *,
    beta: float | None = None,
    similarity: Literal["dot", "distance"] = "dot",
    alpha: float = 1.0,
) -> Built:
    """Build x = sum_mu xi_mu p_mu with p = softmax(beta <xi_mu, x>), or alpha-entmax."""
    if similarity not in ("dot", "distance"):
        raise ValueError(f"similarity is {similarity!r}; choose dot or distance")
    if isinstance(beta, Tensor) and beta.numel() > 1:
        raise ValueError(
            f"beta has shape {tuple(beta.shape)}, but patterns that share one softmax share its inverse temperature; "
            "give one number, or kind='exponential', which has one per pattern"
        )
    if not 1 <= alpha <= 2:
        raise ValueError(f"alpha is {alpha}; give 1 (softmax) to 2 (sparsemax)")
    squares = patterns.flatten(1).square().sum(1)
    beta = _separating_beta(patterns.flatten(1)) if beta is None else float(inverse_temperature(beta))
    field = -squares / 2 if similarity == "distance" else None
    answer = Softmax(beta) if alpha == 1 else Entmax(alpha, beta)
    network = _two_layers(patterns, 1.0, "identity", Neurons(len(patterns), answer, tau=_HIDDEN_TAU, field=field))
    return Built(network, (1.0,), dict(beta=beta, similarity=similarity, alpha=alpha))


def _separating_beta(xi: Tensor) -> float:
    """Return an inverse temperature at which the patterns (K, N) do not merge: from the largest cosine of two.

    In units of 1 / mean |xi|^2 it is 100, or more if the two most similar patterns need it for all others together to
    weigh e^-5 at a pattern: (5 + log K) / (1 - cosine). Ramsauer et al., arXiv 2008.02217, theorem 5, have the form.
    """
    xi = at_least_float32(xi)
    unit = _mean_square(xi.square().sum(1))
    rows = nn.functional.normalize(xi, dim=1)
    largest = -1.0
    for i in torch.linspace(0, len(xi) - 1, min(len(xi), _MOST_COMPARED)).long().unique().split(256):
        cosines = rows[i] @ rows.T
        # A pattern with itself or its copy, which no inverse temperature tells apart.
        cosines = cosines.masked_fill(cosines > 1 - _SMALLEST_GAP[xi.dtype], -1.0)
        largest = max(largest, float(cosines.max()))
    return max(100.0, (5 + math.log(len(xi))) / (1 - largest)) / unit


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
    check_whole(n_iter=n_iter)
    if n_iter < 1:
        raise ValueError(f"n_iter is {n_iter}; give 1 or more, or no pattern would send anything back")
    _check_patch_size(patch_size, tuple(patterns.shape[1:]))
    patches_KPD = to_patches(patterns, patterns.dim() - 1, patch_size)
    K, P, D = patches_KPD.shape
    dictionary_MD = _dictionary(patches_KPD.flatten(0, 1), primitives)
    M = len(dictionary_MD)
    if isinstance(beta, Tensor) and beta.numel() > 1:
        raise ValueError(f"beta has shape {tuple(beta.shape)}, and all primitives share it; give one number")
    unit = _mean_square(patches_KPD.square().sum(-1))
    beta = 20 / unit if beta is None else float(inverse_temperature(beta))
    strength = positive("feedback", feedback) * unit
    pair = at_least_float32(patches_KPD.flatten(0, 1)), at_least_float32(dictionary_MD)
    which_KP = torch.cdist(*pair).argmin(1).view(K, P)
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
    check_whole(primitives=size)
    if size < 1:
        raise ValueError(f"primitives is {size}; give 1 or more")
    # Start with patches far from each other, then k-means.
    chosen = [0]
    distinct, patches, dtype = at_least_float32(distinct), at_least_float32(patches), patches.dtype
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
    return means.to(dtype)


def _check_patch_size(patch_size: int, shape: tuple[int, ...]) -> None:
    check_whole(patch_size=patch_size)
    sides = shape[-2:]
    if patch_size < 1 or any(side % patch_size for side in sides):
        raise ValueError(
            f"patch_size is {patch_size}; patterns of shape {shape} need a divisor of {' and '.join(map(str, sides))}"
        )


def _room(dtype: torch.dtype, factor: float) -> float:
    """Return the largest exponent of a drive, at most 60, whose energies, larger by a factor, a type still holds."""
    return min(_LARGEST_EXPONENT, math.log(torch.finfo(dtype).max) - math.log(factor) - 1)


def _with_wider(remedy: str, dtype: torch.dtype, room: float) -> str:
    """Add float32 to a remedy where it is the type that leaves less room than e^60."""
    if room >= _LARGEST_EXPONENT:
        return remedy
    return f"{remedy}, or give float32 patterns: energies leave {str(dtype).removeprefix('torch.')}"


def _check_drive(exponent: float, what: str, remedy: str, largest: float = _LARGEST_EXPONENT) -> None:
    """Refuse a full overlap that drives the visible neurons by more than e^largest."""
    if exponent > largest * (1 + 1e-9):  # of rounding, where it is the default
        shown = f"{exponent:.3g}" if exponent < 1000 else f"{exponent:.0f}"
        raise ValueError(f"{what} drives the visible neurons by e^{shown}, beyond e^{largest:.3g}; {remedy}")


def _mean_square(squares: Tensor) -> float:
    """Return the mean of squared norms; 1 if all are 0."""
    return float(squares.mean()) or 1.0
