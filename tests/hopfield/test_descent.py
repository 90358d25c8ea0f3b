"""The energy falls along the flow where theory says so, and where it does not, the verdict says that."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imixer.hopfield import LAGRANGIANS, HopfieldNetwork, LinearSynapse, Neurons, chain, descent, integrate, lagrangian

# Those whose flow cannot become infinite in a finite time.
TAME = [name for name in LAGRANGIANS if name not in ("exponential", "rectified_power")]
CONVEX = [name for name in TAME if lagrangian(name).convex]
MILD = [name for name in CONVEX if lagrangian(name).lipschitz <= 1]  # where a fixed step is fine enough
ADAPTIVE = [{}, {"method": "bosh3", "rtol": 1e-4, "atol": 1e-6}]
FIXED = [{"method": "rk4", "step_size": 0.02}, {"method": "heun2", "step_size": 0.01}]


def alone(kind: str, x: list[float], field: list[float], **kwargs) -> tuple[HopfieldNetwork, dict[str, torch.Tensor]]:
    network = HopfieldNetwork({"v": Neurons(len(x), kind, field=torch.tensor(field), **kwargs)}, []).double()
    return network, {"v": torch.tensor([x], dtype=torch.float64)}


@given(data=st.data())
@settings(max_examples=15)
@torch.no_grad()
def test_energy_never_rises_where_lagrangians_are_convex_and_couplings_symmetric(networks, random_state, data):
    options = data.draw(st.sampled_from(ADAPTIVE + FIXED))
    network = data.draw(networks(names=CONVEX if options in ADAPTIVE else MILD))
    way = integrate(network, random_state(network, 4), 3.0, frames=31, **options)
    found = descent(network, way)
    assert found.verdict == "guaranteed" and not found.rises and not found.violated_conditions, str(found)
    assert (found.rate <= 0).all() and found.energy.shape == found.rate.shape == (31, 4)
    assert found.energy.diff(dim=0).max() <= found.tolerance <= 1e-2 * (1 + found.energy.abs().max())


@given(data=st.data())
@settings(max_examples=10)
@torch.no_grad()
def test_clamped_neurons_whose_lagrangian_is_elementwise_leave_the_guarantee(networks, random_state, data):
    network = data.draw(networks(names=[name for name in CONVEX if lagrangian(name).elementwise]))
    state, g = random_state(network, 4), torch.Generator().manual_seed(3)
    held = {name: torch.rand(x.shape, generator=g) < 0.5 for name, x in state.items()}
    found = descent(network, integrate(network, state, 2.0, frames=11, held=held))
    assert found.verdict == "guaranteed" and (found.rate <= 0).all(), str(found)


@pytest.mark.parametrize("held", [None, {"x1": torch.tensor([True, False, False]), "x3": torch.tensor(True)}])
def test_the_rate_is_the_slope_of_the_energy_in_time(held):
    torch.manual_seed(0)
    network = chain([3, 4, 2], ["gelu", "softmax", "tanh"], tau=[1.0, 0.5, 2.0], field=True).double()
    start = network.initial_state(x1=torch.randn(5, 3).double(), x3=torch.randn(5, 2).double())
    with torch.no_grad():
        way = integrate(network, start, 1.0, frames=1001, rtol=1e-11, atol=1e-13, held=held)
        found = descent(network, way)
    slope = (found.energy[2:] - found.energy[:-2]) / (way.times[2:] - way.times[:-2])[:, None]
    torch.testing.assert_close(found.rate[1:-1], slope, rtol=1e-5, atol=1e-5)


def test_the_verdict_on_gelu_is_observed_where_the_energy_falls():
    torch.manual_seed(0)
    network = chain([3, 4], ["gelu", "gelu"]).double()
    with torch.no_grad():
        way = integrate(network, network.initial_state(x1=2 + torch.rand(5, 3).double()), 0.1)
    found = descent(network, way)
    assert found.verdict == "observed" and str(found).startswith("descent observed, not guaranteed: x1: GELU")


@pytest.mark.parametrize(("kind", "start", "field"), [("gelu", -1.5, -3.0), ("gelu", -3.0, -1.0), ("silu", -2.0, -4.0)])
def test_the_energy_rises_where_the_activation_falls(kind, start, field):
    """Below -0.75 (GELU) or -1.28 (SiLU) the slope is negative, and all the way here."""
    network, state = alone(kind, [start], [field])
    found = descent(network, integrate(network, state, 10.0))
    assert found.verdict == "violated" and (found.rate[:-1] > 0).all()
    frame, sample, rise = found.rises[0]
    assert (frame, sample) == (1, 0) and rise == pytest.approx(float(found.energy[1] - found.energy[0]))
    assert "violated at frame 1, sample 0" in str(found) and "not convex" in str(found)


@torch.no_grad()
def test_a_coupled_gelu_network_is_never_called_guaranteed():
    verdicts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        network = chain([3, 4], ["gelu", "relu"]).double()
        start = network.initial_state(x1=3 * torch.randn(8, 3).double(), x2=torch.randn(8, 4).double())
        verdicts.add(descent(network, integrate(network, start, 5.0)).verdict)
    assert verdicts <= {"observed", "violated"}


@pytest.mark.parametrize(("kind", "x", "field"), [("softmax", [0.0, 0.0], [5.0, 1.0]),
                                                  ("layer_norm", [1.0, 0.5, -1.5], [5.0, 2.0, 0.0])])  # fmt: skip
def test_a_layer_clamped_in_part_may_rise_if_its_lagrangian_couples_neurons(kind, x, field):
    network, state = alone(kind, x, field)
    free = descent(network, integrate(network, state, 1.0))
    assert free.verdict == "guaranteed"
    part = descent(network, integrate(network, state, 1.0, held={"v": torch.tensor([True] + [False] * (len(x) - 1))}))
    assert part.verdict == "violated" and part.rate[0] > 0 and "clamped" in str(part)
    whole = descent(network, integrate(network, state, 1.0, held={"v": torch.tensor(True)}))
    assert whole.verdict == "guaranteed" and not whole.rate.any()


@torch.no_grad()
def test_without_decay_a_layer_norm_layer_descends():
    torch.manual_seed(0)
    network = chain([(5, 4), (5, 6)], ["layer_norm", "relu"], decay=[0.0, 1.0], tau=[1.0, 0.1], field=True).double()
    start = network.initial_state(x1=torch.randn(3, 5, 4).double())
    found = descent(network, integrate(network, start, 5.0))
    assert found.verdict == "guaranteed" and (found.rate[1:] < 0).all() and (found.energy[-1] < found.energy[0]).all()


@torch.no_grad()
def test_too_coarse_an_integration_is_blamed_where_theory_guarantees_descent():
    torch.manual_seed(0)
    network = chain([3, 4], ["identity", "tanh"]).double()
    start = network.initial_state(x1=torch.randn(2, 3).double())
    found = descent(network, integrate(network, start, 11.0, method="euler", step_size=2.2))
    assert found.verdict == "violated" and "the integration is too coarse; bounded from below" in str(found)


def test_any_batch_and_a_start_at_rest_are_followed():
    network = chain([3, 4], ["relu", "tanh"])
    way = integrate(network, network.initial_state(x1=torch.randn(2, 1, 3, 3)), 1.0, frames=5)
    assert descent(network, way).energy.shape == (5, 2, 1, 3)
    alone = integrate(network, network.initial_state(x1=torch.randn(3)), 1.0, frames=5)
    assert descent(network, alone).energy.shape == (5,) and descent(network, alone).verdict == "guaranteed"
    rest = integrate(network, network.initial_state(x1=torch.zeros(2, 3)), 1.0, until_steady=1e-3)
    assert descent(network, rest).verdict == "guaranteed"


@torch.no_grad()
def test_an_energy_that_overflows_is_refused_with_its_time_and_a_runaway_is_seen_in_float64():
    network = chain([1, 1], ["relu", "relu"])
    network.synapse("x1-x2").weight.data.fill_(3.0)
    start = network.initial_state(x1=torch.tensor([[1.0], [1e-9]]))
    way = integrate(network, start, 24.0)
    said = r"^the energy or its rate is not finite from time 22\.\d+ on; integrate in float64 or to an earlier t_end$"
    with pytest.raises(FloatingPointError, match=said):
        descent(network, way)
    assert not network.energy(way.states)[-1, 0].isfinite() and network.energy(way.states)[:, 1].isfinite().all()
    assert descent(network, integrate(network, start, 21.0)).bounded == "runaway"
    network, start = network.double(), {name: x.double() for name, x in start.items()}
    assert descent(network, integrate(network, start, 24.0)).bounded == "runaway"
    with pytest.raises(FloatingPointError, match=r"on; integrate to an earlier t_end$"):
        descent(network, integrate(network, start, 200.0))


@pytest.mark.parametrize("company", [-3.0, 1000.0])
def test_the_verdict_on_a_sample_is_the_same_in_any_company(company):
    network, state = alone("gelu", [-3.0], [-1.0])
    state = {"v": torch.cat([state["v"], torch.full((1, 1), company, dtype=torch.float64)])}
    found = descent(network, integrate(network, state, 10.0))
    assert found.verdict == "violated" and (1, 0) in [rise[:2] for rise in found.rises]


def test_a_rise_is_one_however_large_the_energy_is_later():
    network, state = alone("gelu", [-3.0], [-1.0])
    way = integrate(network, state, 10.0)
    large = torch.where(way.times[:, None, None] < 9, way.states["v"], 1e6 * way.times[:, None, None])
    assert descent(network, way).rises[:5] == descent(network, replace(way, states={"v": large})).rises[:5]


def test_an_asymmetric_network_has_no_descent():
    network = HopfieldNetwork({"v": Neurons(3), "h": Neurons(3)}, [(("v", "h"), LinearSynapse(3, 3, tied=False))])
    way = integrate(network, network.initial_state(v=torch.zeros(1, 3)), 1.0, frames=2)
    with pytest.raises(ValueError, match="synapse v-h is not symmetric"):
        descent(network, way)
