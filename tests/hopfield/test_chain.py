"""The paper's chains of layers. Its velocity is in test_network, its limit in test_adiabatic."""

import math
from itertools import pairwise

import pytest
import torch

from imixer.hopfield import chain, three_layer, two_layer
from imixer.hopfield.lagrangians import GELU, Tanh, UnitLayerNorm


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
        (([3, 3], ["relu", "relu"]), {"names": "a"}, "2 shapes but 1 names"),
        (([3, 3], ["relu", "relu"]), {"names": "aa"}, "names are a, a; give each layer one of its own"),
        (([3, 3], ["relu", "rule"]), {"names": "ab"}, "layer b: .*rule"),
    ],
)
def test_impossible_chains_are_refused_by_name(args, kwargs, named):
    with pytest.raises(ValueError, match=named):
        chain(*args, **kwargs)


def test_two_layers_speak_v_and_h_with_the_lagrangians_of_the_paper():
    network = two_layer(5, 7, tau_v=2.0, tau_h=0.1)
    assert list(network.neurons) == ["v", "h"] and list(network.synapses) == ["v-h"] and not network.asymmetric
    v, h = network.layer("v"), network.layer("h")
    assert isinstance(v.lagrangian, UnitLayerNorm) and isinstance(h.lagrangian, GELU)
    assert (v.tau, h.tau, v.decay, h.decay) == (2.0, 0.1, 1.0, 1.0) and v.field is None
    assert network.synapse("v-h").weight.shape == (7, 5)
    assert two_layer(5, 7, decay=0.0).layer("v").decay == 0 and two_layer(5, 7, decay=0.0).layer("h").decay == 1


def test_three_layers_speak_v_x_and_h_with_the_lagrangians_of_the_paper():
    network = three_layer(5, 6, 7, tau_v=3.0, tau_x=2.0, tau_h=0.1, decay=0.0, field=True)
    assert list(network.neurons) == ["v", "x", "h"] and list(network.synapses) == ["v-x", "x-h"]
    assert [type(network.layer(n).lagrangian) for n in "vxh"] == [UnitLayerNorm, GELU, GELU]
    assert [network.layer(n).tau for n in "vxh"] == [3.0, 2.0, 0.1]
    assert [network.layer(n).decay for n in "vxh"] == [0.0, 1.0, 1.0]
    assert all(network.layer(n).field is not None for n in "vxh")
    assert [tuple(network.synapse(s).weight.shape) for s in ("v-x", "x-h")] == [(6, 5), (7, 6)]


def test_the_couplings_are_those_given_and_not_shared_with_them():
    xi = {name: torch.randn(shape) for name, shape in
          {"xi_xv": (6, 5), "xi_vx": (5, 6), "xi_hx": (7, 6), "xi_xh": (6, 7)}.items()}  # fmt: skip
    network = three_layer(5, 6, 7, tied=False, **xi)
    assert network.asymmetric == ["v-x", "x-h"]
    assert torch.equal(network.synapse("v-x").weight, xi["xi_xv"])
    assert torch.equal(network.synapse("v-x").feedback, xi["xi_vx"])
    assert torch.equal(network.synapse("x-h").weight, xi["xi_hx"])
    assert torch.equal(network.synapse("x-h").feedback, xi["xi_xh"])
    with torch.no_grad():
        network.synapse("v-x").weight.zero_()
    assert xi["xi_xv"].any()
    tied = two_layer((5, 2), (7, 2), xi=torch.ones(7, 5), axis=-2)
    assert not tied.asymmetric and torch.equal(tied.synapse("v-h").weight, torch.ones(7, 5))
    assert torch.equal(two_layer(5, 7, xi_tilde=torch.ones(5, 7), tied=False).synapse("v-h").feedback, torch.ones(5, 7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_a_network_has_the_type_of_the_couplings_that_are_given(dtype):
    networks = [two_layer(3, 4, xi=torch.ones(4, 3, dtype=dtype), field=True),
                two_layer(3, 4, xi_tilde=torch.ones(3, 4, dtype=dtype), tied=False),
                three_layer(3, 4, 5, xi_hx=torch.ones(5, 4, dtype=dtype), field=True)]  # fmt: skip
    for network in networks:
        assert {p.dtype for p in network.parameters()} == {dtype}
        velocity = network.velocity(network.initial_state(v=torch.ones(2, 3, dtype=dtype)))
        assert {x.dtype for x in velocity.values()} == {dtype}


def test_the_widest_of_two_couplings_types_is_the_networks_and_integers_have_none():
    wide = two_layer(3, 4, xi=torch.ones(4, 3), xi_tilde=torch.ones(3, 4, dtype=torch.float64), tied=False)
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    whole = two_layer(3, 4, xi=torch.ones(4, 3, dtype=torch.int64), field=True)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert torch.equal(whole.synapse("v-h").weight, torch.ones(4, 3))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: two_layer(3, 4, xi=torch.ones(4, 3).numpy()), "xi is ndarray; give a tensor"),
        (lambda: two_layer(3, 4, xi=torch.ones(4, 3) * 1j), "xi is torch.complex64; give a tensor of real numbers"),
        (lambda: two_layer(3, 0), "layer h: shape"),
        (lambda: two_layer(3, 4, "relu", decay=0.0), "layer v: decay is 0"),
        (lambda: two_layer(3, 4, "unit_layernorm"), "layer v: .*did you mean unit_layer_norm"),
        (lambda: two_layer(3, 4, xi=torch.ones(3, 4)), r"xi has shape \(3, 4\); the layers need \(4, 3\)"),
        (lambda: two_layer(3, 4, xi=torch.full((4, 3), math.nan)), "xi has 12 entries that are not finite"),
        (
            lambda: two_layer(3, 4, xi_tilde=torch.ones(3, 4)),
            "xi_tilde is given, but the couplings are tied: .* xi alone",
        ),
        (lambda: three_layer(3, 4, 5, tau_x=-1.0), "layer x: tau is -1"),
        (lambda: three_layer(3, 4, 5, xi_xh=torch.ones(4, 5)), "xi_xh is given, .* give tied=False, or xi_hx alone"),
        (lambda: three_layer(3, 4, 5, tied=False, xi_xh=torch.ones(5, 4)), r"xi_xh has shape \(5, 4\)"),
        (lambda: three_layer((2, 3), 4, 5), "synapse v-x: the layers' shapes"),
    ],
)
def test_impossible_two_and_three_layers_are_refused_by_name(build, named):
    with pytest.raises(ValueError, match=named):
        build()
