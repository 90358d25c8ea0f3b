"""The paper's chain of layers. Its velocity is in test_network, its limit in test_adiabatic."""

import math
from itertools import pairwise

import pytest
import torch

from imixer.hopfield import chain
from imixer.hopfield.lagrangians import Tanh


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_each_layer_is_coupled_to_its_neighbours(depth):
    network = chain([3] * depth, ["relu"] * depth)
    names = [f"x{i + 1}" for i in range(depth)]
    assert list(network.neurons) == names
    assert list(network.synapses) == [f"{a}-{b}" for a, b in pairwise(names)]
    assert not network.asymmetric


@pytest.mark.parametrize(
    ("shapes", "axis", "matrices"),
    [
        ([3, (4,), 5], -1, [(4, 3), (5, 4)]),
        ([(7, 3), (7, 4), (7, 5)], -1, [(4, 3), (5, 4)]),
        ([(3, 7), (4, 7), (5, 7)], -2, [(4, 3), (5, 4)]),
        ([(3, 2), 4, (5, 1, 2)], None, [(4, 6), (10, 4)]),
    ],
)
def test_the_couplings_mix_the_axis_asked_for(shapes, axis, matrices):
    network = chain(shapes, ["tanh"] * 3, axis=axis)
    assert [tuple(network.synapse(name).weight.shape) for name in network.synapses] == matrices
    state = network.initial_state(x2=torch.ones(2, *network.layer("x2").shape))
    assert network.velocity(state)["x1"].shape == (2, *network.layer("x1").shape)


def test_options_are_of_each_layer_or_of_all():
    network = chain([2, 3], ["relu", Tanh(2.0)], tau=[1.0, 0.1], decay=0.5, tied=False, field=True)
    layers = [network.layer(name) for name in network.neurons]
    assert [layer.tau for layer in layers] == [1.0, 0.1] and [layer.decay for layer in layers] == [0.5, 0.5]
    assert [tuple(layer.field.shape) for layer in layers] == [(2,), (3,)] and not any(n.field.any() for n in layers)
    assert network.asymmetric == ["x1-x2"]


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        (([3, 3], ["relu"]), {}, "2 shapes but 1 lagrangians"),
        (([3, 3], ["relu", "relu"]), {"tau": [1.0]}, "2 shapes but 1 tau"),
        (([3, 3], ["relu", "relu"]), {"decay": [1.0] * 3}, "2 shapes but 3 decay"),
        (([3, 3], ["relu", "relu"]), {"tau": [1.0, math.nan]}, "layer x2: tau"),
        (([3, 3], ["relu", "relu"]), {"decay": [1.0, 0.0]}, "layer x2: decay is 0"),
        (([3, 0], ["relu", "relu"]), {}, "layer x2: shape"),
        (([3, 3], ["relu", "rule"]), {}, "layer x2: .*rule"),
        (([3, (2, 3)], ["relu", "relu"]), {}, "synapse x1-x2"),
        (([(2, 3), 3], ["relu", "relu"]), {"axis": -2}, "layer x2: .*no axis -2"),
        (([3, 3], ["relu", "relu"]), {"axis": 0}, "layer x1: .*no axis 0"),
        (([], []), {}, "at least one layer"),
    ],
)
def test_impossible_chains_are_refused_by_name(args, kwargs, named):
    with pytest.raises(ValueError, match=named):
        chain(*args, **kwargs)
