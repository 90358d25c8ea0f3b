"""Solving x = z + F(x) for a contraction F. Needs torch only."""

from imixer.implicit.ceiling import ceiling, contraction_bound
from imixer.implicit.contraction import Contraction
from imixer.implicit.folding import fold
from imixer.implicit.spectral import SpectralLinear, exact_sigma
from imixer.implicit.transposed import TransposedLinear

__all__ = [
    "Contraction",
    "SpectralLinear",
    "TransposedLinear",
    "ceiling",
    "contraction_bound",
    "exact_sigma",
    "fold",
]
