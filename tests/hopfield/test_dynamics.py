"""Integrating in time: exact where an exact solution is known, honest about where it stops, differentiable."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from imixer.hopfield import AdiabaticUpdate, HopfieldNetwork, LinearSynapse, Neurons, chain, descent, integrate
from imixer.hopfield.dynamics import ADAPTIVE, FIXED_STEP, STIFF

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def linear() -> tuple[HopfieldNetwork, dict[str, Tensor]]:
    torch.manual_seed(0)
    network = chain([2, 3], ["identity"] * 2, tau=[1.0, 0.3], decay=[1.0, 2.0], field=True).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return network, network.initial_state(x1=torch.randn(4, 2).double(), x2=torch.randn(4, 3).double())


def exact(network: HopfieldNetwork, start: dict[str, Tensor], t: float) -> Tensor:
    """x1 and x2 side by side, by the exponential of the system's matrix, with the fields as one more column."""
    W, b = network.synapse("x1-x2").weight, [network.layer(f"x{i}").field for i in (1, 2)]
    A, eye = torch.zeros(6, 6, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    A[:2, :2], A[:2, 2:5], A[:2, 5] = -eye[:2, :2], W.T, b[0]
    A[2:5, :2], A[2:5, 2:5], A[2:5, 5] = W / 0.3, -2 * eye / 0.3, b[1] / 0.3
    one = torch.ones(4, 1, dtype=torch.float64)
    return (torch.cat([*start.values(), one], -1) @ torch.linalg.matrix_exp(t * A).T)[:, :5].detach()


def tanh_chain(**kwargs) -> tuple[HopfieldNetwork, dict[str, Tensor]]:
    torch.manual_seed(0)
    network = chain([3, 4, 2], ["tanh", "softmax", "layer_norm"], field=True, **kwargs).double()
    return network, network.initial_state(x1=torch.randn(2, 3).double(), x3=torch.randn(2, 2).double())


def oscillator() -> HopfieldNetwork:
    network = HopfieldNetwork({"v": Neurons(2, "tanh")}, [(("v", "v"), LinearSynapse(2, 2, tied=False))])
    with torch.no_grad():
        network.synapse("v-v").weight.copy_(torch.tensor([[2.0, -5.0], [5.0, 2.0]]))
        network.synapse("v-v").feedback.zero_()
    return network.double()


def explosive() -> tuple[HopfieldNetwork, dict[str, Tensor]]:
    """Layer hot: dx/dt = x^2 - x, which from 2 on is infinite at time log 2. Layer calm decays."""
    hot = LinearSynapse(1, 1)
    torch.nn.init.constant_(hot.weight, 0.5)
    network = HopfieldNetwork({"calm": Neurons(1), "hot": Neurons(1, "rectified_power")}, [(("hot", "hot"), hot)])
    return network.double(), {name: torch.full((1, 1), 2.0, dtype=torch.float64) for name in ("calm", "hot")}


@pytest.mark.parametrize(
    ("method", "options", "tolerance"),
    [
        ("dopri5", {}, 1e-5),
        ("dopri5", TIGHT, 1e-9),
        ("dopri8", TIGHT, 1e-7),
        ("bosh3", {"rtol": 1e-8, "atol": 1e-9}, 1e-5),
        ("adaptive_heun", {"rtol": 1e-6, "atol": 1e-7}, 1e-5),
        ("fehlberg2", {"rtol": 1e-6, "atol": 1e-7}, 1e-4),
        ("euler", {"step_size": 1e-3}, 1e-2),
        ("midpoint", {"step_size": 1e-2}, 1e-3),
        ("heun2", {"step_size": 1e-2}, 1e-3),
        ("heun3", {"step_size": 1e-2}, 1e-5),
        ("rk4", {"step_size": 1e-2}, 1e-7),
        ("explicit_adams", {"step_size": 1e-2}, 1e-5),
        ("implicit_adams", {"step_size": 1e-2}, 1e-6),
    ],
)
def test_a_linear_network_follows_the_matrix_exponential_at_every_frame(method, options, tolerance):
    network, start = linear()
    with torch.no_grad():
        way = integrate(network, start, 2.0, frames=5, method=method, **options)
    torch.testing.assert_close(way.times, torch.linspace(0, 2, 5, dtype=torch.float64))
    for i, t in enumerate(way.times):
        found = torch.cat([x[i] for x in way.states.values()], -1)
        torch.testing.assert_close(found, exact(network, start, float(t)), rtol=0, atol=tolerance)


def test_every_method_is_tried_above():
    marks = test_a_linear_network_follows_the_matrix_exponential_at_every_frame.pytestmark
    assert {case[0] for case in marks[0].args[1]} == {*ADAPTIVE, *FIXED_STEP}


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)])
def test_half_the_step_gives_the_error_of_the_methods_order(method, order):
    network, start = linear()
    errors = []
    for n in (20, 40, 80):
        with torch.no_grad():
            way = integrate(network, start, 2.0, frames=n + 1, method=method)
        errors.append((torch.cat(list(way.final.values()), -1) - exact(network, start, 2.0)).abs().max())
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([order] * 2, abs=0.35)


@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
@pytest.mark.parametrize("step_size", [0.007, 0.009, 0.011])
def test_a_step_that_does_not_divide_the_time_costs_no_accuracy(method, step_size):
    """Methods of Adams rely on equal steps, and frames between steps are interpolated."""
    network, start = linear()
    with torch.no_grad():
        way = integrate(network, start, 1.0, frames=8, method=method, step_size=step_size)
    for i, t in enumerate(way.times):
        found = torch.cat([x[i] for x in way.states.values()], -1)
        torch.testing.assert_close(found, exact(network, start, float(t)), rtol=0, atol=3e-5)


def test_each_layer_has_its_own_time_constant():
    network = HopfieldNetwork({"a": Neurons(1, tau=0.5), "b": Neurons(2, tau=4.0, decay=2.0)}, []).double()
    way = integrate(network, {"a": torch.ones(1).double(), "b": torch.ones(2).double()}, 1.0, **TIGHT)
    torch.testing.assert_close(way.states["a"][:, 0], torch.exp(-way.times / 0.5))
    torch.testing.assert_close(way.states["b"][:, 1], torch.exp(-way.times * 2 / 4))


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_frames_begin_with_the_start_and_keep_the_batch(method, batch):
    network = chain([(2, 3), (2, 4)], ["layer_norm", "relu"]).double()
    start = network.initial_state(x1=torch.randn(*batch, 2, 3).double())
    with torch.no_grad():
        way = integrate(network, start, 0.5, frames=4, method=method)
        velocity = network.velocity(way.final)
    assert way.states["x1"].shape == (4, *batch, 2, 3) and way.states["x2"].shape == (4, *batch, 2, 4)
    assert way.times.tolist() == pytest.approx([0, 1 / 6, 1 / 3, 0.5])
    for name, x in start.items():
        assert torch.equal(way.states[name][0], x) and torch.equal(way.final[name], way.states[name][-1])
    assert way.residual == pytest.approx(max(float(v.abs().max()) for v in velocity.values()))
    assert way.steady is None


@pytest.mark.parametrize("options", [{"method": "rk4", "step_size": 0.1}, {}, {"method": "bosh3"}])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-7])
def test_it_stops_where_the_network_is_steady_and_says_so(options, tolerance):
    network, start = tanh_chain(tau=[1.0, 0.5, 0.2])
    with torch.no_grad():
        way = integrate(network, start, 500.0, until_steady=tolerance, frames=20, **options)
        velocity = network.velocity(way.final)
    assert way.steady and way.residual <= 1.1 * tolerance and way.times[-1] < 100
    rest_residual = max(float((v * network.layer(name).tau).abs().max()) for name, v in velocity.items())
    assert way.residual == pytest.approx(rest_residual)
    assert 2 <= len(way.times) <= 20 and (way.times.diff() > 0).all() and way.times[0] == 0
    assert all(torch.equal(way.states[name][0], x) for name, x in start.items())
    there = integrate(network, way.final, 500.0, until_steady=2 * tolerance)
    assert there.steady and there.times.tolist() == [0.0]


@pytest.mark.parametrize("options", [{"method": "rk4", "step_size": 0.01}, {}])
def test_a_network_that_never_rests_stops_at_the_end_of_time_and_says_so(options):
    network = oscillator()
    with torch.no_grad():
        way = integrate(network, network.initial_state(v=torch.ones(1, 2).double()), 5.0, until_steady=1e-3, **options)
    assert way.steady is False and way.residual > 0.1 and len(way.times) <= 101
    assert float(way.times[-1]) == pytest.approx(5, abs=1e-6)


def test_float32_comes_to_rest_too():
    network, start = tanh_chain()
    network, start = network.float(), {name: x.float() for name, x in start.items()}
    with torch.no_grad():
        way = integrate(network, start, 200.0, until_steady=1e-4)
    assert way.steady and way.residual < 2e-4 and way.final["x1"].dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"method": "rk4"}, {"until_steady": 1e-3}])
def test_held_neurons_do_not_move_and_the_others_see_them(options):
    network, start = tanh_chain()
    start["x2"] = torch.randn(2, 4).double()
    some = torch.tensor([True, False, True, False])
    held = {"x1": torch.tensor(True), "x2": some}
    with torch.no_grad():
        way = integrate(network, start, 2.0, held=held, **options)
    torch.testing.assert_close(way.states["x1"], start["x1"].expand_as(way.states["x1"]), rtol=0, atol=1e-12)
    fixed = way.states["x2"][..., some]
    torch.testing.assert_close(fixed, start["x2"][:, some].expand_as(fixed), rtol=0, atol=1e-12)
    assert (way.final["x2"] - start["x2"])[:, ~some].abs().min() > 1e-3
    velocity = network.velocity(way.final)
    assert way.residual == pytest.approx(
        float(torch.cat([velocity["x2"][:, ~some], velocity["x3"]], 1).detach().abs().max())
    )
    assert way.held["x2"].shape == start["x2"].shape


def gradients(network: HopfieldNetwork, start: dict[str, Tensor], **options) -> list[Tensor]:
    start = {name: x.clone().requires_grad_() for name, x in start.items()}
    way = integrate(network, start, 1.0, frames=3, **options)
    loss = sum((x[1] * x[2].cos()).sum() for x in way.states.values())
    return list(torch.autograd.grad(loss, [*network.parameters(), *start.values()]))


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("held", [None, {"x1": torch.tensor([True, False, False])}])
def test_the_adjoint_gives_the_direct_gradient_of_a_mild_flow(method, held):
    network, start = tanh_chain()
    network.layer("x3").lagrangian.eps = 0.1
    options = {"method": method, "held": held} | (TIGHT if method == "dopri5" else {"step_size": 0.01})
    for ours, theirs in zip(
        gradients(network, start, adjoint=True, **options), gradients(network, start, **options), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{"method": "rk4", "step_size": 0.05}, TIGHT])
def test_gradients_are_finite_differences(options):
    """Of every parameter, field, and of the initial state, each along a random direction."""
    network, start = tanh_chain()
    found = gradients(network, start, **options)
    assert {name for name, _ in network.named_parameters()} >= {"neurons.x2.field", "synapses.x1-x2.weight"}

    def loss() -> float:
        with torch.no_grad():
            way = integrate(network, start, 1.0, frames=3, **options)
            return float(sum((x[1] * x[2].cos()).sum() for x in way.states.values()))

    h = 1e-5
    for p, gradient in zip([*network.parameters(), *start.values()], found, strict=True):
        direction = torch.randn(p.shape, dtype=p.dtype)
        with torch.no_grad():
            p += h * direction
            above = loss()
            p -= 2 * h * direction
            below = loss()
            p += h * direction
        assert float((gradient * direction).sum()) == pytest.approx((above - below) / (2 * h), rel=1e-5, abs=1e-7)


def test_the_state_at_rest_has_gradients():
    network, start = tanh_chain()
    way = integrate(network, start, 100.0, until_steady=1e-6)
    way.final["x1"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "when"),
    [
        ({}, math.log(2)),
        ({"method": "bosh3"}, math.log(2)),
        ({"method": "euler", "step_size": 0.01}, 0.8),
        ({"method": "rk4", "step_size": 0.01}, 0.72),
        ({"until_steady": 1e-3}, math.log(2)),
        ({"until_steady": 1e-3, "method": "euler", "step_size": 0.01}, 0.8),
    ],
)
def test_a_divergent_network_is_reported_with_layer_and_time(options, when):
    network, start = explosive()
    with torch.no_grad(), pytest.raises(FloatingPointError, match="layer hot") as caught:
        integrate(network, start, 2.0, frames=201, **options)
    message = str(caught.value)
    assert float(message.split("time ")[1].split()[0]) == pytest.approx(when, abs=0.1)
    assert "smaller step" in message and len(message) < 200


@pytest.mark.parametrize("seed", [0, 3])
def test_a_velocity_that_overflows_is_no_state_of_rest(seed):
    torch.manual_seed(seed)
    network = chain([4, 4], ["exponential"] * 2).double()
    start = network.initial_state(x1=torch.full((1, 4), 3.0).double())
    with torch.no_grad(), pytest.raises(FloatingPointError, match=r"at time .* layer x1 changes at a rate of inf"):
        integrate(network, start, 10.0, until_steady=1e-3, method="euler")


def test_too_large_a_fixed_step_is_reported():
    network, start = tanh_chain(tau=[1e-3, 1.0, 1.0])
    with pytest.raises(FloatingPointError, match="layer x1 is not finite from time"):
        integrate(network, start, 200.0, method="euler")


@pytest.mark.parametrize(("method", "stages"), [("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4)])
def test_evaluations_are_counted(method, stages, monkeypatch):
    network, start = tanh_chain()
    calls = []
    velocity = network.velocity
    monkeypatch.setattr(network, "velocity", lambda x: (calls.append(1), velocity(x))[1])
    way = integrate(network, start, 1.0, frames=11, method=method)
    assert way.n_evaluations == len(calls) == 10 * stages + 1  # one for the residual
    calls.clear()
    assert integrate(network, start, 1.0, until_steady=1e-9).n_evaluations == len(calls)


@pytest.mark.parametrize("options", [{}, {"method": "rk4"}, {"until_steady": 1e-3}])
def test_a_bar_without_a_terminal_changes_nothing(options, capfd):
    network, start = tanh_chain()
    with torch.no_grad():
        plain = integrate(network, start, 1.0, **options)
        shown = integrate(network, start, 1.0, progress=True, **options)
    assert torch.equal(plain.final["x1"], shown.final["x1"]) and plain.n_evaluations == shown.n_evaluations
    assert not capfd.readouterr().out.strip()


def test_nothing_given_is_changed():
    network, start = tanh_chain()
    before, weights = copy.deepcopy(start), copy.deepcopy(network.state_dict())
    with torch.no_grad():
        integrate(network, start, 1.0)
    assert all(torch.equal(before[name], x) for name, x in start.items())
    assert all(torch.equal(weights[name], p) for name, p in network.state_dict().items())


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"t_end": 0.0}, "t_end is 0"),
        ({"t_end": -1.0}, "t_end is -1"),
        ({"t_end": math.nan}, "t_end is nan"),
        ({"t_end": math.inf}, "t_end is inf"),
        ({"frames": 1}, "frames is 1"),
        ({"until_steady": 0.0}, "until_steady is 0"),
        ({"until_steady": math.nan}, "until_steady is nan"),
        ({"method": "rk5"}, "method is 'rk5'; choose one of dopri5"),
        ({"method": "rk4", "step_size": 0.0}, "step_size is 0"),
        ({"method": "rk4", "step_size": math.nan}, "step_size is nan"),
        ({"step_size": 0.1}, "step_size is 0.1 with dopri5"),
        ({"method": "rk4", "step_size": 1e-5, "until_steady": 1e-3}, "100000 steps"),
        ({"held": {"y": torch.tensor(True)}}, "held names the layer 'y'"),
        ({"held": {"x1": torch.tensor([True, False])}}, "layer x1: the mask"),
        ({"held": {"x1": torch.ones(5, 2, 3, dtype=torch.bool)}}, "layer x1: the mask"),
        ({"held": {"x1": torch.ones(3)}}, "layer x1: the mask of held neurons is of torch.float32"),
        ({"start": {"x1": torch.full((1, 3), math.nan), "x2": torch.zeros(1, 4)}}, "layer x1: 3 values"),
        ({"start": {"x1": torch.zeros(1, 3), "x2": torch.zeros(1, 5)}}, "layer x2"),
        ({"start": {"x1": torch.zeros(1, 3)}}, "the network has x1, x2"),
        *(
            (
                {"start": {"x1": torch.zeros(0, 3), "x2": torch.zeros(0, 4)}, "method": method},
                "^the start has no samples; ",
            )
            for method in ("dopri5", "euler", "bdf")
        ),
    ],
)
def test_impossible_arguments_are_refused_by_name(kwargs, named):
    network = chain([3, 4], ["relu", "relu"])
    with pytest.raises(ValueError, match=named):
        integrate(network, **{"start": network.initial_state(x1=torch.zeros(2, 3)), "t_end": 1.0} | kwargs)


# Stiff flows, times of one's choice, caps and events


def separated(*shapes: int) -> tuple[HopfieldNetwork, dict[str, Tensor]]:
    """The paper's limit, tau 1 >> 1e-3 >> 1e-5."""
    torch.manual_seed(0)
    network = chain(list(shapes), ["layer_norm", "softplus", "tanh"], tau=[1.0, 1e-3, 1e-5], decay=[0.0, 1.0, 1.0])
    network = network.double()
    with torch.no_grad():
        inner = network.synapse("x2-x3").weight
        inner.mul_(0.5 / torch.linalg.matrix_norm(inner, 2))
    return network, network.initial_state(x1=torch.randn(3, shapes[0]).double())


@pytest.mark.parametrize("method", STIFF)
def test_a_stiff_method_follows_the_exact_solution(method):
    network, start = linear()
    for name, tau in (("x1", 1.0), ("x2", 0.3)):
        assert network.layer(name).tau == tau
    way = integrate(network, start, times=[0.1, 0.5, 3.0], method=method, rtol=1e-9, atol=1e-11)
    assert way.times.tolist() == [0.1, 0.5, 3.0]
    for i, t in enumerate(way.times.tolist()):
        found = torch.cat([x[i] for x in way.states.values()], -1)
        torch.testing.assert_close(found, exact(network, start, t), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", STIFF)
def test_separated_time_constants_lead_along_the_adiabatic_limit_and_to_rest(method):
    network, start = separated(5, 7, 4)
    limit = AdiabaticUpdate(network, n_iter=25)
    way = integrate(network, start, times=[0.05, 0.5], method=method)
    assert way.n_steps < 2000
    x1 = start["x1"]
    x1 = limit(x1, steps=1000, dt=5e-4)
    torch.testing.assert_close(way.final["x1"], x1, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(way.final["x2"], limit.hidden(x1)[0], rtol=5e-3, atol=5e-3)
    assert descent(network, way).verdict == "guaranteed"


def test_a_stiff_method_is_scipys_own():
    solve_ivp = pytest.importorskip("scipy.integrate").solve_ivp
    network, start = tanh_chain(tau=[1.0, 0.01, 0.001])
    way = integrate(network, start, 2.0, frames=5, method="bdf", rtol=1e-9, atol=1e-11)
    for sample in range(2):
        x0 = torch.cat([x[sample] for x in start.values()]).detach()

        def f(t, y):
            parts = torch.as_tensor(y).split([3, 4, 2])
            state = {name: part[None] for name, part in zip(start, parts, strict=True)}
            return torch.cat([v[0] for v in network.velocity(state).values()]).detach().numpy()

        reference = solve_ivp(f, (0, 2.0), x0.numpy(), "Radau", t_eval=way.times.numpy(), rtol=1e-9, atol=1e-11)
        found = torch.cat([x[:, sample] for x in way.states.values()], -1)
        torch.testing.assert_close(found, torch.as_tensor(reference.y.T), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "bdf"])
def test_states_are_kept_at_the_times_of_ones_choice(method):
    network, start = linear()
    times = torch.tensor([0.0, 0.03, 0.7, 0.71])
    with torch.no_grad():
        way = integrate(network, start, times=times, method=method)
    assert torch.allclose(way.times, times.double()) and len(way.states["x1"]) == 4
    for i, t in enumerate(way.times.tolist()):
        found = torch.cat([x[i] for x in way.states.values()], -1)
        torch.testing.assert_close(found, exact(network, start, t), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "bdf", "radau"])
def test_an_event_ends_the_integration_when_it_comes(method):
    """One neuron that decays, x = 2 e^-t, comes to 1/2 at time log 4."""
    network = HopfieldNetwork({"v": Neurons(1)}, []).double()
    start = {"v": torch.tensor([[2.0], [1.0]], dtype=torch.float64)}
    options = {"rtol": 1e-9, "atol": 1e-11} if method != "rk4" else {"step_size": 0.001}
    with torch.no_grad():
        way = integrate(network, start, 9.0, method=method, event=lambda t, state: state["v"][0] - 0.5, **options)
        never = integrate(network, start, 1.0, method=method, event=lambda t, state: state["v"] + 1.0, **options)
    assert way.event_time == pytest.approx(math.log(4), abs=1e-5) and way.times[-1] == way.event_time
    assert way.final["v"][0].item() == pytest.approx(0.5, abs=1e-5)
    assert never.event_time is None and never.times[-1].item() == pytest.approx(1.0)


def test_rest_is_found_by_stiff_methods_too():
    network, start = separated(5, 7, 4)
    for name in network.neurons:
        network.layer(name).decay = 1.0
    way = integrate(network, start, 100.0, until_steady=1e-5, method="bdf")
    assert way.steady and way.residual <= 1.1e-5 and way.event_time is None and way.times[-1] < 100
    assert len(way.times) <= 101


def test_too_many_steps_end_in_a_sentence_that_names_the_stiff_method():
    network, start = separated(5, 7, 4)
    message = r"40 steps lead to time .* of 1; time constants reach from 1e-05 to 1: give method='bdf'.* max_steps"
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        integrate(network, start, 1.0, max_steps=40)
    with pytest.raises(RuntimeError, match="larger max_steps") as stiff:
        integrate(network, start, 1.0, method="bdf", max_steps=3)
    assert "method=" not in str(stiff.value)


def test_clamped_neurons_stay_in_stiff_flows():
    network, start = tanh_chain()
    mask = torch.tensor([True, False, True])
    way = integrate(network, start, 1.0, method="bdf", held={"x1": mask})
    assert torch.equal(way.final["x1"][:, mask], start["x1"][:, mask])
    reference = integrate(network, start, 1.0, held={"x1": mask}, **TIGHT)
    torch.testing.assert_close(way.final["x1"], reference.final["x1"].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"t_end": None}, "give t_end, the time to stop at, or times"),
        ({"t_end": None, "times": [0.0, 2.0, 1.0]}, "give increasing ones from 0 on"),
        ({"t_end": None, "times": []}, "give increasing ones"),
        ({"times": [0.0, 2.0]}, "t_end is 1.0, but the last of times is 2.0"),
        ({"t_end": None, "times": [0.0, 2.0], "until_steady": 1e-3}, "dopri5 cannot keep .* method='bdf'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"method": "rk4", "step_size": 1e-3, "max_steps": 10}, "1000 steps to t_end, above max_steps, 10"),
        ({"method": "bdf", "adjoint": True}, "bdf has no gradients; .* AdiabaticUpdate"),
        ({"event": lambda t, state: 3.0}, "event gives no tensor of floats"),
        ({"event": lambda t, state: state["x1"].sum()}, "event is 0 or not finite at the start"),
        (dict(times=1.0), "times is 1.0; give a list of increasing ones"),
        (dict(times=[0.0, math.nan]), "times are"),
        (dict(t_end=1.0, rtol=-1.0), "rtol is -1.0; give a tolerance above 0"),
        (dict(t_end=1.0, atol=0.0, method="bdf"), "atol is 0.0; give a tolerance above 0"),
        (dict(t_end=1.0, event=3), "event is int; give a function of time and state"),
        (
            dict(t_end=1.0, method="bdf", event=lambda t, s: torch.tensor(1.0 if t < 0.1 else math.nan)),
            "event is not finite at time",
        ),
        (
            dict(t_end=1.0, event=lambda t, s: torch.tensor(1.0 if t < 0.1 else math.nan)),
            "event is not finite at time",
        ),
    ],
)
def test_impossible_times_and_events_are_refused(kwargs, named):
    network = chain([3, 4], ["relu", "relu"])
    with pytest.raises(ValueError, match=named):
        integrate(network, **{"start": network.initial_state(x1=torch.zeros(2, 3)), "t_end": 1.0} | kwargs)


@pytest.mark.parametrize("held", [True, [True], {"x1": True}])
def test_what_holds_neurons_is_a_mapping_to_masks(held):
    network = chain([3, 4], ["identity", "tanh"])
    with pytest.raises(ValueError, match=r"held is .*; give a mapping|layer x1: the mask of held neurons is True;"):
        integrate(network, network.initial_state(x1=torch.randn(2, 3)), 1.0, held=held)


def test_more_steps_than_an_event_is_looked_for_in_are_refused_before_the_first():
    network = chain([3, 4], ["identity", "tanh"])
    start, late = network.initial_state(x1=torch.randn(2, 3)), lambda t, state: 40.0 - t
    with pytest.raises(ValueError, match=r"50000 steps to t_end, and event takes 20000 at most; give a larger step"):
        integrate(network, start, 50.0, method="rk4", step_size=1e-3, event=late)
