"""The L-layer chain x1 - x2 - ... - xL of the paper."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Optional

import torch

from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.network import HopfieldNetwork
from imixer.hopfield.neurons import Neurons
from imixer.hopfield.synapses import LinearSynapse


def chain(
    shapes: Sequence[int | Sequence[int]],
    lagrangians: Sequence[str | Lagrangian],
    *,
    axis: Optional[int] = -1,
    tied: bool = True,
    tau: float | Sequence[float] = 1.0,
    decay: float | Sequence[float] = 1.0,
    field: bool = False,
) -> HopfieldNetwork:
    """Layers x1 (visible) to xL, each coupled linearly to its neighbours.

    Args:
        shapes: Shape of each layer. They differ along `axis` only.
        lagrangians: Lagrangian of each layer, an instance or a name.
        axis: Axis that the couplings mix, counted from the end; None for all.
        tied: Symmetric couplings.
        tau: Time constant of each layer, or of all.
        decay: alpha of each layer, or of all.
        field: Give every layer an external field, zero at first, one number per neuron.

    Raises:
        ValueError: If the numbers of shapes, Lagrangians, time constants or decays differ, or a layer is impossible.

    Source: paper (31)-(32).
    """
    count = len(shapes)
    taus, decays = _each(tau, count), _each(decay, count)
    for name, values in (("lagrangians", lagrangians), ("tau", taus), ("decay", decays)):
        if len(values) != count:
            raise ValueError(f"{count} shapes but {len(values)} {name}; give one per layer")
    neurons = {}
    for i, shape in enumerate(shapes):
        whole = (shape,) if isinstance(shape, int) else tuple(shape)
        start = torch.zeros(whole) if field else None
        try:
            neurons[f"x{i + 1}"] = Neurons(whole, lagrangians[i], tau=taus[i], decay=decays[i], field=start)
        except ValueError as error:
            raise ValueError(f"layer x{i + 1}: {error}") from error
        if axis is not None and not -len(whole) <= axis < 0:
            raise ValueError(f"layer x{i + 1}: shape {whole} has no axis {axis}; count it from the end, None for all")
    synapses = [((a, b), _coupling(neurons[a], neurons[b], axis, tied)) for a, b in pairwise(neurons)]
    return HopfieldNetwork(neurons, synapses)


def _coupling(a: Neurons, b: Neurons, axis: Optional[int], tied: bool) -> LinearSynapse:
    size_a, size_b = (math.prod(n.shape) if axis is None else n.shape[axis] for n in (a, b))
    return LinearSynapse(size_a, size_b, axis, tied=tied)


def _each(value: float | Sequence[float], count: int) -> Sequence[float]:
    return value if isinstance(value, Sequence) else [value] * count
