"""Solving x = z + F(x) for a contraction F: solvers, gradients, certificates. Needs torch only."""

from imixer.implicit.attention import L2Attention
from imixer.implicit.ceiling import ceiling, contraction_bound
from imixer.implicit.certificate import Certificate, certify
from imixer.implicit.contraction import Contraction
from imixer.implicit.convolution import SpectralConv1d, SpectralConv2d, SpectralConv3d, convolution_sigma
from imixer.implicit.determinants import exact_log_det, inverse_log_det, residual_log_det
from imixer.implicit.flow import ResidualFlow
from imixer.implicit.folding import fold
from imixer.implicit.gradients import CheckpointedUnroll, Implicit, Unroll
from imixer.implicit.lipschitz import lipschitz_bound
from imixer.implicit.monotone import MonotoneContraction
from imixer.implicit.regularizers import fixed_point_correction, iterates, jacobian_penalty, trajectory_cost
from imixer.implicit.solution import NotConvergedError, Solution
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard
from imixer.implicit.spectral import NormalizedLinear, OrthogonalLinear, SpectralLinear, exact_sigma
from imixer.implicit.transposed import TransposedLinear

__all__ = [
    "Anderson",
    "Broyden",
    "Certificate",
    "CheckpointedUnroll",
    "Contraction",
    "FixedIterations",
    "Implicit",
    "L2Attention",
    "MonotoneContraction",
    "NormalizedLinear",
    "NotConvergedError",
    "OrthogonalLinear",
    "Picard",
    "ResidualFlow",
    "Solution",
    "SpectralConv1d",
    "SpectralConv2d",
    "SpectralConv3d",
    "SpectralLinear",
    "TransposedLinear",
    "Unroll",
    "ceiling",
    "certify",
    "contraction_bound",
    "convolution_sigma",
    "exact_log_det",
    "exact_sigma",
    "fixed_point_correction",
    "fold",
    "inverse_log_det",
    "iterates",
    "jacobian_penalty",
    "lipschitz_bound",
    "residual_log_det",
    "solve",
    "trajectory_cost",
]
