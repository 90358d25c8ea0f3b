"""Every equation of the paper, (1) to (42), and Algorithm 1: the library's value against one worked out here.

N_v, N_x, N_h: neurons of a layer. xi_ab is the paper's xi^(a,b), from layer b to layer a. Samples are along axis 0.
"""

import math
import re
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from imixer.hopfield import (
    AdiabaticUpdate,
    HopfieldNetwork,
    Neurons,
    chain,
    integrate,
    lagrangian,
    three_layer,
    two_layer,
)
from imixer.implicit import Contraction, FixedIterations, Picard, solve
from imixer.models import IMLP, IMixerBlock

N_v, N_x, N_h = 4, 5, 6
LAST = 42


# --- what the paper's symbols mean, worked out without the library


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def coupling(rows: int, columns: int, seed: int, norm: float = 0.6) -> Tensor:
    W = drawn(rows, columns, seed=seed)
    return W * norm / torch.linalg.matrix_norm(W, 2)


def times(xi: Tensor, g: Tensor) -> Tensor:
    """sum_b xi_ab g_b, for every sample."""
    return torch.stack([sum(xi[a, b] * g[:, b] for b in range(xi.shape[1])) for a in range(xi.shape[0])], 1)


def LN(v: Tensor) -> Tensor:
    centred = v - v.sum(1, keepdim=True) / v.shape[1]
    return centred / torch.sqrt((centred * centred).sum(1, keepdim=True))


def GELU(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def iterated(F, z: Tensor, n: int = 80) -> Tensor:
    """(1 - F)^-1 z, as near as n rounds bring it."""
    x = z
    for _ in range(n):
        x = z + F(x)
    return x


def slope(f, x: Tensor, i: int, h: float = 1e-5) -> Tensor:
    """df/dx_i of a function from (B, N) to (B,), by central differences."""
    step = torch.zeros_like(x)
    step[:, i] = h
    return (f(x + step) - f(x - step)) / (2 * h)


def gradient(f, x: Tensor) -> Tensor:
    return torch.stack([slope(f, x, i) for i in range(x.shape[1])], 1)


def total(name_or_made, x: Tensor) -> Tensor:
    """The Lagrangian L(x) of every sample."""
    return lagrangian(name_or_made).density(x).sum(1)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# --- the networks

EXACT = lagrangian("unit_layer_norm", eps=1e-300)  # the paper has no eps
xi, xi_tilde = coupling(N_h, N_v, 1), coupling(N_v, N_h, 2)
xi_xv, xi_vx, xi_hx, xi_xh = coupling(N_x, N_v, 3), coupling(N_v, N_x, 4), coupling(N_h, N_x, 5), coupling(N_x, N_h, 6)
v, x, h = drawn(3, N_v, seed=7), drawn(3, N_x, seed=8), drawn(3, N_h, seed=9)


def two(**options) -> HopfieldNetwork:
    return two_layer(N_v, N_h, EXACT, **{"xi": xi, **options}).double().requires_grad_(False)


def three(**options) -> HopfieldNetwork:
    matrices = {} if options.get("tied") else {"xi_vx": xi_vx, "xi_xh": xi_xh}
    given = {"xi_xv": xi_xv, "xi_hx": xi_hx, "tied": False, **matrices, **options}
    return three_layer(N_v, N_x, N_h, EXACT, **given).double().requires_grad_(False)


def at_rest(L_h: str = "gelu") -> tuple[AdiabaticUpdate, Tensor, Tensor]:
    """The three layers with tau_v >> tau_x >> tau_h, and x and h at rest, alpha = 0."""
    update = AdiabaticUpdate(three(decay=0.0, L_h=L_h), n_iter=80)
    return update, *update.hidden(v)


SIZES = [4, 5, 6, 3]
KINDS = [EXACT, "gelu", "tanh", "gelu"]
G_OF = [LN, GELU, torch.tanh, GELU]
UP = [coupling(b, a, 10 + i) for i, (a, b) in enumerate(pairwise(SIZES))]
DOWN = [coupling(a, b, 20 + i) for i, (a, b) in enumerate(pairwise(SIZES))]
states = [drawn(3, size, seed=30 + A) for A, size in enumerate(SIZES)]
x1 = states[0]


def four(**options) -> HopfieldNetwork:
    network = chain(SIZES, KINDS, tied=False, **options).double().requires_grad_(False)
    for name, up, down in zip(network.synapses, UP, DOWN, strict=True):
        network.synapse(name).weight.copy_(up)
        network.synapse(name).feedback.copy_(down)
    return network


def G_(A: int, y: Tensor) -> Tensor:
    return times(UP[A - 1], G_OF[A - 1](y))


def H_(A: int, y: Tensor) -> Tensor:
    return times(DOWN[A - 2], G_OF[A - 1](y))


def F_(A: int, y: Tensor, n: int = 40) -> Tensor:
    if A == len(SIZES) - 1:
        return H_(A + 1, G_(A, y))
    return H_(A + 1, iterated(lambda s: F_(A + 1, s, n), G_(A, y), n))


# --- section 3: two layers


def test_equation_1_neurons_are_two_real_vectors_that_depend_on_time():
    way = integrate(two(), {"v": v, "h": h}, 1.0, frames=7)
    assert way.states["v"].shape == (7, 3, N_v) and way.states["h"].shape == (7, 3, N_h)
    assert torch.equal(way.states["v"][0], v) and way.states["v"].diff(dim=0).abs().amax((1, 2)).min() > 0


def test_equation_2_couplings_are_matrices_and_transposes_where_symmetric():
    free, symmetric = two(tied=False, xi_tilde=xi_tilde).synapse("v-h"), two().synapse("v-h")
    assert free.weight.shape == (N_h, N_v) and free.feedback.shape == (N_v, N_h)
    close(free.down(h), times(xi_tilde, h))
    close(symmetric.down(h), torch.stack([sum(xi[m, i] * h[:, m] for m in range(N_h)) for i in range(N_v)], 1))


def test_equation_3_velocity_of_visible_neurons():
    network = two(tied=False, xi_tilde=xi_tilde, tau_v=2.5)
    close(2.5 * network.velocity({"v": v, "h": h})["v"], times(xi_tilde, GELU(h)) - v)


def test_equation_4_velocity_of_hidden_neurons():
    close(0.1 * two(tau_h=0.1).velocity({"v": v, "h": h})["h"], times(xi, LN(v)) - h)


def test_equation_5_activations_are_gradients_of_lagrangians():
    activations = two().activations({"v": v, "h": h})
    close(activations["h"], gradient(lambda y: total("gelu", y), h), 1e-8)
    close(activations["v"], gradient(lambda y: total(EXACT, y), v), 1e-8)


def test_equation_6_energy():
    g, f = LN(v), GELU(h)
    expected = (v * g).sum(1) - total(EXACT, v) + (h * f).sum(1) - total("gelu", h)
    for m in range(N_h):
        for i in range(N_v):
            expected = expected - f[:, m] * xi[m, i] * g[:, i]
    close(two().energy({"v": v, "h": h}), expected)


def test_equation_7_energy_falls_where_hessians_are_positive_semi_definite():
    network = two(L_h="softplus", tau_h=0.3)
    state = {"v": drawn(200, N_v), "h": drawn(200, N_h)}
    rate, dt = network.velocity(state), 1e-6
    ahead, back = ({name: state[name] + sign * dt * rate[name] for name in state} for sign in (1, -1))
    change = (network.energy(ahead) - network.energy(back)) / (2 * dt)
    assert (change < 0).all()
    close(network.energy_rate(state), change, 1e-6)


def test_equation_8_lagrangians_of_model_c():
    mean = v.sum(1, keepdim=True) / N_v
    close(two().layer("v").lagrangian.density(v)[:, 0], torch.sqrt(((v - mean) ** 2).sum(1)))
    phi = two(L_h="tanh").layer("h").lagrangian.density(h)
    assert phi.shape == h.shape  # a term for each neuron, and L_h is their sum
    close(phi, torch.log(torch.cosh(h)))


def test_equation_9_hidden_activation_is_the_slope_of_phi():
    phi, step = two().layer("h").lagrangian.density, 1e-5
    close(two().activations({"v": v, "h": h})["h"], (phi(h + step) - phi(h - step)) / (2 * step), 1e-8)
    close(two().activations({"v": v, "h": h})["h"], GELU(h))


def test_equation_10_visible_activation_is_layer_norm_to_length_1():
    g = two().activations({"v": v, "h": h})["v"]
    close(g, LN(v))
    close(g, torch.nn.functional.layer_norm(v, (N_v,), eps=0.0) / math.sqrt(N_v))  # torch's is sqrt(N) as long
    close(g.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_equation_11_hidden_neurons_at_once_at_rest():
    (rest,) = AdiabaticUpdate(two()).hidden(v)
    close(rest, times(xi, LN(v)))
    fast = two(tau_v=1e9, tau_h=0.01)  # the limit of (4), v standing still
    close(integrate(fast, {"v": v, "h": h}, 0.5, rtol=1e-10, atol=1e-12).final["h"], rest, 1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_equation_12_slow_flow_of_visible_neurons(alpha):
    update = AdiabaticUpdate(two(tau_v=2.0, decay=alpha))
    close(2.0 * update.velocity(v), times(xi.T, GELU(times(xi, LN(v)))) - alpha * v)


def test_equation_13_zero_mode_of_the_hessian():
    made = two().layer("v").lagrangian
    M = torch.stack([gradient(lambda y, i=i: made.activation(y)[:, i], v) for i in range(N_v)], 1)
    centred = v - v.mean(1, keepdim=True)
    close(torch.einsum("bij,bj->bi", M, centred), torch.zeros_like(v), 1e-9)
    close(made.hessian_product(v, centred), torch.zeros_like(v))
    assert M.abs().max() > 0.1 and Neurons(N_v, made, decay=0.0).decay == 0
    with pytest.raises(ValueError, match="no zero mode"):
        Neurons(N_v, "gelu", decay=0.0)


def test_equation_14_a_step_is_the_mixing_block_of_a_mixer():
    update = AdiabaticUpdate(two(tau_v=3.0, decay=0.0))
    close(update(v), v + times(xi.T, GELU(times(xi, LN(v)))))
    close(update(v, dt=3.0), update(v))
    close(update(v, dt=1.2), v + 0.4 * times(xi.T, GELU(times(xi, LN(v)))))


# --- section 4: three layers


def test_equation_15_velocity_of_visible_neurons():
    close(2.0 * three(tau_v=2.0).velocity({"v": v, "x": x, "h": h})["v"], times(xi_vx, GELU(x)) - v)


def test_equation_16_velocity_of_the_hidden_layer_between():
    rate = three(tau_x=0.5, L_h="tanh").velocity({"v": v, "x": x, "h": h})["x"]
    close(0.5 * rate, times(xi_xv, LN(v)) + times(xi_xh, torch.tanh(h)) - x)


def test_equation_17_velocity_of_the_last_hidden_layer():
    close(0.1 * three(tau_h=0.1).velocity({"v": v, "x": x, "h": h})["h"], times(xi_hx, GELU(x)) - h)


def test_equation_18_activations_are_gradients_of_three_lagrangians():
    made = three(L_x="silu", L_h="softplus")
    activations = made.activations({"v": v, "x": x, "h": h})
    for name, state in (("v", v), ("x", x), ("h", h)):
        own = made.layer(name).lagrangian
        close(activations[name], gradient(lambda y, own=own: own.density(y).sum(1), state), 1e-8)


def test_equation_19_lagrangians_of_imixer():
    made = three(L_x="relu", L_h="tanh")
    mean = v.sum(1, keepdim=True) / N_v
    close(made.layer("v").lagrangian.density(v).sum(1), torch.sqrt(((v - mean) ** 2).sum(1)))
    close(made.layer("x").lagrangian.density(x).sum(1), (x.clamp(min=0) ** 2 / 2).sum(1))
    close(made.layer("h").lagrangian.density(h).sum(1), torch.log(torch.cosh(h)).sum(1))
    defaults = three_layer(N_v, N_x, N_h)
    assert [type(defaults.layer(n).lagrangian).__name__ for n in "vxh"] == ["UnitLayerNorm", "GELU", "GELU"]


def test_equation_20_visible_neurons_become_a_residual_network():
    update, rest, _ = at_rest()
    close(update(v), v + times(xi_vx, GELU(rest)))


def test_equation_21_hidden_layer_between_at_rest():
    _, rest_x, rest_h = at_rest("tanh")
    close(rest_x, times(xi_xv, LN(v)) + times(xi_xh, torch.tanh(rest_h)))


def test_equation_22_last_hidden_layer_at_rest():
    _, rest_x, rest_h = at_rest()
    close(rest_h, times(xi_hx, GELU(rest_x)))


def test_equation_23_one_equation_for_x():
    _, rest, _ = at_rest("tanh")
    close(rest - times(xi_xh, torch.tanh(times(xi_hx, GELU(rest)))), times(xi_xv, LN(v)))


def test_equation_24_F_and_G():
    update, _, _ = at_rest("tanh")
    expected = times(xi_xh, torch.tanh(times(xi_hx, GELU(x))))
    close(update._F(2, x), expected)
    F = Contraction(N_x, N_h, [torch.nn.GELU, torch.nn.Tanh], norm="none").double().requires_grad_(False)
    zero = [torch.zeros(n, dtype=torch.float64) for n in (N_h, N_x)]
    close(F(x, [xi_hx, xi_xh, *zero]), expected)
    close(update._G(1, v), times(xi_xv, LN(v)))


def test_equation_25_one_minus_F_of_x_is_G_of_v():
    update, rest, _ = at_rest()
    close(rest - update._F(2, rest), update._G(1, v))


def test_equation_26_step_is_H_of_x():
    update, rest, _ = at_rest()
    close(update(v) - v, times(xi_vx, GELU(rest)))
    imlp = IMLP(N_v, N_x).double().eval().requires_grad_(False)
    close(imlp.H(x), times(imlp.fc_out.weight, GELU(x)) + imlp.fc_out.bias)


def test_equation_27_x_is_the_inverse_of_one_minus_F():
    A = coupling(N_x, N_h, 11) @ coupling(N_h, N_x, 12)  # linear, so that the inverse is a matrix
    exact = torch.linalg.solve(torch.eye(N_x).double() - A, x.T).T
    close(solve(lambda y: times(A, y), x, solver=Picard(rtol=1e-13, atol=1e-13)).value, exact, 1e-11)
    _, rest, _ = at_rest()
    close(rest, iterated(lambda y: times(xi_xh, GELU(times(xi_hx, GELU(y)))), times(xi_xv, LN(v))))


def test_equation_28_z_is_G_of_v():
    block = mixer_block()
    tokens = drawn(2, N_v, 3, seed=13)
    z = block.mlp_tokens.fc_in(block.norm1(tokens).transpose(1, 2))  # LayerNorm is part of the paper's G
    normed = torch.stack([math.sqrt(3) * LN(tokens[b]) for b in range(2)])
    close(z.transpose(1, 2), torch.stack([block.mlp_tokens.fc_in.weight @ normed[b] for b in range(2)]))


def imlp_matrices(imlp: IMLP) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W1, W2, *_ = imlp.contraction.weights()
    return imlp.fc_in.weight, W1, W2, imlp.fc_out.weight


def mixer_block(n_iter: int = 3, **imlp) -> IMixerBlock:
    """A block of N_v tokens and 3 channels without biases, whose channel mixing adds nothing."""
    torch.manual_seed(0)
    block = IMixerBlock(3, N_v, (5 / 3, 4.0), imlp={"n_iter": n_iter, "hidden_ratio": 1.2, **imlp},
                        norm_layer=lambda dim, **kwargs: torch.nn.LayerNorm(dim, eps=0.0, **kwargs))  # fmt: skip
    block = block.double().eval().requires_grad_(False)
    for name, p in block.named_parameters():
        if name.endswith("bias") or name.startswith("mlp_channels.fc2"):
            p.zero_()
    return block


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_algorithm_1_forward_of_imlp(n):
    imlp = IMLP(N_v, N_x, n_iter=n).double().eval().requires_grad_(False)
    W1, W2, b1, b2 = imlp.contraction.weights()
    x0 = times(imlp.fc_in.weight, v) + imlp.fc_in.bias
    xa = x0
    for _ in range(n):
        xa = x0 + times(W2, GELU(times(W1, GELU(xa)) + b1)) + b2
    close(imlp(v), times(imlp.fc_out.weight, GELU(xa)) + imlp.fc_out.bias)


def test_equation_29_fixed_point_iterations_converge_exponentially():
    def F(y: Tensor) -> Tensor:
        return times(xi_xh, GELU(times(xi_hx, GELU(y))))

    limit, expected, errors = iterated(F, x), x, []
    for n in range(8):
        close(solve(F, x, solver=FixedIterations(n)).value, expected)
        close(AdiabaticUpdate(three(), n_iter=n)._inverse(2, x), expected)
        errors.append(float((expected - limit).norm()))
        expected = x + F(expected)
    lipschitz = (0.6 * lagrangian("gelu").lipschitz) ** 2
    assert all(later <= lipschitz * earlier for earlier, later in pairwise(errors)) and errors[0] > 0


def test_equation_30_imixers_token_mixing_with_layer_norm_and_skip_connection():
    block, tokens = mixer_block(), drawn(2, N_v, 3, seed=13)
    W_in, W1, W2, W_out = imlp_matrices(block.mlp_tokens)
    for b in range(2):
        z = W_in @ (math.sqrt(3) * LN(tokens[b]))  # a matrix (tokens, channels): xi acts along the tokens
        y = z
        for _ in range(3):
            y = z + W2 @ GELU(W1 @ GELU(y))
        close(block(tokens)[b], tokens[b] + W_out @ GELU(y))


# --- appendix B: L layers


def test_equation_31_an_activation_for_every_layer_from_its_lagrangian():
    network = four()
    activations = network.activations(dict(zip(network.neurons, states, strict=True)))
    for A, (name, state) in enumerate(zip(network.neurons, states, strict=True)):
        own = network.layer(name).lagrangian
        assert activations[name].shape == state.shape == (3, SIZES[A])
        close(activations[name], gradient(lambda y, own=own: own.density(y).sum(1), state), 1e-8)


def test_equation_32_velocity_of_every_layer():
    network = four(tau=[3.0, 2.0, 0.5, 0.1])
    velocity = network.velocity(dict(zip(network.neurons, states, strict=True)))
    for A in range(4):
        below = times(UP[A - 1], G_OF[A - 1](states[A - 1])) if A > 0 else 0.0
        above = times(DOWN[A], G_OF[A + 1](states[A + 1])) if A < 3 else 0.0
        close([3.0, 2.0, 0.5, 0.1][A] * velocity[f"x{A + 1}"], below + above - states[A])


def rest_of_four() -> tuple[AdiabaticUpdate, list[Tensor]]:
    update = AdiabaticUpdate(four(decay=[0.0, 1.0, 1.0, 1.0]), n_iter=60, solve="joint")
    return update, [x1, *update.hidden(x1)]


def test_equation_33_slow_flow_of_the_visible_layer():
    update = AdiabaticUpdate(four(tau=[2.0, 1.0, 1.0, 1.0]), n_iter=60, solve="joint")
    close(2.0 * update.velocity(x1), times(DOWN[0], GELU(update.hidden(x1)[0])) - x1)


def test_equation_34_middle_layers_at_rest():
    _, rest = rest_of_four()
    for A in (2, 3):
        below, above = G_(A - 1, rest[A - 2]), H_(A + 1, rest[A])
        close(rest[A - 1], below + above)


def test_equation_35_last_layer_at_rest():
    update, rest = rest_of_four()
    close(rest[3], times(UP[2], torch.tanh(rest[2])))
    assert update.residual(x1, rest[1:]).max() < 1e-12


def test_equation_36_lagrangian_of_the_visible_layer():
    mean = sum(x1[:, i] for i in range(4)) / 4
    expected = torch.sqrt(sum((x1[:, i] - mean) ** 2 for i in range(4)))
    close(four().layer("x1").lagrangian.density(x1)[:, 0], expected)


def test_equation_37_step_of_the_visible_layer():
    update, rest = rest_of_four()
    close(update(x1), x1 + times(DOWN[0], GELU(rest[1])))


def test_equation_38_x2_is_an_inverse_of_what_comes_from_x1():
    _, rest = rest_of_four()
    close(rest[1] - F_(2, rest[1]), G_(1, x1), 1e-10)
    nested = AdiabaticUpdate(four(), n_iter=30)
    close(nested.hidden(x1)[0], iterated(lambda y: F_(2, y), G_(1, x1), 30), 1e-8)


@pytest.mark.parametrize("A", [1, 2])
def test_equation_39_F_holds_the_inverse_of_the_next_F(A):
    nested = AdiabaticUpdate(four(), n_iter=12)
    expected = H_(A + 1, iterated(lambda y: F_(A + 1, y, 12), G_(A, states[A - 1]), 12))
    close(nested._F(A, states[A - 1]), expected)


def test_equation_40_the_innermost_F_holds_none():
    close(AdiabaticUpdate(four())._F(3, states[2]), times(DOWN[2], GELU(times(UP[2], torch.tanh(states[2])))))
    F = Contraction(N_x, N_h, norm="none").double().requires_grad_(False)  # L = 3: F^2 = H^3 . G^2
    W1, W2, b1, b2 = F.weights()
    assert F.inner is None
    close(F(x, F.weights()), times(W2, GELU(times(W1, GELU(x)) + b1)) + b2)


@pytest.mark.parametrize("A", [1, 2, 3])
def test_equation_41_G_and_H(A):
    update = AdiabaticUpdate(four())
    close(update._G(A, states[A - 1]), times(UP[A - 1], G_OF[A - 1](states[A - 1])))
    close(update._H(A + 1, states[A]), times(DOWN[A - 1], G_OF[A](states[A])))


def test_equation_42_step_is_x1_and_F1():
    update = AdiabaticUpdate(four(decay=[0.0, 1.0, 1.0, 1.0]), n_iter=12)
    close(update(x1), x1 + F_(1, x1, 12))
    block = mixer_block(2, num_layers=4, hidden_ratio=(1.2, 0.8))
    F, tokens = block.mlp_tokens.contraction, drawn(N_v, 3, seed=14)
    W1, W2, _, _, V1, V2, *_ = F.weights()

    def F3(y: Tensor) -> Tensor:
        return V2 @ GELU(V1 @ GELU(y))

    def F2(y: Tensor) -> Tensor:
        return W2 @ GELU(iterated(F3, W1 @ GELU(y), 2))

    z = block.mlp_tokens.fc_in.weight @ (math.sqrt(3) * LN(tokens))
    close(block(tokens[None])[0], tokens + block.mlp_tokens.fc_out.weight @ GELU(iterated(F2, z, 2)))


def test_every_equation_is_checked():
    tests = [name for name in vars(sys.modules[__name__]) if name.startswith("test_equation_")]
    numbers = [int(re.match(r"test_equation_(\d+)_", name)[1]) for name in tests]
    assert sorted(numbers) == list(range(1, LAST + 1))
