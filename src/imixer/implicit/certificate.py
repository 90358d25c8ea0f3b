"""Is F a contraction? Whatever the input, by its matrices; and at given inputs, by its Jacobian."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imixer.implicit.ceiling import nested_bounds
from imixer.implicit.contraction import Contraction
from imixer.implicit.folding import fold
from imixer.implicit.nest import fixed_point, jacobian_norms, levels
from imixer.implicit.spectral import NormalizedLinear, exact_sigma
from imixer.implicit.transposed import TransposedLinear
from imixer.verdict import Verdict


@dataclass(frozen=True)
class WorstCase:
    """What the matrices of F^2, ..., F^(L-1) allow, for any input. Each sequence has one entry per level.

    Attributes:
        sigmas: Spectral norms of W1 and W2 as they multiply in evaluation, after normalisation: exact, by SVD in
            float64. Of a wrapped layer, the norm of what it does, wrapper included; infinity if it is not affine.
        estimates: The norms that the layers themselves know. Power iteration sees them from below, `row_norm` from
            above. None if nothing holds the matrices.
        coeff: Ceiling c that the estimates are held at; None if nothing holds them.
        lipschitz: Lipschitz constants l_2, ..., l_L of the hidden layers' activations.
        bounds: Bounds of the Lipschitz constants, of F as the matrices stand.
        computed_bounds: The bounds with room for rounding. A matrix product with n summands, in a dtype of machine
            epsilon e, is the exact product with a matrix whose norm may be larger by a factor 1 + n e.
    """

    sigmas: tuple[tuple[float, float], ...]
    estimates: tuple[tuple[float, float], ...] | None
    coeff: float | None
    lipschitz: tuple[float, ...]
    bounds: tuple[float, ...]
    computed_bounds: tuple[float, ...]

    @property
    def bound(self) -> float:
        """Bound of F = F^2. Below 1 it implies that all inverses inside exist too."""
        return self.bounds[0]

    @property
    def proves(self) -> bool:
        """Whether F is a contraction also as the model computes it: whether the bound with rounding is below 1."""
        return self.computed_bounds[0] < 1


@dataclass(frozen=True)
class OnData:
    """What F^2, ..., F^(L-1) do at the fixed points of given inputs z (..., D).

    Attributes:
        x: The fixed point x^2 = z + F(x^2) with all inverses inside exact, (..., D).
        converged: Whether it was found, (...).
        approaching: Whether the search still came nearer at its last step, (...).
        norms: Largest singular value of each level's Jacobian there, (L - 2, ...).
        settled: Whether the power iteration met its tolerance, (L - 2, ...). If not, the norm is a lower bound.
    """

    x: Tensor
    converged: Tensor
    approaching: Tensor
    norms: Tensor
    settled: Tensor

    @property
    def holds(self) -> bool:
        """Whether all fixed points were found and all norms are below 1."""
        return bool(self.converged.all() and (self.norms < 1).all())

    @property
    def refutes(self) -> bool:
        """Whether some norm is not below 1, or iterating leads nowhere at some input.

        A search that ran out of steps while it still came nearer refutes nothing.
        """
        return not bool((self.converged | self.approaching).all() and (self.norms < 1).all())


@dataclass(frozen=True)
class Certificate:
    """What is known of a contraction: `worst` speaks about any input, `data` about the given ones."""

    worst: WorstCase
    data: OnData

    @property
    def verdict(self) -> Verdict:
        """`guaranteed` by the bound, `observed` at all given inputs, `violated` at some, or `undecided`.

        A proof outranks whatever a search found or did not find. Undecided are inputs whose fixed points were not
        found, without a sign that there are none.
        """
        if self.worst.proves:
            return "guaranteed"
        if self.data.refutes:
            return "violated"
        return "observed" if self.data.holds else "undecided"


def certify(
    F: Contraction, lipschitz: Sequence[float], z: Tensor, *, tol: float = 1e-3, max_steps: int = 200
) -> Certificate:
    """Examine one contraction by its matrices and at given inputs.

    Args:
        F: The contraction, in evaluation mode. It is left as it is.
        lipschitz: Lipschitz constants l_2, ..., l_L of the activations; infinity where unknown.
        z: Inputs (..., D).
        tol: Tolerance of the power iteration, see `jacobian_norms`.
        max_steps: Its largest number of steps.

    Returns:
        The certificate, whose `verdict` is the summary.

    Raises:
        ValueError: If lipschitz has not one entry per activation, a matrix is not finite, tol is not positive or
            max_steps below 1.
    """
    return Certificate(worst_case(F, lipschitz), on_data(F, z, tol=tol, max_steps=max_steps))


@torch.no_grad()
def worst_case(F: Contraction, lipschitz: Sequence[float]) -> WorstCase:
    """Bound the Lipschitz constant of F by its matrices and activations.

    Lip(F^A) <= sigma(W1) sigma(W2) l_A l_(A+1) / (1 - Lip(F^(A+1))). BatchNorm, in evaluation, belongs to its matrix.

    Args:
        F: The contraction. It is left as it is.
        lipschitz: Lipschitz constants l_2, ..., l_L of the activations; infinity where unknown.

    Raises:
        ValueError: If their number is not that of the activations, or a matrix is not finite.

    Source: Behrmann et al., arXiv 1811.00995, section 2; paper (38)-(41) for the nest; its bound is ours.
    """
    nest = levels(F)
    if len(lipschitz) != len(nest) + 1:
        raise ValueError(f"lipschitz has {len(lipschitz)} entries; this contraction has {len(nest) + 1} activations")
    folded = levels(fold(F))
    _require_finite(folded)
    sigmas = [(_sigma(plain.fc1), _sigma(plain.fc2)) for plain in folded]
    gains = [s1 * s2 * lipschitz[A] * lipschitz[A + 1] for A, (s1, s2) in enumerate(sigmas)]
    rounded = [gain * _rounding(F.fc1) * _rounding(F.fc2) for gain, F in zip(gains, folded, strict=True)]
    estimates = [_estimates(level) for level in nest]
    known = tuple(pair for pair in estimates if pair is not None)
    held = len(known) == len(nest)
    return WorstCase(
        sigmas=tuple(sigmas),
        estimates=known if held else None,
        coeff=nest[0].fc1.coeff if held and isinstance(nest[0].fc1, NormalizedLinear) else None,
        lipschitz=tuple(lipschitz),
        bounds=tuple(nested_bounds(gains)),
        computed_bounds=tuple(nested_bounds(rounded)),
    )


def on_data(F: Contraction, z: Tensor, *, tol: float = 1e-3, max_steps: int = 200) -> OnData:
    """Solve x = z + F(x) and measure the Jacobians there, in float64.

    F acts on the last axis; the Jacobian of a whole image, all its channels at once, is block diagonal and its norm the
    largest of theirs.

    Args:
        F: The contraction, in evaluation mode. It is left as it is.
        z: (..., D).
        tol: Tolerance of the power iteration, see `jacobian_norms`.
        max_steps: Its largest number of steps.

    Raises:
        ValueError: If tol is not positive or max_steps below 1.
    """
    points = z.detach().double().flatten(0, -2)
    solved = fixed_point(F, points)
    norms, settled = jacobian_norms(F, solved.states, tol=tol, max_steps=max_steps)
    axes = z.shape[:-1]
    return OnData(
        x=solved.states[0].view(z.shape),
        converged=solved.converged.view(axes),
        approaching=solved.approaching.view(axes),
        norms=norms.view(len(norms), *axes),
        settled=settled.view(len(norms), *axes),
    )


def iterations_needed(rate: float, error: float) -> float:
    """Count the iterations n after which rate^n <= error.

    x <- z + F(x) shrinks ||x - x*||, x* being the fixed point, by the Lipschitz constant of F per iteration, or more.

    Args:
        rate: Lipschitz constant of F, or a bound of it; or, for an estimate instead of a promise, its Jacobian's norm.
        error: ||x_n - x*|| wanted, relative to ||x_0 - x*|| = ||z - x*||.

    Returns:
        n; infinity if rate is 1 or more.

    Raises:
        ValueError: If rate is negative, or error not between 0 and 1.
    """
    if not rate >= 0 or not 0 < error < 1:
        raise ValueError(
            f"rate and error are {rate} and {error}; give a rate of 0 or more and an error between 0 and 1"
        )
    if rate >= 1:
        return math.inf
    if rate == 0:
        return 1
    # Without the slack, rounding would ask for one iteration more where rate^n is error exactly.
    return math.ceil(math.log(error) / math.log(rate) * (1 - 1e-12))


def _sigma(layer: nn.Module) -> float:
    return float(exact_sigma(layer.weight.double())) if type(layer) is nn.Linear else math.inf


def _require_finite(folded: Sequence[Contraction]) -> None:
    for A, level in enumerate(folded, 2):
        for name, layer in (("W1", level.fc1), ("W2", level.fc2)):
            if not all(p.isfinite().all() for p in layer.parameters()):
                raise ValueError(f"{name} of F^{A} is not finite as it multiplies; no bound is to be had of it")


def _rounding(layer: nn.Module) -> float:
    """Get the factor by which a matrix may be larger for its products being rounded, with a summand per input."""
    if type(layer) is not nn.Linear:
        return math.inf
    return 1 + layer.in_features * torch.finfo(layer.weight.dtype).eps


def _estimates(level: Contraction) -> tuple[float, float] | None:
    fc2 = level.fc1 if isinstance(level.fc2, TransposedLinear) else level.fc2  # tied: the same matrix
    if not isinstance(level.fc1, NormalizedLinear) or not isinstance(fc2, NormalizedLinear):
        return None
    return float(level.fc1.normalized_sigma()), float(fc2.normalized_sigma())
