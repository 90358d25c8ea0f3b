"""What the matrices of a contraction allow, whatever its input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from imixer.implicit.ceiling import nested_bounds
from imixer.implicit.contraction import Contraction
from imixer.implicit.folding import fold
from imixer.implicit.nest import levels
from imixer.implicit.spectral import NormalizedLinear, exact_sigma
from imixer.implicit.transposed import TransposedLinear


@dataclass(frozen=True)
class WorstCase:
    """What the matrices of F^2, ..., F^(L-1) allow, for any input. Each sequence has one entry per level.

    Of an F that is no `Contraction`, only bounds are known, one of each.

    Attributes:
        sigmas: Spectral norms of W1 and W2 as they multiply in evaluation, after normalisation: exact, by SVD in
            float64. Of a wrapped layer, the norm of what it does, wrapper included; infinity if it is not affine, or is
            followed by a normalisation that cannot be folded into it.
        estimates: The norms that the layers themselves know. Power iteration sees them from below, `row_norm` from
            above. None if nothing holds the matrices.
        coeff: Ceiling c that the estimates are held at; None if nothing holds them.
        lipschitz: Lipschitz constants l_2, ..., l_L of the hidden layers' activations.
        bounds: Bounds of the Lipschitz constants, of F as the matrices stand.
        computed_bounds: The bounds with room for rounding. A matrix product with n summands, in a dtype of machine
            epsilon e, is the exact product with a matrix whose norm may be larger by a factor 1 + n e.
        unstated: Modules of an F that is no `Contraction` which state no bound, so that there is none.
    """

    sigmas: tuple[tuple[float, float], ...]
    estimates: tuple[tuple[float, float], ...] | None
    coeff: float | None
    lipschitz: tuple[float, ...]
    bounds: tuple[float, ...]
    computed_bounds: tuple[float, ...]
    unstated: tuple[str, ...] = ()

    @property
    def bound(self) -> float:
        """Bound of F = F^2. Below 1 it implies that all inverses inside exist too."""
        return self.bounds[0]

    @property
    def proves(self) -> bool:
        """Whether F is a contraction also as the model computes it: whether the bound with rounding is below 1."""
        return self.computed_bounds[0] < 1


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
    sigmas = [(_sigma(plain.fc1, plain.bn1), _sigma(plain.fc2, plain.bn2)) for plain in folded]
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


def _sigma(layer: nn.Module, bn: nn.Module) -> float:
    if type(layer) is not nn.Linear or not isinstance(bn, nn.Identity):  # what is left of a fold is no matrix
        return math.inf
    return float(exact_sigma(layer.weight.double()))


def _require_finite(folded: Sequence[Contraction]) -> None:
    for A, level in enumerate(folded, 2):
        for name, layer in (("W1", level.fc1), ("W2", level.fc2)):
            if not all(p.isfinite().all() for p in layer.parameters()):
                raise ValueError(f"{name} of F^{A} is not finite as it multiplies; no bound is to be had of it")


def _rounding(layer: nn.Module) -> float:
    """Get the factor by which a matrix may be larger for its products being rounded, with a summand per input."""
    if type(layer) is not nn.Linear:
        return math.inf
    return rounding(layer.in_features, layer.weight.dtype)


def rounding(summands: int, dtype: torch.dtype) -> float:
    """Return the factor by which products of so many summands may be larger than exact ones.

    Args:
        summands: Summands of each product, the width of the input.
        dtype: The type that they are computed in.
    """
    return 1 + summands * torch.finfo(dtype).eps


def _estimates(level: Contraction) -> tuple[float, float] | None:
    fc2 = level.fc1 if isinstance(level.fc2, TransposedLinear) else level.fc2  # tied: the same matrix
    if not isinstance(level.fc1, NormalizedLinear) or not isinstance(fc2, NormalizedLinear):
        return None
    return float(level.fc1.normalized_sigma()), float(fc2.normalized_sigma())
