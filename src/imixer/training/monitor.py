"""Monitor how well the inverses of an iMixer converge while it is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from imixer.implicit import NormalizedLinear, TransposedLinear
from imixer.implicit.ceiling import nested_bounds
from imixer.implicit.contraction import Contraction
from imixer.implicit.folding import plain_linear
from imixer.implicit.nest import levels
from imixer.implicit.spectral import exact_sigma
from imixer.models.activations import slope_or_infinity
from imixer.models.probe import BlockActivations, capture_activations, implicit_layers


def convergence(model: nn.Module, images: Tensor) -> list[dict[str, float]]:
    """Measure how well the fixed point iteration of each block converges on some images.

    Choose it to watch training at little cost; `imixer analyze contraction` measures more, on a finished run.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W).

    Returns:
        For each block with an inverse, the number `block`, and

        - `residual`, ||x - G(v) - F(x)|| / ||x|| over all images: what the iterations leave of the equation;
        - `sigma`, the largest spectral norm of the matrices in F before normalisation, as their layers estimate it;
        - `bound`, a bound of F's Lipschitz constant by norms and activations. Below 1 it guarantees that the inverse
          exists for any input. It is infinite where nothing is guaranteed.

        A model without inverses gives an empty list.

    Source: paper section 4.1 and (38)-(41); the bound is ours.
    """
    if not implicit_layers(model):
        return []
    return [_measure(inside) for inside in capture_activations(model, images)]


@torch.no_grad()
def _measure(inside: BlockActivations) -> dict[str, float]:
    F, left = inside.F, inside.residual(torch.float32)
    nest = levels(F)
    free, held = [_sigmas(level) for level in nest], [_sigmas(level, normalized=True) for level in nest]
    slopes = [slope_or_infinity(act) for act in (F.act, *(level.act_hidden for level in nest))]
    gains = [s1 * s2 * slopes[A] * slopes[A + 1] for A, (s1, s2) in enumerate(held)]
    return {
        "block": inside.block,
        "residual": float(left.norm() / inside.x.float().norm()),
        "sigma": max(max(pair) for pair in free),
        "bound": nested_bounds(gains)[0],
    }


def _sigmas(level: Contraction, normalized: bool = False) -> tuple[float, float]:
    first = _sigma(level.fc1, level.features, normalized)
    if isinstance(level.fc2, TransposedLinear):  # the same matrix
        return first, first
    return first, _sigma(level.fc2, level.hidden_features, normalized)


def _sigma(layer: nn.Module, in_features: int, normalized: bool) -> float:
    if isinstance(layer, NormalizedLinear):
        return float(layer.normalized_sigma() if normalized else layer.sigma())
    plain = plain_linear(layer, in_features)  # of a wrapped layer, what it does
    return float(exact_sigma(plain.weight)) if type(plain) is nn.Linear else math.inf
