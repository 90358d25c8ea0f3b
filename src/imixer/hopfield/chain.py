"""The chains of layers of the paper: v - h, v - x - h, and x1 - x2 - ... - xL."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians.parts import layer_shape
from imixer.hopfield.network import HopfieldNetwork
from imixer.hopfield.neurons import Neurons
from imixer.hopfield.synapses import LinearSynapse

Shape = int | Sequence[int]


def two_layer(
    v: Shape,
    h: Shape,
    L_v: str | Lagrangian = "unit_layer_norm",
    L_h: str | Lagrangian = "gelu",
    *,
    xi: Tensor | None = None,
    xi_tilde: Tensor | None = None,
    axis: int | None = -1,
    tied: bool = True,
    tau_v: float = 1.0,
    tau_h: float = 1.0,
    decay: float = 1.0,
    field: bool = False,
) -> HopfieldNetwork:
    """Build the network of visible neurons v and hidden neurons h, coupled by xi one way and xi~ the other.

        tau_v dv/dt = xi~ f(h) - alpha v        tau_h dh/dt = xi g(v) - h

    Choose it to write the paper's section 3 down as it stands. The synapse is called `v-h`. The Lagrangians are those
    of (8), with the GELU of (14). The network has the type of the couplings that are given.

    Args:
        v: Shape of the visible layer.
        h: Shape of the hidden layer. It differs from v's along `axis` only.
        L_v: Lagrangian of v, an instance or a name; g is its gradient.
        L_h: Lagrangian of h; f is its gradient.
        xi: Coupling (N_h, N_v). Default: random.
        xi_tilde: Coupling back (N_v, N_h), for `tied=False`. Default: random.
        axis: Axis that the couplings mix, counted from the end; None for all.
        tied: Symmetric couplings, xi~ = xi^T.
        tau_v: Time constant of v.
        tau_h: Time constant of h.
        decay: alpha of v. 1 in (3), 0 in (14).
        field: Give every layer an external field, zero at first, one number per neuron.

    Raises:
        ValueError: If a layer is impossible, a coupling has another shape or is not real and finite, or xi_tilde
            comes with tied couplings.

    Source: paper (1)-(5), (8)-(10); alpha (12).
    """
    network = chain(
        [v, h], [L_v, L_h], names="vh", axis=axis, tied=tied, tau=[tau_v, tau_h], decay=[decay, 1.0], field=field
    )
    _set_couplings(network, {"v-h": {"xi": xi, "xi_tilde": xi_tilde}})
    return network


def three_layer(
    v: Shape,
    x: Shape,
    h: Shape,
    L_v: str | Lagrangian = "unit_layer_norm",
    L_x: str | Lagrangian = "gelu",
    L_h: str | Lagrangian = "gelu",
    *,
    xi_xv: Tensor | None = None,
    xi_vx: Tensor | None = None,
    xi_hx: Tensor | None = None,
    xi_xh: Tensor | None = None,
    axis: int | None = -1,
    tied: bool = True,
    tau_v: float = 1.0,
    tau_x: float = 1.0,
    tau_h: float = 1.0,
    decay: float = 1.0,
    field: bool = False,
) -> HopfieldNetwork:
    """Build the network of visible neurons v and two hidden layers x and h, from which iMixer derives.

        tau_v dv/dt = xi^(v,x) e(x) - alpha v
        tau_x dx/dt = xi^(x,v) g(v) + xi^(x,h) f(h) - x
        tau_h dh/dt = xi^(h,x) e(x) - h

    Choose it to write the paper's section 4 down as it stands. The synapses are called `v-x` and `x-h`. The Lagrangians
    are those of (19), with GELU for both hidden layers as in (30). The network has the type of the couplings that are
    given.

    Args:
        v: Shape of the visible layer.
        x: Shape of the layer next to it. It differs from v's along `axis` only.
        h: Shape of the layer behind that, likewise.
        L_v: Lagrangian of v, an instance or a name; g is its gradient.
        L_x: Lagrangian of x; e is its gradient.
        L_h: Lagrangian of h; f is its gradient.
        xi_xv: Coupling (N_x, N_v) from v to x. Default: random.
        xi_vx: Coupling (N_v, N_x) back, for `tied=False`. Default: random.
        xi_hx: Coupling (N_h, N_x) from x to h. Default: random.
        xi_xh: Coupling (N_x, N_h) back, for `tied=False`. Default: random.
        axis: Axis that the couplings mix, counted from the end; None for all.
        tied: Symmetric couplings, xi^(A,B) = (xi^(B,A))^T.
        tau_v: Time constant of v.
        tau_x: Time constant of x.
        tau_h: Time constant of h.
        decay: alpha of v. 1 in (15), 0 in (20).
        field: Give every layer an external field, zero at first, one number per neuron.

    Raises:
        ValueError: If a layer is impossible, a coupling has another shape or is not real and finite, or one
            towards v comes with tied couplings.

    Source: paper (15)-(19).
    """
    network = chain(
        [v, x, h],
        [L_v, L_x, L_h],
        names="vxh",
        axis=axis,
        tied=tied,
        tau=[tau_v, tau_x, tau_h],
        decay=[decay, 1.0, 1.0],
        field=field,
    )
    _set_couplings(network, {"v-x": {"xi_xv": xi_xv, "xi_vx": xi_vx}, "x-h": {"xi_hx": xi_hx, "xi_xh": xi_xh}})
    return network


def chain(
    shapes: Sequence[Shape],
    lagrangians: Sequence[str | Lagrangian],
    *,
    names: Sequence[str] | None = None,
    axis: int | None = -1,
    tied: bool = True,
    tau: float | Sequence[float] = 1.0,
    decay: float | Sequence[float] = 1.0,
    field: bool = False,
) -> HopfieldNetwork:
    """Build a chain of L layers, the visible one first, each coupled linearly to its neighbours.

    Choose it for any depth; `two_layer` and `three_layer` speak of v, x and h.

    Args:
        shapes: Shape of each layer. They differ along `axis` only.
        lagrangians: Lagrangian of each layer, an instance or a name.
        names: Names of the layers. Default: x1, x2, ..., xL.
        axis: Axis that the couplings mix, counted from the end; None for all.
        tied: Symmetric couplings.
        tau: Time constant of each layer, or of all.
        decay: alpha of each layer, or of all.
        field: Give every layer an external field, zero at first, one number per neuron.

    Raises:
        ValueError: If the numbers of shapes, Lagrangians, names, time constants or decays differ, two layers have one
            name, or a layer is impossible.

    Source: paper (31)-(32).
    """
    count = len(shapes)
    names = [f"x{i + 1}" for i in range(count)] if names is None else list(names)
    taus, decays = _each(tau, count), _each(decay, count)
    for what, values in (("lagrangians", lagrangians), ("names", names), ("tau", taus), ("decay", decays)):
        if len(values) != count:
            raise ValueError(f"{count} shapes but {len(values)} {what}; give one per layer")
    if len(set(names)) < count:
        raise ValueError(f"names are {', '.join(names)}; give each layer one of its own")
    neurons = {}
    for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        try:
            whole = layer_shape(shape)
            start = torch.zeros(whole) if field else None
            neurons[name] = Neurons(whole, lagrangians[i], tau=taus[i], decay=decays[i], field=start)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
        if axis is not None and not -len(whole) <= axis < 0:
            raise ValueError(f"layer {name}: shape {whole} has no axis {axis}; count it from the end, None for all")
    synapses = [((a, b), _coupling(neurons[a], neurons[b], axis, tied)) for a, b in pairwise(neurons)]
    return HopfieldNetwork(neurons, synapses)


def _coupling(a: Neurons, b: Neurons, axis: int | None, tied: bool) -> LinearSynapse:
    size_a, size_b = (math.prod(n.shape) if axis is None else n.shape[axis] for n in (a, b))
    return LinearSynapse(size_a, size_b, axis, tied=tied)


def _set_couplings(network: HopfieldNetwork, given: Mapping[str, Mapping[str, Tensor | None]]) -> None:
    """Give synapses their matrices, and the network the widest of their types."""
    matrices = {which: xi for pair in given.values() for which, xi in pair.items() if xi is not None}
    for which, xi in matrices.items():
        if not isinstance(xi, Tensor) or xi.is_complex():
            what = xi.dtype if isinstance(xi, Tensor) else type(xi).__name__
            raise ValueError(f"{which} is {what}; give a tensor of real numbers")
    floating = [xi.dtype for xi in matrices.values() if xi.is_floating_point()]
    if floating:
        network.to(reduce(torch.promote_types, floating))
    for name, pair in given.items():
        _set_coupling(network, name, pair)


def _set_coupling(network: HopfieldNetwork, name: str, given: Mapping[str, Tensor | None]) -> None:
    """Give a synapse its two matrices, away from v and towards it, by the names that their caller has for them."""
    synapse = network.synapse(name)
    assert isinstance(synapse, LinearSynapse)
    for which, matrix, ours in zip(given, given.values(), (synapse.weight, synapse.feedback), strict=True):
        if matrix is None:
            continue
        if ours is None:
            raise ValueError(
                f"{which} is given, but the couplings are tied: give tied=False, or {next(iter(given))} alone"
            )
        if matrix.shape != ours.shape:
            raise ValueError(f"{which} has shape {tuple(matrix.shape)}; the layers need {tuple(ours.shape)}")
        if not matrix.isfinite().all():
            raise ValueError(f"{which} has {int((~matrix.isfinite()).sum())} entries that are not finite")
        ours.data = matrix.detach().to(ours.dtype, copy=True)


def _each(value: float | Sequence[float], count: int) -> Sequence[float]:
    return value if isinstance(value, Sequence) else [value] * count
