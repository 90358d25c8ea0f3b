"""Every Lagrangian keeps the promises of its base class; the numbers are right; wrong claims are refused."""

import copy
import inspect
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians import (
    GELU,
    LAGRANGIANS,
    Elementwise,
    Entmax,
    Exponential,
    FromDensity,
    Identity,
    LayerNorm,
    RectifiedPower,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Sparsemax,
    Spherical,
    Tanh,
    UnitLayerNorm,
    lagrangian,
    register,
)
from imixer.hopfield.lagrangians.masked import Masked

N = 4
NAMES = sorted(LAGRANGIANS)
TEMPERED = [name for name in NAMES if "beta" in inspect.signature(LAGRANGIANS[name]).parameters]
MAGNITUDES = [0.0, 1e-8, 1.0, 10.0, 89.0, 1e2, 1e3, 1e4]
LISTED = torch.tensor([s * m for s in (1, -1) for m in MAGNITUDES])

# Every name at its defaults, and the options worth a second look.
CASES: dict[str, Lagrangian] = {name: lagrangian(name) for name in NAMES} | {
    "rectified_power 1": RectifiedPower(1),
    "rectified_power 3": RectifiedPower(3),
    "sigmoid beta": Sigmoid(2.5),
    "tanh beta": Tanh(0.3),
    "softmax beta": Softmax(3.0),
    "softmax axes": Softmax(2.0, axis=(-2, -1)),
    "sigmoid beta per neuron": Sigmoid(torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)),
    "entmax 1.2": Entmax(1.2, 2.0),
    "sparsemax axes": Sparsemax(2.0, axis=(-2, -1)),
    "exponential low": Exponential(1.5, cutoff=1.0),
    "layer_norm axes": LayerNorm((-2, -1), eps=0.1, gain=2.0, shift=torch.linspace(-1, 1, N, dtype=torch.float64)),
    "layer_norm -2": LayerNorm(-2, shift=0.5),
    "layer_norm concave": LayerNorm(gain=-1.0, eps=0.01),
    "spherical axes": Spherical((-2, -1), radius=3.0, eps=0.1),
    "unit_layer_norm axes": UnitLayerNorm((-2, -1), eps=0.1),
    "unit_layer_norm -2": UnitLayerNorm(-2, eps=0.01),
    "softmax learnable": Softmax(1.5, learnable=True),
    "elementwise": Elementwise(lambda x: torch.sqrt(1 + x.square()), convex=True, lipschitz=1.0),
}


def each(cases: dict[str, Lagrangian]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("made", cases.values(), ids=cases.keys())


every = each(CASES)
bounded = each({name: made for name, made in CASES.items() if math.isfinite(made.lipschitz)})
unbounded = each({name: made for name, made in CASES.items() if not math.isfinite(made.lipschitz)})


def states(seed: int = 0, shape: tuple[int, ...] = (6, 3, N), scale: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


def gradient(made: Lagrangian, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(made.density(x).sum(), x)[0]


def hessians(made: Lagrangian, x: Tensor) -> Tensor:
    """M (..., n, n) of samples x (..., 3, N), n = 3 N."""
    basis = torch.eye(3 * N, dtype=x.dtype).unflatten(-1, (3, N))

    def one(x: Tensor) -> Tensor:
        return torch.vmap(lambda e: made.hessian_product(x, e).flatten())(basis)

    return torch.vmap(one)(x)


def scales() -> Tensor:
    """Samples (B, 3, N) near 0, near 1 and far out, and at exactly 0."""
    return torch.cat([states(s, (40, 3, N), 10.0**s) for s in (-3, -1, 0, 1)] + [torch.zeros(1, 3, N).double()])


# --- the promises of the base class


@every
@given(shape=st.lists(st.integers(1, 3), max_size=2), seed=st.integers(0, 99), scale=st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=8)
def test_activation_is_the_gradient_of_the_summed_density(made, shape, seed, scale):
    x = states(seed, (*shape, 3, N), scale)
    g = made.activation(x)
    assert g.shape == x.shape
    torch.testing.assert_close(gradient(made, x), g, rtol=1e-10, atol=1e-12)


@every
def test_activation_is_the_finite_difference_of_the_density(made):
    x, u, h = states(1), states(2), 1e-5
    change = (made.density(x + h * u).sum() - made.density(x - h * u).sum()) / (2 * h)
    torch.testing.assert_close(change, (made.activation(x) * u).sum(), rtol=1e-6, atol=1e-6)


@every
def test_hessian_product_is_the_finite_difference_of_the_activation(made):
    x, u, h = states(3), states(4), 1e-6
    change = (made.activation(x + h * u) - made.activation(x - h * u)) / (2 * h)
    torch.testing.assert_close(made.hessian_product(x, u), change, rtol=1e-5, atol=1e-6)


@every
def test_second_derivative_of_the_density_is_the_hessian_also_at_0(made):
    x = torch.cat([states(5, (4, 3, N)), torch.zeros(1, 3, N).double()]).requires_grad_()
    u = states(6, (5, 3, N))
    (g,) = torch.autograd.grad(made.density(x).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad((g * u).sum(), x)
    torch.testing.assert_close(twice, made.hessian_product(x.detach(), u), rtol=1e-9, atol=1e-9)


@every
def test_autograd_agrees_with_finite_differences_to_second_order(made):
    x = states(7, (2, 3, N)).requires_grad_()
    for f in (made.density, made.activation):
        torch.autograd.gradgradcheck(f, (x,), fast_mode=True)
        torch.autograd.gradcheck(f, (x,), fast_mode=True, check_forward_ad=True)


@every
def test_density_keeps_the_axes_it_couples_with_size_1(made):
    x = states()
    coupled = getattr(made, "axis", ())
    expected = [1 if a - x.ndim in coupled else size for a, size in enumerate(x.shape)]
    assert list(made.density(x).shape) == expected
    assert made.elementwise == (not coupled)


@every
def test_samples_do_not_depend_on_their_batch(made):
    x = states()
    for i in range(len(x)):
        torch.testing.assert_close(made.density(x)[i], made.density(x[i]), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(made.activation(x)[i], made.activation(x[i]), rtol=1e-13, atol=1e-14)


@every
def test_hessian_is_symmetric_and_diagonal_if_elementwise(made):
    M = hessians(made, states())
    torch.testing.assert_close(M, M.mT, rtol=1e-12, atol=1e-12)
    if made.elementwise:
        assert torch.equal(M, torch.diag_embed(M.diagonal(dim1=-2, dim2=-1)))


@every
def test_hessian_is_positive_semi_definite_if_and_only_if_convex_is_claimed(made):
    M = hessians(made, torch.cat([scales(), torch.linspace(-3, 3, 61).double().view(-1, 1, 1).expand(-1, 3, N)]))
    smallest = torch.linalg.eigvalsh(M)[:, 0]
    if made.convex:
        assert (smallest >= -1e-10 * (1 + M.flatten(1).norm(dim=1))).all()
    else:
        assert smallest.min() < -1e-3


@every
def test_lipschitz_constant_bounds_the_hessian(made):
    M = hessians(made, scales())
    assert torch.linalg.matrix_norm(M, ord=2).max() <= made.lipschitz * (1 + 1e-9)


@each({name: made for name, made in CASES.items() if math.isfinite(made.lipschitz) and "entmax" not in name})
def test_finite_lipschitz_constant_is_attained(made):
    flat = torch.linspace(-5, 70, 1501).double().view(-1, 1, 1).expand(-1, 3, N)
    pairs = torch.tensor([0.0, 0.0, -1e3, -1e3]).double().expand(1, 3, N).clone()
    pairs[:, 1:] = -1e3
    rows = torch.tensor([0.0, 0.0, -1e3, -1e3]).double().expand(1, 3, N)
    M = hessians(made, torch.cat([flat, pairs, rows, torch.zeros(1, 3, N).double()]))
    assert torch.linalg.matrix_norm(M, ord=2).max() > 0.99 * made.lipschitz


@pytest.mark.parametrize(("alpha", "seen"), [(1.2, 0.65), (1.5, 0.94)])
def test_lipschitz_constant_of_entmax_is_approached_with_ever_more_neurons(alpha, seen):
    """One neuron has most of the weight, and many share the rest; a pair has 2^(alpha - 2)."""
    slopes = [2 ** (alpha - 2)]
    for count in (10**4, 10**5, 10**6):
        p = torch.cat([torch.tensor([0.9]), torch.full((count,), 0.1 / count)]).double()
        x = p ** (alpha - 1) / (alpha - 1)
        slopes.append(float(Entmax(alpha).hessian_product(x, torch.eye(1, count + 1).double()[0])[0]))
    assert slopes[1:] == sorted(slopes[1:]) and slopes[0] < slopes[-1] and seen < slopes[-1] < Entmax(alpha).lipschitz


@unbounded
def test_unbounded_lipschitz_constant_is_claimed_only_where_the_slope_grows(made):
    near, far = (made.hessian_product(x := torch.full((3, N), v).double(), torch.ones_like(x)).max() for v in (10, 20))
    assert far > 1.9 * near > 0


@every
def test_zero_mode_is_claimed_where_there_is_one_and_nowhere_else(made):
    x = states(8, scale=2.0)
    if not made.zero_mode:
        assert made.hessian_product(x, x).abs().max() > 0.01
        return
    made = copy.deepcopy(made)
    left = []
    for made.eps in (1e-4, 1e-6, 1e-8):
        left.append(made.hessian_product(x, x).abs().max())
    assert left[2] < 1e-5 and left[1] < left[0] / 50 and left[2] < left[1] / 50


# --- precision and range


def far_out(made: Lagrangian) -> Tensor:
    """Samples (B, N, N) of the listed values, in float32."""
    x = LISTED.view(-1, 1, 1).expand(-1, N, N)
    if made.elementwise:
        return x
    # Alike, of both signs, and one neuron far from the others: along either axis.
    return torch.cat([x, x * torch.tensor([1.0, -1.0, 0.5, 0.0]), x * torch.eye(N), x * torch.eye(N) + x.mT / 3])


@every
def test_float32_agrees_with_float64_up_to_1e4(made):
    narrow, x = copy.deepcopy(made).float(), far_out(made)
    u = torch.linspace(-1, 1, N).expand_as(x)
    for name, a, b in [
        ("density", narrow.density(x), made.density(x.double())),
        ("activation", narrow.activation(x), made.activation(x.double())),
        ("gradient", gradient(narrow, x), made.activation(x.double())),
        ("hessian", narrow.hessian_product(x, u), made.hessian_product(x.double(), u.double())),
    ]:
        assert a.dtype == torch.float32 and a.isfinite().all() and b.isfinite().all(), name
        scale = b.abs() if made.elementwise else b.abs().amax((-2, -1), keepdim=True)
        assert ((a - b).abs() <= 2e-6 * scale + 1e-6).all(), name


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_values_are_right_to_its_precision(made, dtype):
    x, mine = states(9, scale=2.0).to(dtype), copy.deepcopy(made).to(dtype)
    for a, b in [
        (mine.density(x), made.density(x.double())),
        (mine.activation(x), made.activation(x.double())),
        (gradient(mine, x), made.activation(x.double())),
    ]:
        assert a.dtype == dtype
        assert (a - b).abs().max() <= 6 * torch.finfo(dtype).eps * (1 + b.abs().max())


@every
def test_bfloat16_is_finite_up_to_1e4(made):
    x, mine = far_out(made).bfloat16(), copy.deepcopy(made).bfloat16()
    for value in (mine.density(x), mine.activation(x), gradient(mine, x), mine.hessian_product(x, x)):
        assert value.isfinite().all()


# --- torch transforms


@every
def test_states_may_be_expanded_or_strided(made):
    x, u = states(18, (1, 3, N)).expand(6, 3, N), states(19)
    torch.testing.assert_close(made.hessian_product(x, u), made.hessian_product(x.clone(), u))
    torch.testing.assert_close(made.hessian_product(u.mT.clone().mT, x), made.hessian_product(u, x.clone()))


@every
def test_vmap_and_func_transforms_give_the_same(made):
    x = states(10)
    torch.testing.assert_close(torch.vmap(made.density)(x), made.density(x))
    torch.testing.assert_close(torch.vmap(made.activation)(x), made.activation(x))
    torch.testing.assert_close(torch.vmap(made.hessian_product)(x, x), made.hessian_product(x, x))
    M = torch.func.hessian(lambda x: made.density(x).sum())(x[0]).reshape(3 * N, 3 * N)
    torch.testing.assert_close(M, hessians(made, x[:1])[0])


@every
def test_compiles_to_one_graph(made):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: (made.density(x), made.activation(x)), fullgraph=True, backend="eager")
    for x in (states(11), states(11)[:4]):
        torch.testing.assert_close(compiled(x), (made.density(x), made.activation(x)))


# --- reference values


@pytest.mark.parametrize(
    ("name", "slope"), [("gelu", 1.12890), ("silu", 1.0998), ("sigmoid", 0.25), ("softmax", 0.5), ("tanh", 1.0)]
)
def test_lipschitz_constants_are_the_known_ones(name, slope):
    assert lagrangian(name).lipschitz == pytest.approx(slope, abs=1e-4 if name == "silu" else 5e-6)


def test_lipschitz_constants_of_gelu_and_silu_are_exact():
    with mpmath.workdps(30):
        root2 = mpmath.sqrt(2)
        assert GELU().lipschitz == pytest.approx(float(mpmath.ncdf(root2) + root2 * mpmath.npdf(root2)), rel=4e-16)
        x = mpmath.findroot(lambda x: x * mpmath.tanh(x / 2) - 2, 2.4)
        s = 1 / (1 + mpmath.exp(-x))
        assert SiLU().lipschitz == pytest.approx(float(s + x * s * (1 - s)), rel=4e-16)


def test_smallest_slope_of_gelu_is_minus_0_129():
    x = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    assert GELU().hessian_product(x, torch.ones_like(x)).min().item() == pytest.approx(-0.129, abs=5e-4)


def softplus_reference(x):
    return -mpmath.polylog(2, -mpmath.exp(x)).real


REFERENCES = {
    "softplus": softplus_reference,
    "silu": lambda x: x * mpmath.log1p(mpmath.exp(x)) - softplus_reference(x),
    "gelu": lambda x: ((x**2 - 1) * mpmath.ncdf(x) + x * mpmath.npdf(x)) / 2,
    "tanh": lambda x: mpmath.log(mpmath.cosh(x)),
    "sigmoid": lambda x: mpmath.log1p(mpmath.exp(x)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_density_is_exact_to_float64(name):
    points = [-40.0, -20.5, -8.0, -2.0, -1.0, -0.3, -1e-8, 0.0, 1e-8, 1e-3, 0.5, 1.0, 2.0, 8.0, 20.5, 39.9, 40.1, 300.0]
    with mpmath.workdps(40):
        expected = torch.tensor([float(REFERENCES[name](mpmath.mpf(p))) for p in points], dtype=torch.float64)
    x = torch.tensor(points, dtype=torch.float64)
    torch.testing.assert_close(lagrangian(name).density(x), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", ["softplus", "tanh", "sigmoid"])
def test_small_densities_keep_their_relative_precision(name):
    points = [1e-7, 1e-4] if name == "tanh" else [-40.0, -100.0]
    with mpmath.workdps(80):
        expected = torch.tensor([float(REFERENCES[name](mpmath.mpf(p))) for p in points], dtype=torch.float64)
    x = torch.tensor(points, dtype=torch.float64)
    torch.testing.assert_close(lagrangian(name).density(x), expected, rtol=1e-13, atol=0)


def test_layer_norm_is_that_of_torch():
    x = states(12, scale=3.0)
    torch.testing.assert_close(LayerNorm().activation(x), F.layer_norm(x, (N,), eps=1e-6))
    weight, shift = torch.full((3, N), 2.0).double(), states(13, (3, N))
    mine = LayerNorm((-2, -1), eps=1e-5, gain=2.0, shift=shift)
    torch.testing.assert_close(mine.activation(x), F.layer_norm(x, (3, N), weight, shift, eps=1e-5))


@pytest.mark.parametrize("axis", [-1, -2, (-2, -1)])
def test_unit_layer_norm_is_the_papers_and_layer_norm_is_sqrt_n_times_it(axis):
    x = states(20, scale=3.0)
    unit, usual = UnitLayerNorm(axis, eps=1e-300), LayerNorm(axis, eps=1e-300)
    axes = (axis,) if isinstance(axis, int) else axis
    centred = x - x.mean(axes, keepdim=True)
    length = centred.square().sum(axes, keepdim=True).sqrt()
    torch.testing.assert_close(unit.density(x), length, rtol=1e-14, atol=0)
    torch.testing.assert_close(unit.activation(x), centred / length, rtol=1e-13, atol=1e-15)
    neurons = math.prod(x.shape[a] for a in axes)
    torch.testing.assert_close(usual.activation(x), neurons**0.5 * unit.activation(x), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(usual.density(x), neurons**0.5 * unit.density(x), rtol=1e-12, atol=0)


def test_layer_norm_in_half_precision_is_that_of_torch_where_the_mean_is_large():
    x = (100 + states(14, (8, 64))).bfloat16()
    torch.testing.assert_close(LayerNorm().activation(x), F.layer_norm(x, (64,), eps=1e-6), rtol=0.01, atol=0.01)


def test_shift_is_a_buffer_and_a_parameter_stays_one():
    shift = torch.ones(N)
    assert "shift" in LayerNorm(shift=shift).state_dict()
    made = LayerNorm(shift=nn.Parameter(shift))
    made.density(states().float()).sum().backward()
    torch.testing.assert_close(made.shift.grad, states().float().sum((0, 1)))


def test_softmax_and_spherical_are_normalised():
    x = states(15, scale=4.0)
    torch.testing.assert_close(Softmax(2.0).activation(x), torch.softmax(2 * x, -1))
    torch.testing.assert_close(Softmax(axis=(-2, -1)).activation(x).sum((-2, -1)), torch.ones(6).double())
    torch.testing.assert_close(Spherical(radius=3.0).activation(x).norm(dim=-1), torch.full((6, 3), 3.0).double())


def test_rectified_power_1_is_relu():
    x = states()
    torch.testing.assert_close(RectifiedPower(1).density(x), ReLU().density(x))
    torch.testing.assert_close(RectifiedPower(1).activation(x), ReLU().activation(x))
    assert RectifiedPower(1).lipschitz == 1 and RectifiedPower(1.5).lipschitz == math.inf


def test_exponential_is_exact_below_its_cutoff_and_its_tangent_beyond():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    made = Exponential(2.0, cutoff=3.0)
    below = 2 * x <= 3
    torch.testing.assert_close(made.activation(x)[below], torch.exp(2 * x)[below])
    torch.testing.assert_close(made.density(x)[below], (torch.exp(2 * x) / 2)[below])
    torch.testing.assert_close(made.activation(x)[~below], (math.exp(3) * (2 * x - 2))[~below])
    edge = torch.tensor([1.5 - 1e-9, 1.5 + 1e-9], dtype=torch.float64)
    for f in (made.density, made.activation, lambda x: made.hessian_product(x, torch.ones_like(x))):
        low, high = f(edge)
        torch.testing.assert_close(low, high, rtol=1e-7, atol=0)


def test_zero_limits_at_minus_infinity():
    x = torch.tensor([-1e3, -1e4], dtype=torch.float64)
    for made in (Softplus(), GELU(), SiLU(), ReLU(), Sigmoid(), Exponential()):
        assert torch.equal(made.density(x).abs(), torch.zeros_like(x)), made


# --- inverse temperature


@pytest.mark.parametrize("name", TEMPERED)
def test_learnable_beta_gets_its_gradient_through_density_and_activation(name):
    made = lagrangian(name, beta=0.7, learnable=True).double()
    assert [n for n, _ in made.named_parameters()] == ["beta"]
    x, h, weight = states(16), 1e-6, states(17)
    for f in (lambda m: m.density(x).sum(), lambda m: (m.activation(x) * weight).sum()):
        (found,) = torch.autograd.grad(f(made), made.beta)
        change = (f(lagrangian(name, beta=made.beta.item() + h)) - f(lagrangian(name, beta=made.beta.item() - h))) / (
            2 * h
        )
        torch.testing.assert_close(found, change, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", TEMPERED)
def test_beta_sharpens_and_claims_follow_its_present_value(name):
    x = states()
    made, plain = lagrangian(name, beta=2.0, learnable=True), lagrangian(name)
    torch.testing.assert_close(made.activation(x), plain.activation(2 * x))
    torch.testing.assert_close(made.density(x), plain.density(2 * x) / 2)
    assert made.lipschitz == pytest.approx(2 * plain.lipschitz)
    with torch.no_grad():
        made.beta.fill_(3.0)
    assert made.lipschitz == pytest.approx(3 * plain.lipschitz) and made.convex
    with torch.no_grad():
        made.beta.fill_(-1.0)
    assert not made.convex and made.lipschitz == pytest.approx(plain.lipschitz)


@pytest.mark.parametrize("name", TEMPERED)
def test_beta_that_is_not_learnable_is_a_plain_number(name):
    made = lagrangian(name, beta=2)
    assert isinstance(made.beta, float) and not made.state_dict()


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("beta", [0, -1.5, math.nan, math.inf])
def test_beta_that_is_not_positive_is_refused(name, beta):
    with pytest.raises(ValueError, match=f"beta is {beta}"):
        lagrangian(name, beta=beta)


def test_beta_of_a_softmax_is_one_number_per_distribution():
    x, beta = states(), torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    made = Softmax(beta)
    expected = torch.stack([torch.softmax(b * x[:, i], -1) for i, b in enumerate(beta.flatten().tolist())], 1)
    torch.testing.assert_close(made.activation(x), expected)
    assert made.lipschitz == 1.0 and "beta=0.5 to 2" in repr(made) and "beta" in made.state_dict()
    with pytest.raises(ValueError, match=r"beta has shape \(4,\), .* share one .*; give size 1 there"):
        Softmax(torch.ones(4))
    with pytest.raises(ValueError, match="beta is 0; an inverse temperature must be positive"):
        Sigmoid(torch.tensor([1.0, 0.0]))


# --- sparse distributions


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_sparse_distributions_are_those_of_the_entmax_package(axis, scale):
    entmax = pytest.importorskip("entmax")
    x = states(20, (6, 9, 7), scale)
    for alpha in (1.1, 1.3, 1.5, 1.8, 2.0):
        expected = entmax.entmax_bisect(x, alpha, dim=axis, n_iter=60)
        torch.testing.assert_close(Entmax(alpha, axis=axis).activation(x), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(Entmax(axis=axis).activation(x), entmax.entmax15(x, dim=axis), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(Sparsemax(axis=axis).activation(x), entmax.sparsemax(x, dim=axis))


def test_sparse_densities_are_the_largest_values_that_scipy_finds():
    minimize = pytest.importorskip("scipy.optimize").minimize
    x = states(21, (4,))
    for alpha in (1.3, 1.5, 2.0):

        def objective(p, alpha=alpha):
            return -(p @ x.numpy() + ((p - p**alpha) / (alpha * (alpha - 1))).sum())

        simplex = dict(type="eq", fun=lambda p: p.sum() - 1)
        best = minimize(objective, [0.25] * 4, bounds=[(0, 1)] * 4, constraints=simplex, tol=1e-12)
        assert Entmax(alpha).density(x).item() == pytest.approx(-best.fun, abs=1e-6)


def test_entmax_goes_to_softmax_and_is_exactly_sparse_above():
    x = states(22, scale=2.0)
    torch.testing.assert_close(Entmax(1 + 1e-6).activation(x), torch.softmax(x, -1), rtol=1e-4, atol=1e-5)
    zeros = [(Entmax(alpha).activation(x) == 0).double().mean() for alpha in (1.2, 1.5, 2.0)]
    assert 0 < zeros[0] < zeros[1] < zeros[2]


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.5, math.nan])
def test_an_alpha_without_a_sparse_distribution_is_refused(alpha):
    with pytest.raises(
        ValueError, match=rf"alpha is {alpha}; give more than 1, up to 2 \(sparsemax\), or take Softmax"
    ):
        Entmax(alpha)


# --- the user's own function


def test_a_users_function_gives_what_the_closed_form_gives():
    x = states(scale=3.0)
    mine = Elementwise(GELU().density, convex=False, lipschitz=GELU().lipschitz)
    torch.testing.assert_close(mine.activation(x), F.gelu(x))
    torch.testing.assert_close(mine.hessian_product(x, x), GELU().hessian_product(x, x), rtol=1e-10, atol=1e-12)
    given = Elementwise(GELU().density, convex=False, lipschitz=1.13, activation=F.gelu)
    assert torch.equal(given.activation(x), F.gelu(x)) and given.lipschitz == 1.13 and not given.convex


def test_a_users_activation_by_autograd_is_differentiable_again_also_in_its_parameters():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, x):
            return self.a * torch.cosh(x)

    made = Elementwise(Scaled(), convex=True, lipschitz=math.inf)
    x = states().requires_grad_()
    made.activation(x).sum().backward()
    torch.testing.assert_close(x.grad, 1.5 * torch.cosh(x))
    torch.testing.assert_close(made.function.a.grad, torch.sinh(x).sum())
    with torch.no_grad():
        torch.testing.assert_close(made.activation(x), 1.5 * torch.sinh(x))
    with torch.inference_mode():
        torch.testing.assert_close(made.activation(x), 1.5 * torch.sinh(x))


class Mine(Lagrangian):
    def density(self, x):
        return torch.cosh(x)


@pytest.mark.parametrize(
    "make",
    [lambda: Elementwise(torch.cosh), lambda: FromDensity(lambda x: torch.cosh(x).sum(1), 3), Mine],
    ids=["elementwise", "from_density", "subclass"],
)
def test_a_density_is_differentiated_outside_inference_mode_where_torch_2_11_gets_it_wrong(make, in_mode):
    made = make()
    in_mode.clear()
    with torch.inference_mode():
        x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
        torch.testing.assert_close(made.activation(x), torch.sinh(x))
        torch.testing.assert_close(made.hessian_product(x, x), torch.cosh(x) * x)
    assert in_mode == [False, False]


@pytest.mark.parametrize(
    ("function", "claims", "message"),
    [
        (torch.cos, {"convex": True}, r"convex is claimed, but the slope of activation is -1 at x = "),
        (torch.cos, {"lipschitz": 0.9}, r"lipschitz is claimed to be 0.9, but the slope of activation is -?1 at x = "),
        (torch.relu, {"convex": True}, r"lipschitz is claimed to be 1, but the slope of activation is 200 at x = "),
        (torch.cos, {"activation": torch.sin}, r"activation is .* at x = .*, not the gradient of function"),
        (torch.log, {}, r"function is nan at x = -"),
        (lambda x: x.abs() ** 0.5, {}, r"the gradient of function is .* at x = 0"),
        (lambda x: x.abs() ** 1.5, {"lipschitz": math.inf}, r"the slope of activation is nan at x = 0"),
        (torch.cos, {"activation": lambda x: -torch.sin(x) / (x != 0)}, r"activation is nan at x = 0"),
        (lambda x: torch.softmax(x, -1), {}, r"function is not elementwise"),
        (lambda x: x.square().sum(), {}, r"function is not elementwise"),
        (3, {}, r"function is 3; give a function of a tensor"),
        (math.cosh, {}, r"function fails on a tensor of \d+ numbers in float64, on which it is checked: "),
        (torch.nn.Linear(1, 1), {}, r"function fails on a tensor of"),
        (torch.cos, {"activation": 3}, r"activation is 3; give"),
        (torch.cos, {"lipschitz": -1.0}, r"lipschitz is -1"),
        (torch.cos, {"lipschitz": math.nan}, r"lipschitz is nan"),
    ],
)
def test_false_claims_are_refused_with_value_and_place(function, claims, message):
    with pytest.raises(ValueError, match=message):
        Elementwise(function, **{"convex": False, "lipschitz": 1.0, **claims})


@pytest.mark.parametrize("name", [name for name in NAMES if LAGRANGIANS[name].elementwise])
def test_true_claims_of_every_elementwise_lagrangian_are_accepted(name):
    made = lagrangian(name)
    Elementwise(made.density, convex=made.convex, lipschitz=made.lipschitz, activation=made.activation)


def test_what_a_function_is_not_said_to_be_is_measured_and_said_to_be_so():
    made = Elementwise(GELU().density)
    assert not made.convex and made.lipschitz == pytest.approx(GELU().lipschitz, abs=1e-6) and not made.proven
    assert "measured on [-10, 10]" in repr(made) and made.asymptotic_slope is None
    assert Elementwise(torch.cosh, convex=True, lipschitz=math.inf).proven
    assert not Elementwise(torch.cosh, convex=True).proven


def log_sum(x: Tensor) -> Tensor:
    return torch.logsumexp(2 * x.flatten(1), 1) / 2


def saddle(x: Tensor) -> Tensor:
    return x[:, 0].square() - 0.3 * x[:, 1].square() + x[:, 2] * 0.0


@pytest.mark.parametrize("shape", [N, (3, N)])
def test_a_density_alone_gives_activation_hessian_and_energy(shape):
    made = FromDensity(log_sum, shape)
    axes = made.axis
    x, u = states(23), states(24)
    plain = Softmax(2.0, axis=axes)
    torch.testing.assert_close(made.density(x), plain.density(x))
    torch.testing.assert_close(made.activation(x), plain.activation(x))
    torch.testing.assert_close(made.hessian_product(x, u), plain.hessian_product(x, u))
    assert made.convex and 0.9 < made.lipschitz <= 1 + 1e-9
    assert not made.proven and made.asymptotic_slope is None and "measured at 256 states" in repr(made)


def test_curvatures_of_a_density_are_the_extreme_eigenvalues():
    made = FromDensity(saddle, 3)
    assert made.smallest_curvature == pytest.approx(-0.6) and made.largest_curvature == pytest.approx(2.0)
    assert not made.convex and made.lipschitz == pytest.approx(2.0)
    matrix = states(25, (30, 30))
    matrix = matrix @ matrix.mT
    eigenvalues = torch.linalg.eigvalsh(matrix)
    made = FromDensity(lambda x: torch.einsum("bi,ij,bj->b", x, matrix, x) / 2, 30)
    assert made.largest_curvature == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    assert made.convex and float(eigenvalues[0]) - 1e-9 <= made.smallest_curvature < 1


def test_a_flat_density_has_no_curvature_and_a_network_of_parameters_trains():
    assert FromDensity(lambda x: x.sum(1), 5).lipschitz == 0.0
    net = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 1), nn.Flatten(0))
    made = FromDensity(net, 4)
    made.activation(torch.randn(3, 4)).square().sum().backward()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.square(), r"256 samples of shape \(4,\) is \(256, 4\); return one number a sample, as x.flatten"),
        (lambda x: x.square().sum(), r"is \(\); return one number a sample"),
        (lambda x: 3.0, r"is float; return one number a sample"),
        (lambda x: x.sum(1) * x.sum(), "depends on the others; sum over the layer's axes alone"),
        (lambda x: x.sum(1).log(), "not finite at .* give a function that is finite everywhere"),
    ],
)
def test_a_density_of_another_kind_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        FromDensity(function, N)


# --- names and bad inputs


def test_the_registry_has_the_promised_names():
    assert {
        "identity", "relu", "rectified_power", "softplus", "sigmoid", "tanh", "softmax", "exponential", "layer_norm",
        "unit_layer_norm", "spherical", "gelu", "silu",
    } <= set(NAMES)  # fmt: skip


def test_a_lagrangian_is_found_by_name_with_options_or_given_as_it_is():
    assert lagrangian("softmax", beta=2.0, axis=-2).axis == (-2,)
    made = Identity()
    assert lagrangian(made) is made


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"unknown Lagrangian 'softmx'; known: .*spherical.*; did you mean softmax\?"):
        lagrangian("softmx")
    with pytest.raises(ValueError, match="beta: no effect on a ReLU"):
        lagrangian(ReLU(), beta=2.0)
    with pytest.raises(TypeError, match="bta"):
        lagrangian("softmax", bta=2.0)
    with pytest.raises(TypeError, match="its name or an instance"):
        lagrangian(ReLU)
    with pytest.raises(ValueError, match="'relu' is already ReLU"):
        register("relu")(Identity)


@pytest.mark.parametrize("cls", [Softmax, LayerNorm, Spherical, UnitLayerNorm])
@pytest.mark.parametrize("axis", [0, 1, (-1, 0), (), (-1, -1), True])
def test_axes_not_counted_from_the_end_are_refused(cls, axis):
    with pytest.raises(ValueError, match="axis is"):
        cls(axis=axis)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RectifiedPower(0.5), "power is 0.5"),
        (lambda: RectifiedPower(math.inf), "power is inf"),
        (lambda: Exponential(cutoff=1e3), "cutoff is 1000"),
        (lambda: LayerNorm(eps=0.0), "eps is 0"),
        (lambda: LayerNorm(gain=math.nan), "gain is nan"),
        (lambda: LayerNorm(shift=torch.tensor([1.0, math.inf])), "shift is .*inf"),
        (lambda: Spherical(eps=-1.0), "eps is -1"),
        (lambda: Spherical(radius=0), "radius is 0"),
        (lambda: UnitLayerNorm(eps=0), "eps is 0"),
        (lambda: LayerNorm(shift=torch.ones(5, 1)).activation(torch.ones(2, N)), r"shift \(5, 1\) does not broadcast"),
        (lambda: LayerNorm(shift=torch.ones(3, 1, 1)).density(torch.ones(2, N)), r"shift \(3, 1, 1\) does not broad"),
    ],
)
def test_bad_inputs_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@every
def test_repr_names_the_options_and_copies_are_equal(made):
    assert repr(made).startswith(type(made).__name__)
    assert str(getattr(made, "axis", "")) in repr(made)
    x = states()
    torch.testing.assert_close(copy.deepcopy(made).activation(x), made.activation(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FromDensity(lambda x: x.sum(1).long(), 3), "the density is of torch.int64; compute real numbers"),
        (lambda: FromDensity(lambda x: 1j * x.sum(1), 3), "the density is of torch.complex128; compute real numbers"),
        (lambda: FromDensity(lambda x: x.detach().sum(1), 3), "the density is cut off from the states; compute"),
        (lambda: FromDensity(lambda x: x.sum(1), None), "shape is None; give one or more sizes"),
        (lambda: FromDensity(lambda x: x.sum(1), 2.5), "shape is 2.5; give one or more sizes"),
        (lambda: FromDensity(3, 3), "the density is int; give a function"),
        (
            lambda: FromDensity(lambda x: x @ torch.ones(4), 3),
            r"the density fails on 256 samples of shape \(3,\): .*; let it",
        ),
        (lambda: Masked(Softmax(), torch.zeros(5, dtype=torch.bool)), "the mask leaves no neuron that takes part; let"),
        (lambda: Masked(Softmax(), torch.tensor([[True], [False]])), "the mask leaves no neuron"),
        (lambda: Masked(Softmax(axis=-2), torch.tensor([[True, False], [True, False]])), "the mask leaves no neuron"),
        (lambda: Masked(Softmax(axis=-2), torch.tensor([True, False])), "the mask leaves no neuron"),
        (lambda: Masked(Softmax(axis=(-2, -1)), torch.tensor([[[True]], [[False]]])), "the mask leaves no neuron"),
        (lambda: Masked(Softmax(), [True, False]), "the mask is of list; give booleans"),
        (lambda: Softmax(None), "beta is None; give a number above 0"),
    ],
)
def test_what_is_no_lagrangian_is_refused_in_a_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
