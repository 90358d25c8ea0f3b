"""How large the spectral norms may be for every nested inverse to exist."""

import math
from collections.abc import Sequence


def contraction_bound(coeff: float, lipschitz: Sequence[float]) -> float:
    """Bound of the Lipschitz constant of F^2 if no spectral norm exceeds `coeff`. Below 1, F^2 is a contraction.

    Innermost first, Lip(F^A) <= coeff^2 l_A l_(A+1) / (1 - Lip(F^(A+1))) with F^L = 0. However few iterations stand in
    for an inner inverse, its bound 1 / (1 - Lip) holds.

    Args:
        coeff: Ceiling c of the spectral norms.
        lipschitz: Lipschitz constants l_2, ..., l_L of the hidden layers' activations.

    Returns:
        The bound; infinity if an inner map need not be a contraction. It is 0 for L = 2, where there is no F.

    Source: ours, from the nest of paper (39)-(40); the paper has no bounds.
    """
    return _bounds(coeff, lipschitz)[-1]


def nested_bounds(gains: Sequence[float]) -> list[float]:
    """Bound the Lipschitz constants of F^2, ..., F^(L-1), each F^A being steeper by 1 / (1 - Lip(F^(A+1))).

    Args:
        gains: What F^2, ..., F^(L-1) would have without the inverse inside: of F^A, l_A l_(A+1) times the spectral
            norms of its two matrices.

    Returns:
        The bounds in that order; infinity from the first inner map on that need not be a contraction.

    Source: ours, from the nest of paper (39)-(40); the paper has no bounds.
    """
    bounds: list[float] = []
    inner = 0.0
    for gain in reversed(gains):
        inner = gain / (1 - inner) if inner < 1 else math.inf
        bounds.insert(0, inner)
    return bounds


def ceiling(lipschitz: Sequence[float], bound: float = 0.81) -> float:
    """Find the largest ceiling c of the spectral norms for which no map of the nest, F^2 to F^(L-1), exceeds `bound`.

    Args:
        lipschitz: Lipschitz constants l_2, ..., l_L of the hidden layers' activations.
        bound: Largest Lipschitz constant wanted: each step of a fixed point iteration shrinks its error by as much.
            The default is what the paper's c = 0.9 gives with L = 3 and an activation of slope 1.

    Returns:
        c; infinity for L = 2, where there is no F.

    Raises:
        ValueError: If a Lipschitz constant is not positive and finite, or bound not between 0 and 1.
    """
    if not all(0 < slope < math.inf for slope in lipschitz):
        raise ValueError(f"lipschitz is {list(lipschitz)}; each constant must be above 0 and finite")
    if not 0 < bound < 1:
        raise ValueError(f"bound is {bound}; give a number between 0 and 1")
    if len(lipschitz) < 2:
        return math.inf
    low, high = 0.0, 2 * math.sqrt(bound / max(_products(lipschitz)))
    while low < (middle := (low + high) / 2) < high:
        if max(_bounds(middle, lipschitz)) <= bound:
            low = middle
        else:
            high = middle
    return low


def _bounds(coeff: float, lipschitz: Sequence[float]) -> list[float]:
    """Bound F^L, F^(L-1), ..., F^2."""
    return [0.0, *reversed(nested_bounds([coeff * coeff * product for product in _products(lipschitz)]))]


def _products(lipschitz: Sequence[float]) -> list[float]:
    """Compute l_A l_(A+1) for A = 2, ..., L-1."""
    return [lipschitz[i] * lipschitz[i + 1] for i in range(len(lipschitz) - 1)]
