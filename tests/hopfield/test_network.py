"""The energy of any network of neurons and synapses, and how its flow goes down (paper (6), (7), (32))."""

import copy
import os
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imixer.hopfield import (
    AttentionSynapse,
    ConvSynapse,
    EnergySynapse,
    HopfieldNetwork,
    LinearSynapse,
    Neurons,
    RestingLayerSynapse,
    Synapse,
    chain,
)
from imixer.hopfield.lagrangians import FromDensity

thorough = settings(max_examples=int(os.environ.get("IMIXER_FUZZ_EXAMPLES", 0)) or 50)


def gradient(network: HopfieldNetwork, state: dict[str, Tensor]) -> dict[str, Tensor]:
    at = {name: x.clone().requires_grad_() for name, x in state.items()}
    return dict(zip(at, torch.autograd.grad(network.energy(at).sum(), list(at.values())), strict=True))


def close(ours: Tensor, theirs: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * scale)


def _ball(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2


def pair(a=3, b=3, synapse: Synapse | None = None) -> HopfieldNetwork:
    return HopfieldNetwork({"v": Neurons(a), "h": Neurons(b)}, [(("v", "h"), synapse or LinearSynapse(3, 3))])


@thorough
@given(data=st.data())
def test_the_velocity_is_the_energys_gradient_through_the_inverse_hessian(networks, random_state, data):
    """dE/dx = -tau M dx/dt, for every layer of every network."""
    network = data.draw(networks())
    state = random_state(network, 2)
    velocity, slope = network.velocity(state), gradient(network, state)
    for name in state:
        layer = network.layer(name)
        downhill = layer.tau * layer.lagrangian.hessian_product(state[name], velocity[name])
        close(slope[name], -downhill, 1 + float(slope[name].abs().max()))


@thorough
@given(data=st.data())
@torch.no_grad()
def test_samples_do_not_mix_and_any_axes_before_are_batch(networks, random_state, data):
    network = data.draw(networks(tied=False))
    batch = data.draw(st.sampled_from([(), (1,), (2,), (2, 2), (1, 1, 2)]))
    state = random_state(network, *batch)
    energies = network.energies(state, symmetrised=True)
    close(network.energy(state, symmetrised=True), sum(energies.values()))
    assert set(energies) == {*network.neurons, *network.synapses}
    assert all(e.shape == batch for e in energies.values())
    velocity = network.velocity(state)
    assert all(v.shape == state[name].shape for name, v in velocity.items())
    for at in product(*(range(n) for n in batch)):
        one = {name: x[at] for name, x in state.items()}
        for name, e in network.energies(one, symmetrised=True).items():
            close(energies[name][at], e)
        for name, v in network.velocity(one).items():
            close(velocity[name][at], v, 1 + float(v.abs().max()))


@thorough
@given(data=st.data())
def test_the_energys_rate_is_its_gradient_along_the_flow_also_with_clamped_neurons(networks, random_state, data):
    network = data.draw(networks())
    state = random_state(network, 2)
    held = {}
    for name, x in state.items():
        if data.draw(st.booleans()):
            held[name] = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    velocity, slope = network.velocity(state), gradient(network, state)
    moved = {name: v.masked_fill(held.get(name, torch.tensor(False)), 0) for name, v in velocity.items()}
    rate = sum((slope[name] * moved[name]).flatten(1).sum(1) for name in state)
    scale = sum(float((slope[name] * velocity[name]).detach().abs().sum()) for name in state)
    close(network.energy_rate(state, held), rate, 1 + scale)


@pytest.mark.parametrize("held", [None, "v"])
def test_the_energys_rate_is_the_quadratic_form(held):
    torch.manual_seed(0)
    network = chain([3, 4], ["softmax", "layer_norm"], tau=[2.0, 0.5]).double()
    state = {"x1": torch.randn(5, 3).double(), "x2": torch.randn(5, 4).double()}
    mask = {"x1": torch.tensor(True)} if held else None
    rate = 0
    for name, v in network.velocity(state).items():
        layer = network.layer(name)
        M = torch.func.vmap(torch.func.jacrev(layer.activation))(state[name])
        if not (held and name == "x1"):
            rate = rate - layer.tau * torch.einsum("bi,bij,bj->b", v, M, v)
    close(network.energy_rate(state, mask), rate)


def test_equation_32_written_out():
    torch.manual_seed(0)
    network = chain(
        [3, 5, 4], ["tanh", "relu", "gelu"], tau=[1.0, 0.5, 0.1], decay=[1.0, 2.0, 3.0], field=True
    ).double()
    for p in network.parameters():
        torch.nn.init.normal_(p)
    x1, x2, x3 = (torch.randn(7, n, dtype=torch.float64) for n in (3, 5, 4))
    g1, g2, g3 = torch.tanh(x1), torch.relu(x2), torch.nn.functional.gelu(x3)
    W, V = network.synapse("x1-x2").weight, network.synapse("x2-x3").weight
    b1, b2, b3 = (network.layer(f"x{i}").field for i in (1, 2, 3))
    velocity = network.velocity({"x1": x1, "x2": x2, "x3": x3})
    close(velocity["x1"], g2 @ W + b1 - x1)
    close(velocity["x2"], (g1 @ W.T + g3 @ V + b2 - 2 * x2) / 0.5)
    close(velocity["x3"], (g2 @ V.T + b3 - 3 * x3) / 0.1)


def test_a_layer_alone_decays_and_two_synapses_between_the_same_layers_add_up():
    alone = HopfieldNetwork({"v": Neurons(2, decay=3.0, tau=2.0)}, [])
    assert torch.equal(alone.velocity({"v": torch.ones(1, 2)})["v"], torch.full((1, 2), -1.5))
    network = HopfieldNetwork(
        {"v": Neurons(3), "h": Neurons(3)}, [(("v", "h"), LinearSynapse(3, 3)), (("v", "h"), LinearSynapse(3, 3))]
    )
    assert list(network.synapses) == ["v-h", "v-h (2)"]
    W = network.synapse("v-h").weight + network.synapse("v-h (2)").weight
    v = torch.randn(1, 3)
    torch.testing.assert_close(network.inputs(network.initial_state(v=v))["h"], v @ W.T)


def test_layers_whose_joined_names_coincide_keep_both_synapses():
    network = HopfieldNetwork(
        {name: Neurons(2) for name in ("a", "b-c", "a-b", "c")},
        [(("a", "b-c"), LinearSynapse(2, 2)), (("a-b", "c"), LinearSynapse(2, 2))],
    )
    assert list(network.connections.values()) == [("a", "b-c"), ("a-b", "c")] and len(network.synapses) == 2


def test_a_layer_that_is_called_like_a_synapse_keeps_its_energy():
    def build(last: str) -> HopfieldNetwork:
        torch.manual_seed(0)
        layers = {name: Neurons(2) for name in ("a", "b", last)}
        return HopfieldNetwork(layers, [(("a", "b"), LinearSynapse(2, 2)), (("b", last), LinearSynapse(2, 2))]).double()

    x = dict(zip("abc", torch.randn(3, 4, 2, dtype=torch.float64), strict=True))
    plain, named = build("c"), build("a-b")
    state = {"a": x["a"], "b": x["b"], "a-b": x["c"]}
    assert len(named.energies(state)) == 5
    close(named.energy(state), plain.energy(x))
    close(gradient(named, state)["a-b"], gradient(plain, x)["c"])


def test_a_coupling_of_a_layer_with_itself_gives_it_both_ends():
    network = HopfieldNetwork({"v": Neurons(3)}, [(("v", "v"), LinearSynapse(3, 3))]).double()
    W, x = network.synapse("v-v").weight, torch.randn(2, 3, dtype=torch.float64)
    close(network.inputs({"v": x})["v"], x @ (W + W.T))
    close(gradient(network, {"v": x})["v"], x - x @ (W + W.T))


def test_an_energy_is_refused_where_a_coupling_is_asymmetric_unless_symmetrised():
    network = pair(synapse=LinearSynapse(3, 3, tied=False))
    state = network.initial_state(v=torch.ones(1, 3))
    assert network.asymmetric == ["v-h"]
    for ask in (network.energy, network.energies, network.energy_rate):
        with pytest.raises(ValueError, match="synapse v-h is not symmetric"):
            ask(state)
    assert network.energy(state, symmetrised=True).isfinite()


def test_violated_conditions_name_what_stands_against_a_guarantee():
    layers = {"v": Neurons(3, "softmax"), "h": Neurons(3, "gelu"), "k": Neurons(3, "tanh")}
    network = HopfieldNetwork(
        layers, [(("v", "h"), LinearSynapse(3, 3, tied=False)), (("h", "k"), LinearSynapse(3, 3))]
    )
    part, whole = torch.tensor([True, False, False]), torch.tensor([True])
    assert network.violated_conditions() == ["v-h: the coupling is not symmetric", "h: GELU is not convex"]
    assert "v: Softmax couples neurons of which some are clamped" in network.violated_conditions({"v": part})
    assert network.violated_conditions({"v": whole, "k": part}) == network.violated_conditions()


def test_a_state_is_completed_with_zeros_of_the_same_batch():
    network = chain([3, (4,), 5], ["relu"] * 3)
    state = network.initial_state(x2=torch.ones(2, 6, 4))
    assert {name: tuple(x.shape) for name, x in state.items()} == {"x1": (2, 6, 3), "x2": (2, 6, 4), "x3": (2, 6, 5)}
    assert state["x2"].eq(1).all() and not state["x1"].any() and not state["x3"].any()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "give the state of at least one layer: x1, x2"),
        ({"y": torch.zeros(3)}, "no layer 'y'"),
        ({"x1": torch.zeros(2, 4)}, "layer x1"),
        ({"x1": torch.zeros(())}, "layer x1"),
        ({"x1": torch.tensor([[0, float("nan"), float("inf")]])}, "layer x1: 2 values of the state are not finite"),
        ({"x1": torch.zeros(2, 3), "x2": torch.zeros(5, 4)}, r"unequal batches: x1 \(2,\), x2 \(5,\)"),
    ],
)
def test_impossible_states_are_refused_by_name(given, named):
    with pytest.raises(ValueError, match=named):
        chain([3, 4], ["relu", "relu"]).initial_state(**given)


@pytest.mark.parametrize(
    ("x", "kind"),
    [([1.0], "list"), (torch.ones(2, dtype=torch.long), "torch.int64"), (torch.ones(2) * 1j, "torch.complex64")],
)
def test_a_state_of_other_numbers_is_refused(x, kind):
    network = chain([2, 3], ["tanh", "relu"])
    said = rf"layer x1: the state is of {kind}; give a tensor of real floating numbers"
    with pytest.raises(ValueError, match=said):
        network.initial_state(x1=x)
    with pytest.raises(ValueError, match=said):
        network.check({"x1": x, "x2": torch.zeros(3)})


def test_a_state_that_is_no_dict_is_refused():
    with pytest.raises(ValueError, match="the state is Tensor; give a dict, layer name -> tensor"):
        chain([2, 3], ["tanh", "relu"]).check(torch.zeros(2))


def test_a_state_that_lacks_a_layer_is_refused():
    with pytest.raises(ValueError, match="the state has layers x1; the network has x1, x2"):
        chain([3, 4], ["relu", "relu"]).check({"x1": torch.zeros(1, 3)})


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: HopfieldNetwork({}, []), "at least one layer"),
        (lambda: HopfieldNetwork({"v.1": Neurons(3)}, []), "'v.1'"),
        (lambda: HopfieldNetwork({"keys": Neurons(3)}, []), "'keys'"),
        (lambda: HopfieldNetwork({"v": Neurons(3)}, [("vh", LinearSynapse(3, 3))]), "synapse v-h joins a layer 'h'"),
        (lambda: pair(3, 4), "synapse v-h"),
        (lambda: pair((2, 3), (4, 3)), "synapse v-h"),
        (lambda: pair((2, 3), (2, 3), LinearSynapse(2, 2, axis=-3)), "synapse v-h"),
        (lambda: pair(3, 4, LinearSynapse(3, 5, axis=None)), "synapse v-h"),
        (lambda: pair(3, 3, LinearSynapse(3, 3, tied=False, gain=torch.ones(2))), "synapse v-h: its gain"),
        (lambda: pair((1, 5, 5), (2, 2, 2), ConvSynapse(1, 2, 3)), "synapse v-h"),
        (lambda: pair((1, 2, 2), (1, 1, 1), ConvSynapse(1, 1, 3)), "synapse v-h"),
        (lambda: pair((5, 5), (3, 3), ConvSynapse(1, 1, 3)), "synapse v-h"),
        (lambda: pair((5, 3), (5, 4), AttentionSynapse(3)), "synapse v-h"),
        (lambda: pair(3, 4, EnergySynapse(lambda v, h: (v * h).sum(1))), "synapse v-h"),
        (lambda: pair(3, 3, EnergySynapse(lambda v, h: (v * h).sum())), "synapse v-h: the energy of 2 samples"),
        (lambda: pair(3, 3, EnergySynapse(lambda v, h: None)), "synapse v-h: the energy of 2 samples is NoneType"),
        (lambda: pair(3, 3, EnergySynapse(lambda v, h: 0.5)), "synapse v-h: the energy of 2 samples is float"),
        (lambda: pair(3, 3, EnergySynapse(lambda v: v.sum(1))), "synapse v-h: no energy for layers of .*positional"),
        (lambda: pair(3, 3, EnergySynapse(lambda v, h: v.sum(2))), "synapse v-h: no energy for layers .*Dimension"),
        (lambda: pair(3, 3, EnergySynapse(3)), "synapse v-h: no energy for layers .*not callable"),
        (lambda: HopfieldNetwork({"v": Neurons(3)}, [(("v",), LinearSynapse(3, 3))]), "synapse v-v"),
        (lambda: HopfieldNetwork({"v": Neurons(3)}, [(("v",), RestingLayerSynapse(3, 4, FromDensity(_ball, 8)))]),
         r"synapse v-v: FromDensity takes neurons of shape \(8,\)"),
    ],
)  # fmt: skip
def test_impossible_networks_are_refused_by_name(build, named):
    with pytest.raises(ValueError, match=named) as refusal:
        build()
    assert "\n" not in str(refusal.value)


def test_state_dict_round_trip_and_deepcopy_keep_the_velocity_and_share_nothing():
    torch.manual_seed(0)
    build = lambda: HopfieldNetwork(  # noqa: E731
        {"v": Neurons((2, 3), "layer_norm", field=torch.randn(3)), "h": Neurons((2, 4), "gelu")},
        [(("v", "h"), LinearSynapse(3, 4, tied=False, gain=torch.rand(3))), (("v",), AttentionSynapse(3))],
    )  # fmt: skip
    first, second = build(), build()
    state = first.initial_state(v=torch.randn(5, 2, 3))
    second.load_state_dict(first.state_dict())
    twin = copy.deepcopy(first)
    for other in (second, twin):
        for name, v in first.velocity(state).items():
            assert torch.equal(other.velocity(state)[name], v)
    with torch.no_grad():
        twin.synapse("v-h").weight.zero_()
    assert first.synapse("v-h").weight.any()


def test_double_precision_keeps_the_velocity():
    torch.manual_seed(0)
    network = chain([(4, 3), (4, 5)], ["layer_norm", "softmax"], field=True)
    state = network.initial_state(x1=torch.randn(2, 4, 3))
    single = network.velocity(state)
    double = network.double().velocity({name: x.double() for name, x in state.items()})
    for name, v in double.items():
        assert v.dtype == torch.float64
        torch.testing.assert_close(single[name].double(), v, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_velocity_is_the_same():
    torch.manual_seed(0)
    network = HopfieldNetwork(
        {"v": Neurons((4, 3), "layer_norm", field=torch.randn(4, 3)), "h": Neurons((4, 5), "gelu", tau=0.1)},
        [(("v", "h"), LinearSynapse(3, 5)), (("v",), AttentionSynapse(3)),
         (("h",), EnergySynapse(lambda h: -h.flatten(1).logsumexp(1)))],
    ).double()  # fmt: skip
    state = network.initial_state(v=torch.randn(2, 4, 3, dtype=torch.float64))
    torch.compiler.reset()
    for name, v in torch.compile(network.velocity)(state).items():
        close(v, network.velocity(state)[name])
