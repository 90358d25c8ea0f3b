"""Bounds that modules state, what they compose to, and their certificates, against Jacobians and dense matrices."""

import copy
import math

import pytest
import torch
from torch import nn

from imixer.implicit import (
    Contraction,
    L2Attention,
    MonotoneContraction,
    OrthogonalLinear,
    SpectralConv1d,
    SpectralConv2d,
    SpectralLinear,
    certify,
    convolution_sigma,
    lipschitz_bound,
    solve,
)
from imixer.implicit.attention import _inverse_phi


def jacobian_norm(F, x):
    """Of one sample x (1, ...), by the whole Jacobian."""
    rows = torch.autograd.functional.jacobian(lambda x: F(x).flatten(), x)
    return torch.linalg.matrix_norm(rows.flatten(1), 2).item()


class Stated(nn.Module):
    def __init__(self, slope, said):
        super().__init__()
        self.slope, self.said = slope, said

    def forward(self, x):
        return self.slope * x.sin()

    def lipschitz_bound(self):
        return self.said


def test_a_sequence_multiplies_what_its_parts_state():
    torch.manual_seed(0)
    F = nn.Sequential(
        nn.Tanh(), SpectralLinear(4, 8, coeff=0.5), nn.Sigmoid(), OrthogonalLinear(8, 4, coeff=0.9), Stated(0.5, 0.5)
    ).double()
    W = F[1].eval().normalized_weight()
    assert lipschitz_bound(F) == pytest.approx(torch.linalg.matrix_norm(W, 2).item() * 0.25 * 0.9 * 0.5, rel=1e-6)
    assert lipschitz_bound(nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.LayerNorm(3))) == math.inf
    assert lipschitz_bound(nn.LeakyReLU(2.0)) == 2 and lipschitz_bound(nn.ELU(0.5)) == 1


def test_any_module_that_states_its_bound_is_certified():
    z = torch.randn(5, 3)
    certificate = certify(Stated(0.7, 0.7), z=z)
    x = certificate.data.x
    torch.testing.assert_close(x, z.double() + 0.7 * x.sin())
    torch.testing.assert_close(certificate.data.norms[0], 0.7 * x.cos().abs().amax(1), rtol=1e-3, atol=0)
    assert certificate.verdict == "guaranteed" and certificate.worst.bound == 0.7 and certificate.data.holds


def test_a_module_that_states_none_is_observed_and_named():
    F = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3, elementwise_affine=False), Stated(0.1, 0.1))
    certificate = certify(F, z=torch.randn(4, 3))
    assert certificate.worst.bound == math.inf and certificate.worst.unstated == ("F[1] (LayerNorm)",)
    assert certificate.verdict in ("observed", "violated")
    assert certify(Stated(3.0, math.inf), z=torch.randn(4, 3)).verdict == "violated"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sequence_leaves_the_room_for_rounding_that_a_contraction_of_its_sizes_does(dtype):
    torch.manual_seed(0)
    F = Contraction(8, 2000, nn.ReLU, norm="none").eval()
    with torch.no_grad():
        for layer in (F.fc1, F.fc2):
            layer.weight.mul_(0.8 / torch.linalg.matrix_norm(layer.weight, 2))
    F = F.to(dtype)
    sequence = nn.Sequential(F.act, F.fc1, F.act_hidden, F.fc2)
    z = torch.randn(3, 8)  # of another type than the weights
    as_contraction, as_module = certify(F, z=z), certify(sequence, z=z)
    assert as_module.worst.bound == pytest.approx(as_contraction.worst.bound)
    assert as_module.worst.computed_bounds == pytest.approx(as_contraction.worst.computed_bounds)
    assert as_module.verdict == as_contraction.verdict == ("observed" if dtype == torch.bfloat16 else "guaranteed")


def test_what_a_module_states_has_room_for_the_rounding_of_its_type():
    class Half(Stated):
        def __init__(self):
            super().__init__(0.99, 0.99)
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    z = torch.randn(5, 3)
    assert certify(Stated(0.99, 0.99), z=z).verdict == "guaranteed"
    assert certify(Half(), z=z).worst.computed_bounds == pytest.approx((0.99 * (1 + 3 * 2**-7),))


def test_a_contractions_activations_state_their_own_slopes():
    torch.manual_seed(0)
    F, z = Contraction(6, 8, nn.Tanh).eval(), torch.randn(4, 6)
    assert certify(F, z=z).worst == certify(F, [1.0, 1.0], z).worst
    assert lipschitz_bound(nn.Sequential(F, nn.Sigmoid())) == pytest.approx(0.25 * certify(F, z=z).worst.bound)


def test_inputs_per_sample_stay_with_their_samples():
    torch.manual_seed(0)
    F, u = MonotoneContraction(4, 2).double(), torch.randn(5, 2).double()
    certificate = certify(F, z=torch.zeros(5, 4), tensors=[u, *(w.detach() for w in F.weights())])
    x = certificate.data.x
    assert certificate.verdict == "guaranteed" and certificate.data.converged.all()
    torch.testing.assert_close(x, F(x, u, *F.weights()).detach())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda z: certify(Stated(0.5, 0.5), z), r"z is missing; give inputs as certify\(F, z=z\)"),
        (lambda z: certify(Stated(0.5, 0.5)), "z is missing"),
        (lambda z: certify(Stated(0.5, 0.5), [1.0], z), "lipschitz is given, and Stated is no Contraction"),
        (lambda z: certify(Stated(0.5, -1.0), z=z), r"Stated.lipschitz_bound\(\) returns -1.0; return a number of 0"),
        (lambda z: certify(Stated(0.5, "x"), z=z), r"Stated.lipschitz_bound\(\) returns 'x'; return"),
        (lambda z: certify(torch.sin, z=z), "F is builtin_function_or_method; give a module"),
        (lambda z: certify(nn.Linear(4, 4), z=z), r"Linear fails on z of shape \(4, 3\): .*cannot be multiplied"),
        (lambda z: certify(nn.Linear(3, 2), z=z), r"F leads from \(4, 3\) to \(4, 2\); let it give back"),
        (lambda z: certify(Stated(0.5, 0.5), z=z.long()), "z is torch.int64 .*; give one or more real inputs"),
    ],
)
def test_what_cannot_be_certified_is_refused_in_a_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.randn(4, 3))


# Attention


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_no_jacobian_of_l2_attention_exceeds_its_bound(scale):
    torch.manual_seed(0)
    F = L2Attention(4, 2, tokens=5, coeff=1e9).double()
    for _ in range(5):
        x = scale * torch.randn(1, 5, 4, dtype=torch.float64)
        assert jacobian_norm(F, x) <= F.lipschitz_bound()
    held = L2Attention(4, 2, tokens=5, coeff=0.7).double()
    assert held.lipschitz_bound() == 0.7
    assert jacobian_norm(held, torch.zeros(1, 5, 4).double()) <= 0.7


def test_l2_attention_is_the_papers_written_out():
    torch.manual_seed(0)
    F, x = L2Attention(6, 2, tokens=4, coeff=1e9).double(), torch.randn(2, 4, 6, dtype=torch.float64)
    heads = []
    for Q, V in zip(F.query, F.value, strict=True):
        P = (-(torch.cdist(x @ Q.T, x @ Q.T) ** 2) / 3**0.5).softmax(-1)
        heads.append(P @ x @ (Q.T @ Q / 3**0.5) @ V.T)
    torch.testing.assert_close(F(x), torch.cat(heads, -1) @ F.out.T)
    for y in (0.5, 1.0, 15.0, 4095.0):
        c = _inverse_phi(y)
        assert c * math.exp(c + 1) == pytest.approx(y)
    assert _inverse_phi(0) == 0


def test_l2_attention_is_solved_for_and_certified():
    torch.manual_seed(0)
    F, z = L2Attention(4, 2, tokens=3).double(), torch.randn(2, 3, 4, dtype=torch.float64)
    x = solve(F, z, F.weights(), solver="anderson", gradient="implicit").value
    x.square().sum().backward()
    assert F.query.grad.isfinite().all() and certify(F, z=z).verdict == "guaranteed"
    with pytest.raises(ValueError, match=r"x is \(2, 4, 4\); give \(B, N, D\) with at most 3 tokens"):
        F(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="features, num_heads and tokens are 4, 3 and 3; give"):
        L2Attention(4, 3, 3)


# Convolutions


def dense(layer, size, channels):
    x = torch.eye(channels * size[0] * size[1], dtype=torch.float64).view(-1, channels, *size)
    return (layer(x) - layer.bias[:, None, None]).flatten(1)


@pytest.mark.parametrize("padding_mode", ["circular", "zeros", "reflect", "replicate"])
def test_power_iteration_finds_the_norm_of_a_convolution_and_the_bound_is_above(padding_mode):
    torch.manual_seed(0)
    size = (5, 6)
    free = SpectralConv2d(2, 3, 3, size, padding_mode=padding_mode, coeff=1e9, sigma="power").double()
    for _ in range(20):
        free.warm_up()
    exact = torch.linalg.matrix_norm(dense(free, size, 2), 2).item()
    assert float(free.sigma()) == pytest.approx(exact, rel=1e-4)
    bound = float(convolution_sigma(free.weight, size, padding_mode))
    assert exact * (1 - 1e-12) <= bound < 2.5 * exact
    if padding_mode == "circular":
        assert bound == pytest.approx(exact)
    held = SpectralConv2d(2, 3, 3, size, padding_mode=padding_mode, coeff=0.1, sigma="power").double().eval()
    norm = torch.linalg.matrix_norm(dense(held, size, 2), 2).item()
    assert norm == pytest.approx(0.1, rel=1e-2) and norm <= held.lipschitz_bound() * (1 + 1e-12)
    fourier = SpectralConv2d(2, 3, 3, size, padding_mode=padding_mode, coeff=0.1).double()
    assert torch.linalg.matrix_norm(dense(fourier, size, 2), 2).item() <= 0.1 + 1e-9


def test_training_moves_a_convolutions_power_iteration_and_gradients_go_through():
    torch.manual_seed(0)
    layer = SpectralConv2d(2, 2, 3, (4, 4), padding_mode="reflect", coeff=0.1, sigma="power")
    before = layer.v.clone()
    with torch.no_grad():
        layer.weight.normal_()
    layer(torch.randn(1, 2, 4, 4)).sum().backward()
    assert not torch.equal(layer.v, before) and layer.weight.grad.isfinite().all()
    kept = layer.eval().v.clone()
    layer(torch.randn(1, 2, 4, 4))
    assert torch.equal(layer.v, kept) and "v" in layer.state_dict()


def test_a_convolution_takes_no_size_for_which_its_power_iteration_was_not_made():
    layer = SpectralConv1d(1, 1, 3, 4, padding_mode="zeros", sigma="power").eval()
    for size in (4, (64,)):
        layer.size = size
        with pytest.raises(ValueError, match=r"images are \(64,\), and the norm is known for \(4,\); build the layer"):
            layer(torch.randn(1, 1, 64))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"padding_mode": "mirror"}, "padding_mode is 'mirror'; choose circular, zeros, reflect, replicate"),
        ({"size": 4}, "size is 4; give the height and the width"),
        ({"sigma": "exact"}, "sigma is 'exact'; choose fourier or power"),
        ({"in_channels": 0}, "in_channels, out_channels and n_power_iterations are 0, 1 and 8; give"),
    ],
)
def test_an_impossible_convolution_is_refused_with_the_remedy(options, said):
    with pytest.raises(ValueError, match=said):
        SpectralConv2d(**{"in_channels": 1, "out_channels": 1, "kernel_size": 3, "size": (4, 4)} | options)


@pytest.mark.parametrize(
    "act",
    [
        nn.CELU(0.5),
        nn.ELU(3.0),
        nn.GELU(),
        nn.Hardsigmoid(),
        nn.Hardswish(),
        nn.LeakyReLU(2.0),
        nn.Mish(),
        nn.PReLU(init=-2.0),
        nn.RReLU(),
        nn.SELU(),
        nn.SiLU(),
        nn.Softshrink(),
        nn.Tanhshrink(),
    ],
    ids=repr,
)
def test_the_slopes_of_torchs_activations_are_those_of_their_chords(act):
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64)[None]
    with torch.no_grad():
        steepest = float((act.double().eval()(x).diff() / x.diff()).abs().max())
    assert steepest <= lipschitz_bound(act) * (1 + 1e-9) and lipschitz_bound(act) == pytest.approx(steepest, abs=1e-3)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 4),
        SpectralLinear(4, 4),
        SpectralLinear(4, 4, sigma="exact"),
        OrthogonalLinear(4, 4),
        SpectralConv1d(4, 4, 3, 4),
        L2Attention(4, 2, tokens=4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_matrix_that_is_not_finite_has_no_bound_and_is_named(layer, number):
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        next(layer.parameters()).view(-1)[0] = number
    for call in (lipschitz_bound, lambda F: certify(F, z=torch.randn(2, 4, 4))):
        with pytest.raises(
            ValueError, match=rf"^(F\[1\] \()?{type(layer).__name__}\)? is not finite; no bound is to be"
        ):
            call(nn.Sequential(nn.Tanh(), layer))


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("act", [nn.PReLU(3), nn.LeakyReLU(), nn.RReLU(), nn.ELU()], ids=lambda act: type(act).__name__)
def test_an_activation_whose_slope_is_not_finite_has_no_bound_and_is_named(act, number):
    act, kind = copy.deepcopy(act), type(act).__name__
    if isinstance(act, nn.PReLU):
        act.weight.data[1] = number
    act.negative_slope = act.lower = act.alpha = number
    F = Contraction(3, 4, coeff=0.5)
    F.act = act
    for module, name in ((nn.Sequential(nn.Tanh(), act), r"F\[1\]"), (act, "F"), (F, "F, activation 2")):
        with pytest.raises(ValueError, match=rf"^{name} \({kind}\) is not finite; no bound is to be had of it$"):
            lipschitz_bound(module)
    with pytest.raises(ValueError, match=rf"\({kind}\) is not finite; no bound is to be had of it$"):
        certify(F, z=torch.randn(2, 3))


@pytest.mark.parametrize("grows", [2.0, 0.9])
def test_a_stated_bound_that_a_jacobian_contradicts_is_refused(grows):
    class Boasting(nn.Module):
        def forward(self, x):
            return grows * x

        def lipschitz_bound(self):
            return 0.5

    with pytest.raises(ValueError, match=rf"bounded by 0.5 by .* Jacobian is {grows:g} at one .*; let lipschitz_bound"):
        certify(nn.Sequential(Boasting()), z=torch.randn(3, 4))


@pytest.mark.parametrize(
    ("z", "said"),
    [
        (torch.zeros(0, 3), r"z is torch.float32 of shape \(0, 3\); give one or more real inputs"),
        ({"a": torch.ones(2, 3)}, "z is dict; give inputs as"),
        (None, "z is missing; give inputs as"),
    ],
)
def test_impossible_inputs_of_a_certificate_are_refused(z, said):
    with pytest.raises(ValueError, match=said):
        certify(nn.Tanh(), z=z)
