"""Solving x = z + F(x) for a contraction F. Needs torch only."""

from imixer.implicit.contraction import Contraction
from imixer.implicit.folding import fold
from imixer.implicit.spectral import SpectralLinear, exact_sigma

__all__ = ["Contraction", "SpectralLinear", "exact_sigma", "fold"]
