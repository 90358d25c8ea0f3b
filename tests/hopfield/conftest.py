"""Random networks, and random states of them."""

import math

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from imixer.hopfield import (
    LAGRANGIANS,
    AttentionSynapse,
    ConvSynapse,
    EnergySynapse,
    HopfieldNetwork,
    LinearSynapse,
    Neurons,
    lagrangian,
)

KINDS = {1: ["axis", "all", "energy"], 2: ["axis", "all", "energy", "attention"], 3: ["axis", "all", "energy", "conv"]}


def any_energy(*g: Tensor) -> Tensor:
    return -torch.log1p(sum(x.flatten(1).sum(1) for x in g).square())


@st.composite
def _networks(draw, names=tuple(LAGRANGIANS), tied: bool = True) -> HopfieldNetwork:
    """Graphs of layers of vectors, matrices and images with every kind of synapse, float64. Untied: some of them."""
    torch.manual_seed(draw(st.integers(0, 999)))
    layers: dict[str, Neurons] = {}
    synapses = []
    sizes = st.integers(1, 4)

    def add(shape: tuple[int, ...]) -> str:
        kind = lagrangian(draw(st.sampled_from(names)))
        name = f"n{len(layers)}"
        layers[name] = Neurons(
            shape,
            kind,
            tau=draw(st.sampled_from([0.2, 1.0, 3.0])),
            decay=draw(st.sampled_from([0.5, 1.0, 2.0] + [0.0] * kind.zero_mode)),
            field=torch.randn(shape) if draw(st.booleans()) else None,
        )
        return name

    add(tuple(draw(st.lists(sizes, min_size=1, max_size=3))))
    for _ in range(draw(st.integers(1, 4))):
        a = draw(st.sampled_from(list(layers)))
        shape = layers[a].shape
        symmetric = tied or draw(st.booleans())
        kind = draw(st.sampled_from(KINDS[len(shape)]))
        if kind == "axis":
            axis, size = draw(st.integers(-len(shape), -1)), draw(sizes)
            b = add((*shape[:axis], size, *shape[len(shape) + axis + 1 :]))
            synapses.append(((a, b), LinearSynapse(shape[axis], size, axis, tied=symmetric)))
        elif kind == "all":
            b = draw(st.sampled_from(list(layers)))
            size = math.prod(layers[b].shape)
            synapses.append(((a, b), LinearSynapse(math.prod(shape), size, None, tied=symmetric)))
        elif kind == "energy":
            joined = draw(st.lists(st.sampled_from(list(layers)), min_size=1, max_size=3, unique=True))
            synapses.append((joined, EnergySynapse(any_energy)))
        elif kind == "attention":
            joined = [a] if draw(st.booleans()) else [a, add((draw(sizes), shape[1]))]
            synapses.append((joined, AttentionSynapse(shape[1], num_heads=2, head_features=draw(sizes))))
        else:
            padding, stride = draw(st.integers(0, 1)), draw(st.integers(1, 3))
            kernel = draw(st.integers(1, min(shape[1:]) + 2 * padding))
            channels, *made = draw(sizes), *((n + 2 * padding - kernel) // stride + 1 for n in shape[1:])
            b = add((channels, *made))
            synapses.append(((a, b), ConvSynapse(shape[0], channels, kernel, stride, padding, tied=symmetric)))
    return HopfieldNetwork(layers, synapses).double()


@pytest.fixture(scope="session")
def networks():
    return _networks


@pytest.fixture(scope="session")
def random_state():
    def make(network: HopfieldNetwork, *batch: int, scale: float = 1.0) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(1)
        return {
            name: scale * torch.randn(*batch, *network.layer(name).shape, dtype=torch.float64, generator=g)
            for name in network.neurons
        }

    return make


@pytest.fixture
def in_mode(monkeypatch):
    """Whether each gradient of torch.func was computed in inference mode."""
    made, grad = [], torch.func.grad

    def watched(*args, **kwargs):
        differentiate = grad(*args, **kwargs)

        def gradient(*x: Tensor):
            made.append(torch.is_inference_mode_enabled())
            return differentiate(*x)

        return gradient

    monkeypatch.setattr(torch.func, "grad", watched)
    return made
