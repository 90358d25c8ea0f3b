"""The adiabatic limit is the MLP of a mixer, the iMLP, and what the full dynamics tend to (paper (33)-(42))."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as fn
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import Tensor

from imixer.hopfield import (
    AdiabaticUpdate,
    AttentionSynapse,
    ConvSynapse,
    HopfieldNetwork,
    LinearSynapse,
    Neurons,
    chain,
    integrate,
)


def contracting(depth: int, tied: bool = True, strength: float = 0.45, **kwargs) -> HopfieldNetwork:
    """A chain whose nested inverses all converge: couplings of norm 0.45, slopes of at most 1.13."""
    torch.manual_seed(0)
    kinds = (["layer_norm", "gelu", "tanh", "relu", "sigmoid"] * 2)[:depth]
    network = chain([3, 5, 4, 6, 3][:depth], kinds, tied=tied, field=True, **kwargs).double()
    for p in network.parameters():
        torch.nn.init.normal_(p)
    for name in network.synapses:
        for W in network.synapse(name).parameters():
            W.data.mul_(strength / torch.linalg.matrix_norm(W.data, 2))
    return network.requires_grad_(False)


def visible(*batch: int, seed: int = 1) -> Tensor:
    return torch.randn(*batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_two_layers_are_timms_mlp_with_its_skip_connection():
    mlp, norm = Mlp(6, 10).double(), torch.nn.LayerNorm(6, elementwise_affine=False, eps=1e-6)
    network = HopfieldNetwork(
        {
            "v": Neurons((4, 6), "layer_norm", decay=0, field=mlp.fc2.bias),
            "h": Neurons((4, 10), "gelu", field=mlp.fc1.bias),
        },
        [(("v", "h"), LinearSynapse(6, 10, tied=False))],
    ).double()
    with torch.no_grad():
        network.synapse("v-h").weight.copy_(mlp.fc1.weight)
        network.synapse("v-h").feedback.copy_(mlp.fc2.weight)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    for solve in ("nested", "joint"):
        close(AdiabaticUpdate(network, solve=solve)(x), x + mlp(norm(x)))


@pytest.mark.parametrize("solve", ["nested", "joint"])
@pytest.mark.parametrize("n_iter", [0, 1, 3])
def test_three_layers_are_the_iteration_of_imlp(solve, n_iter):
    network = contracting(3, tied=False, decay=[0.0, 2.0, 3.0])
    outer, inner = network.synapse("x1-x2"), network.synapse("x2-x3")
    b1, b2, b3 = (network.layer(f"x{i}").field for i in (1, 2, 3))
    x1 = visible(7)
    z = x2 = (fn.layer_norm(x1, (3,), eps=1e-6) @ outer.weight.T + b2) / 2
    for _ in range(n_iter):
        x3 = (fn.gelu(x2) @ inner.weight.T + b3) / 3
        x2 = z + torch.tanh(x3) @ inner.feedback.T / 2
    close(AdiabaticUpdate(network, n_iter=n_iter, solve=solve)(x1), x1 + fn.gelu(x2) @ outer.feedback.T + b1)


@pytest.mark.parametrize("n_iter", [0, 1, 2, 5])
def test_with_three_layers_nested_and_joint_are_the_same(n_iter):
    network, x1 = contracting(3), visible(7)
    nested, joint = (AdiabaticUpdate(network, n_iter=n_iter, solve=solve) for solve in ("nested", "joint"))
    assert torch.equal(nested.F1(x1), joint.F1(x1)) and torch.equal(nested(x1), joint(x1))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_converged_nested_and_joint_agree_and_rest(depth, tied):
    network, x1 = contracting(depth, tied, decay=[1.0, 1.0, 1.5, 1.0, 1.2][:depth]), visible(7)
    nested = AdiabaticUpdate(network, n_iter={5: 16}.get(depth, 40), solve="nested")
    joint = AdiabaticUpdate(network, n_iter=60, solve="joint")
    close(nested.F1(x1), joint.F1(x1), 1e-10)
    for update in (nested, joint):
        hidden = update.hidden(x1)
        assert update.residual(x1, hidden).shape == (7,) and update.residual(x1, hidden).max() < 1e-10
        received = network.inputs(dict(zip(network.neurons, [x1, *hidden], strict=True)))
        for name, x in zip(list(network.neurons)[1:], hidden, strict=True):
            close(received[name], network.layer(name).decay * x, 1e-9)
        close(received["x1"], update.F1(x1), 1e-9)


@given(seed=st.integers(0, 99), depth=st.integers(2, 4), batch=st.integers(1, 3))
@settings(max_examples=20)
def test_the_velocity_is_that_of_x1_with_the_others_at_rest(seed, depth, batch):
    network, x1 = contracting(depth, tau=2.0), visible(batch, seed=seed)
    update = AdiabaticUpdate(network, n_iter=60, solve="joint")
    state = dict(zip(network.neurons, [x1, *update.hidden(x1)], strict=True))
    velocity = network.velocity(state)
    close(update.velocity(x1), velocity.pop("x1"), 1e-10)
    assert max(v.abs().max() for v in velocity.values()) < 1e-10


def test_steps_repeat_the_update_and_decay_1_leaves_f1_alone():
    network, x1 = contracting(3), visible(2)
    update = AdiabaticUpdate(network)
    assert torch.equal(update(x1, steps=3), update(update(update(x1))))
    close(update(x1), update.F1(x1))
    assert torch.equal(update(x1, steps=0), x1)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize(("tau", "decay", "dt"), [(1.0, 0.0, 0.3), (2.5, 1.0, 0.1), (0.4, 0.7, 1.3)])
def test_a_step_is_one_of_euler_on_the_slow_flow_and_tau_long_by_default(depth, tau, decay, dt):
    network, x1 = contracting(depth, tau=tau, decay=[decay] + [1.0] * (depth - 1)), visible(3)
    update = AdiabaticUpdate(network, n_iter=3)
    close(update(x1, dt=dt), x1 + dt * update.velocity(x1))
    close(update(x1, dt=dt), x1 + dt / tau * (update.F1(x1) - decay * x1))
    close(update(x1, steps=2, dt=dt), update(update(x1, dt=dt), dt=dt))
    assert torch.equal(update(x1, dt=tau), update(x1))


def test_short_steps_tend_to_the_slow_flow():
    update, x1 = AdiabaticUpdate(contracting(3, tau=2.0), n_iter=40), visible(3)
    ends = [update(x1, steps=n, dt=1 / n) for n in (20, 40, 80)]
    first, second = (float((a - b).abs().max()) for a, b in pairwise(ends))
    assert second == pytest.approx(first / 2, rel=0.15)  # Euler: the error halves with the step


@pytest.mark.parametrize("dt", [0.0, -1.0, math.nan, math.inf])
def test_impossible_steps_are_refused(dt):
    update = AdiabaticUpdate(contracting(3))
    with pytest.raises(ValueError, match=f"dt is {dt}; a step must be positive and finite"):
        update(visible(2), dt=dt)
    with pytest.raises(ValueError, match="steps is -1; give 0 or more"):
        update(visible(2), steps=-1)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_cost_is_a_power_of_n_nested_and_linear_joint(depth, n, monkeypatch):
    """The innermost F ends with the way down from xL. An update of a layer takes one coupling per neighbour."""
    network, x1 = contracting(depth), visible(1)
    calls: list[str] = []
    for name in network.synapses:
        for way in ("up", "down"):
            apply = getattr(network.synapse(name), way)
            record = lambda g, apply=apply, call=f"{way} {name}": (calls.append(call), apply(g))[1]  # noqa: E731
            monkeypatch.setattr(network.synapse(name), way, record)
    innermost = f"down x{depth - 1}-x{depth}"
    AdiabaticUpdate(network, n_iter=n, solve="nested").F1(x1)
    assert calls.count(innermost) == n ** (depth - 2)

    calls.clear()
    AdiabaticUpdate(network, n_iter=n, solve="joint").F1(x1)
    assert calls.count(innermost) == n
    start, sweep = depth - 1, 2 * (depth - 2)  # what x1 sends is known; so is xL in the first sweep
    assert len(calls) == start + n * sweep - 1 + 1  # and the way down to x1


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("solve", ["nested", "joint"])
def test_what_comes_from_above_changes_the_start_only(depth, solve):
    network, x1 = contracting(depth), visible(4)
    parts = {f"x{A}": torch.randn(network.layer(f"x{A}").shape, dtype=torch.float64) for A in range(2, depth)}

    def F1(n_iter: int, top_down_bias: dict | None) -> Tensor:
        return AdiabaticUpdate(network, n_iter=n_iter, solve=solve, top_down_bias=top_down_bias).F1(x1)

    assert (F1(0, parts) - F1(0, None)).abs().max() > 1e-2
    close(F1(40, parts), F1(40, None), 1e-10)
    without = AdiabaticUpdate(network, n_iter=0, solve=solve, top_down_bias=parts).hidden(x1)[0]
    close(without + parts["x2"], AdiabaticUpdate(network, n_iter=0, solve=solve).hidden(x1)[0])


@pytest.mark.parametrize(("depth", "ratios"), [(2, (0.1, 0.03, 0.01)), (3, (0.1, 0.05, 0.02)), (4, (0.1, 0.07, 0.05))])
@torch.no_grad()
def test_the_full_dynamics_tend_to_the_reduced_flow(depth, ratios):
    """Time constants 1, e, e^2, ...: the error of x1 is proportional to e."""
    x1, t_end, errors = visible(3), 0.5, []
    slow = None
    for e in ratios:
        network = contracting(depth, strength=0.8, tau=[e**A for A in range(depth)])
        network.layer("x1").lagrangian.eps = 1.0  # so that the limit is not itself stiff
        reduced = AdiabaticUpdate(network, n_iter=60, solve="joint")
        if slow is None:  # the same for all ratios
            slow, h, f = x1, t_end / 50, reduced.velocity
            for _ in range(50):  # the reduced flow by rk4
                k1 = f(slow)
                k2 = f(slow + h / 2 * k1)
                k3 = f(slow + h / 2 * k2)
                slow = slow + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(slow + h * k3))
        start = dict(zip(network.neurons, [x1, *reduced.hidden(x1)], strict=True))
        way = integrate(network, start, t_end, frames=2, method="rk4", step_size=2 * e ** (depth - 1))
        errors.append(float((way.final["x1"] - slow).abs().max()))
    assert errors[-1] < 0.02
    points = list(zip(map(math.log, ratios), map(math.log, errors), strict=True))
    orders = [(y - b) / (x - a) for (a, b), (x, y) in pairwise(points)]
    assert orders == pytest.approx([1, 1], abs=0.2)


def test_gradients_reach_every_coupling_and_field():
    network = contracting(4, tied=False).requires_grad_()
    for solve in ("nested", "joint"):
        network.zero_grad()
        AdiabaticUpdate(network, n_iter=2, solve=solve)(visible(5)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_a_chain_of_images_and_layers_in_another_order():
    torch.manual_seed(0)
    network = HopfieldNetwork(
        {"deep": Neurons((4, 1, 1), "relu"), "image": Neurons((1, 6, 6), "tanh"), "maps": Neurons((2, 3, 3), "relu")},
        [(("maps", "deep"), ConvSynapse(2, 4, 3)), (("image", "maps"), ConvSynapse(1, 2, 2, 2))],
    ).double()
    update = AdiabaticUpdate(network, ["image", "maps", "deep"], n_iter=1)
    v, (W, V) = torch.randn(2, 1, 6, 6).double(), (network.synapse(s).weight for s in ("image-maps", "maps-deep"))
    z = fn.conv2d(torch.tanh(v), W, stride=2)
    x2 = z + fn.conv_transpose2d(torch.relu(fn.conv2d(torch.relu(z), V)), V)
    close(update(v), fn.conv_transpose2d(torch.relu(x2), W, stride=2))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"n_iter": -1}, "n_iter is -1"),
        ({"solve": "jointly"}, "solve is 'jointly'; choose nested or joint"),
        ({"layers": ["x1", "x2"]}, "a chain over x1 - x2"),
        ({"layers": ["x2", "x1", "x3"]}, "needs the synapses x2-x1, x1-x3"),
        ({"top_down_bias": {"x1": torch.zeros(3)}}, "top_down_bias names 'x1'; the layers between are x2"),
        ({"top_down_bias": {"x3": torch.zeros(3)}}, "top_down_bias names 'x3'"),
        ({"top_down_bias": {"x2": torch.zeros(3)}}, r"top_down_bias gives layer x2 \(3,\)"),
    ],
)
def test_impossible_arguments_are_refused_by_name(kwargs, named):
    with pytest.raises(ValueError, match=named):
        AdiabaticUpdate(contracting(3), **kwargs)


@pytest.mark.parametrize(
    ("network", "kwargs", "named"),
    [
        (lambda: chain([3], ["relu"]), {}, "one layer, x1"),
        (lambda: chain([3, 4], ["relu", "layer_norm"], decay=[1.0, 0.0]), {}, "layer x2 has decay 0"),
        (lambda: chain([3] * 3, ["relu"] * 3), {"top_down_bias": {"x2": torch.zeros(3)}}, "layer x2"),
        (lambda: HopfieldNetwork({"a": Neurons((2, 3)), "b": Neurons((4, 3))}, [(("a", "b"), AttentionSynapse(3))]), {},
         "synapse a-b is a AttentionSynapse"),
        (lambda: HopfieldNetwork({n: Neurons(3) for n in "abc"}, [(p, LinearSynapse(3, 3)) for p in ("ab", "bc", "ac")]
         ), {}, "needs the synapses a-b, b-c; the network has .* a-b, b-c, a-c"),
    ],
)  # fmt: skip
def test_networks_that_are_no_chain_are_refused_by_name(network, kwargs, named):
    with pytest.raises(ValueError, match=named):
        AdiabaticUpdate(network(), **kwargs)
