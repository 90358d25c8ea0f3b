"""A certificate is exact where it claims to be, above the truth where it bounds, and refuses what it must."""

import functools
import math

import pytest
import torch
from torch import nn

from imixer.implicit import Contraction, SpectralLinear, ceiling, fold
from imixer.implicit.certificate import (
    Certificate,
    OnData,
    WorstCase,
    certify,
    iterations_needed,
    on_data,
    worst_case,
)
from imixer.implicit.nest import apply, fixed_point, jacobian_norms

GELU = 1.128904145185155


def make(depth=3, seed=0, width=6, scale=3.0, **kwargs) -> Contraction:
    """A float64 contraction whose ceilings bind."""
    torch.manual_seed(seed)
    F = Contraction(width, [width + 1 + i for i in range(depth - 2)], dtype=torch.float64, **kwargs).eval()
    for layer in F.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= scale
            if isinstance(layer, SpectralLinear):
                for _ in range(20):
                    layer.warm_up()
    return F


def points(count=5, width=6, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OPTIONS = [
    dict(),
    dict(tied=True),
    dict(norm="none", scale=1.0),
    dict(norm="batch", scale=1.0),
    dict(act_layer=functools.partial(nn.Softmax, dim=-1)),
    dict(depth=4, coeff=0.5),
    dict(depth=5, coeff=0.5, tied=True),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_jacobians_norm_is_that_of_the_dense_jacobian(options):
    F = make(**options)
    if options.get("norm") == "batch":
        for bn in (F.bn1, F.bn2):
            bn.running_var.uniform_(1, 3)
            bn.weight.data.uniform_(0.5, 1)
    depth = options.get("depth", 3)
    rest = fixed_point(F, points(5 if depth == 3 else 2))
    norms, settled = jacobian_norms(F, rest.states, tol=1e-4, max_steps=1000)
    assert rest.converged.all() and settled.all()
    weights = F.weights()
    for x, norm in zip(rest.states[0], norms[0], strict=True):
        J = torch.autograd.functional.jacobian(lambda x: F(x, weights, 12), x[None])
        torch.testing.assert_close(norm, torch.linalg.matrix_norm(J[0, :, 0], 2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_all_inverses_are_solved_at_once(depth):
    F, z = make(depth, coeff=0.5), points()
    x, weights = z, F.weights()
    for _ in range(30):
        x = z + F(x, weights, 12)
    torch.testing.assert_close(fixed_point(F, z).states[0], x, rtol=1e-6, atol=0)
    torch.testing.assert_close(z + apply(F, x), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_no_point_exceeds_the_bound(depth, norm):
    F = make(depth, coeff=0.5, norm=norm, scale=0.8 if norm == "none" else 3.0)
    worst = worst_case(F, [GELU] * (depth - 1))
    norms, _ = jacobian_norms(F, fixed_point(F, 2 * points(300)).states, max_steps=30)
    for bound, level in zip(worst.bounds, norms, strict=True):
        assert level.max() <= bound < math.inf
        assert level.max() > 0.03 * bound


@pytest.mark.parametrize("tied", [False, True])
def test_sigmas_are_exact_as_they_multiply(tied):
    F = make(tied=tied, coeff=0.7, n_power_iterations=0)
    F.fc1.v.copy_(torch.ones(6))  # a poor estimate lets the norm slip above the ceiling
    worst = worst_case(F, [1.0, 1.0])
    W1, W2 = F.weights()[:2]
    assert worst.sigmas == ((pytest.approx(matrix_norm(W1)), pytest.approx(matrix_norm(W2))),)
    assert worst.sigmas[0][0] > worst.estimates[0][0] == worst.coeff == 0.7
    assert worst.bound == pytest.approx(matrix_norm(W1) * matrix_norm(W2))


def matrix_norm(W):
    return float(torch.linalg.matrix_norm(W.detach(), 2))


def test_the_papers_ceiling_with_gelu_has_a_counterexample():
    F = Contraction(1, 1, coeff=0.9, dtype=torch.float64).eval()
    x = torch.full((1, 1), math.sqrt(2), dtype=torch.float64)  # where GELU is steepest, in both layers
    for layer in (F.fc1, F.fc2):
        layer.weight.data.fill_(5.0)
    F.fc1.bias.data = (x - 0.9 * F.act(x))[0]
    F.fc2.bias.data = -(0.9 * F.act(x))[0]  # then F(x) = 0, and x is the fixed point of z = x
    found = certify(F, [GELU, GELU], x)
    assert float(found.data.norms) == pytest.approx(1.0323, abs=1e-4)
    assert found.worst.bound == pytest.approx(1.0323, abs=1e-4)
    assert found.verdict == "violated"
    assert Certificate(found.worst, on_data(F, x - 3)).verdict == "observed"


@pytest.mark.parametrize("depth", [3, 4])
def test_the_automatic_ceiling_is_guaranteed(depth):
    slopes = [GELU] * (depth - 1)
    found = certify(make(depth, coeff=ceiling(slopes)), slopes, points())
    assert found.verdict == "guaranteed" and found.worst.bound == pytest.approx(0.81, abs=1e-3)


def batch_normed(kind) -> Contraction:
    """F with statistics that make W1 steeper."""
    F = make(norm="batch", scale=0.2)
    F.bn1.weight.data.fill_(10.0)
    F.bn2.running_var.fill_(0.5)
    if kind == "sync":
        return nn.SyncBatchNorm.convert_sync_batchnorm(F)
    if kind == "not affine":
        F.bn1 = nn.BatchNorm1d(7, affine=False, dtype=torch.float64).eval()
        F.bn1.running_var.fill_(0.01)
    return F


@pytest.mark.parametrize("kind", ["usual", "sync", "not affine"])
def test_a_certificate_counts_batch_norm_of_any_class(kind):
    F = batch_normed(kind)
    found, bare = certify(F, [GELU, GELU], points()), certify(make(norm="batch", scale=0.2), [GELU, GELU], points())
    assert found.worst.bound == pytest.approx(10 * math.sqrt(2) * bare.worst.bound, rel=1e-3)
    x, weights = found.data.x, F.weights()
    torch.testing.assert_close(x, points() + F(x, weights))
    torch.testing.assert_close(fold(F)(x, fold(F).weights()), F(x, weights))


@pytest.mark.parametrize("bn", [nn.BatchNorm1d(7, track_running_stats=False), nn.LayerNorm(7)], ids=repr)
def test_what_cannot_be_folded_is_measured_and_guarantees_nothing(bn):
    F = make(norm="batch", scale=0.2)
    F.bn1 = bn.double().eval()
    found = certify(F, [GELU, GELU], points(), max_steps=50)
    assert found.worst.bound == math.inf and found.verdict != "guaranteed"
    torch.testing.assert_close(found.data.x, points() + F(found.data.x, F.weights()))


def test_a_divergent_map_is_violated_and_an_unknown_slope_is_no_guarantee():
    F = make(norm="none", scale=30.0)
    assert certify(F, [GELU, GELU], points()).verdict == "violated"
    assert certify(make(coeff=0.5), [math.inf, 1.0], points()).verdict == "observed"


def scaled(c: float, dtype=torch.float64, width: int = 2) -> Contraction:
    """F(x) = c^2 x, a contraction for c < 1."""
    F = Contraction(width, width, nn.Identity, norm="none", dtype=dtype).eval()
    for layer in (F.fc1, F.fc2):
        layer.weight.data = c * torch.eye(width, dtype=dtype)
        layer.bias.data.zero_()
    return F


@pytest.mark.parametrize("c", [0.9, 0.99, 0.999, 0.9999, 0.999999])
def test_a_proof_outranks_a_search_that_ran_out_of_steps(c):
    found = certify(scaled(c), [1.0, 1.0], points(width=2))
    assert found.verdict == "guaranteed" and found.worst.bound == pytest.approx(c * c)
    without = certify(scaled(c), [1.0, 2.0], points(width=2))  # no bound below 1, and nothing that speaks against it
    assert without.verdict in ("observed", "undecided") and not without.data.refutes


def test_what_is_near_the_limit_is_found_by_mixing():
    found = on_data(scaled(0.999), points(width=2))
    assert found.converged.all()
    torch.testing.assert_close(found.x, points(width=2) / (1 - 0.999**2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("c", [1.0, 1.0001, 1.5])
def test_no_contraction_is_violated_however_the_search_ends(c):
    assert certify(scaled(c), [1.0, 1.0], points(width=2)).verdict == "violated"


@pytest.mark.parametrize(
    ("dtype", "below", "verdict"),
    [
        (torch.float32, 1e-3, "guaranteed"),
        (torch.float32, 1e-6, "observed"),
        (torch.float32, 0.0, "observed"),
        (torch.float64, 1e-6, "guaranteed"),
        (torch.float64, 1e-15, "observed"),
        (torch.bfloat16, 0.03, "observed"),
        (torch.bfloat16, 0.7, "guaranteed"),
    ],
)
def test_a_guarantee_leaves_room_for_the_rounding_of_the_models_dtype(dtype, below, verdict):
    """64 summands in each product: the bound may be larger by 2 * 64 epsilon."""
    F = scaled(0.5, dtype, 64)
    worst = worst_case(F, [1.0, (1 - below) / 0.25])
    assert worst.computed_bounds[0] == pytest.approx(worst.bound * (1 + 64 * torch.finfo(dtype).eps) ** 2, rel=1e-12)
    assert worst.proves == (worst.computed_bounds[0] < 1)
    data = on_data(F, points(width=64))
    assert data.holds
    assert Certificate(worst, data).verdict == verdict


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_named(value):
    F = make(4, coeff=0.5)
    F.inner.fc2.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=r"W2 of F\^3 is not finite"):
        worst_case(F, [1.0] * 3)


def test_a_bound_of_exactly_one_is_no_guarantee():
    worst = worst_case(scaled(1.0), [1.0, 1.0])
    assert worst.bound == 1 and not worst.proves


def test_a_norm_through_an_inverse_that_was_not_found_has_not_settled():
    """The inner map's slope is near 1: the inverse inside takes more steps than it is given."""
    F = Contraction(2, [2, 2], nn.Identity, norm="none", dtype=torch.float64).eval()
    for layer in F.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = torch.eye(2, dtype=torch.float64)
    F.inner.fc1.weight.data *= 0.99999
    states = (points(3, 2), points(3, 2))
    assert not jacobian_norms(F, states, max_steps=3)[1][0].any()
    F.inner.fc1.weight.data *= 0.5
    assert jacobian_norms(F, states, max_steps=3)[1][0].all()


def test_iterations_needed_are_enough_and_their_rate_is_real():
    F, z = make(coeff=0.8, act_layer=nn.ReLU, tied=True), points()
    rate, weights = worst_case(F, [1.0, 1.0]).bound, F.weights()
    rest = fixed_point(F, z).states[0]
    for error in (1e-1, 1e-2, 1e-4):
        x = z
        for _ in range(iterations_needed(rate, error)):
            x = z + F(x, weights)
        assert ((x - rest).norm(dim=1) <= error * (z - rest).norm(dim=1)).all()
    norms = on_data(F, z).norms[0]
    for _ in range(15):  # ReLU is linear near the fixed point
        before, x = x, z + F(x, weights)
        assert ((x - rest).norm(dim=1) <= norms * (1 + 1e-3) * (before - rest).norm(dim=1) + 1e-13).all()


def test_iterations_needed_count():
    assert iterations_needed(0.1, 1e-4) == 4
    assert iterations_needed(0.5, 1e-2) == 7
    assert iterations_needed(0.0, 1e-2) == 1
    assert iterations_needed(1.0, 1e-2) == iterations_needed(1.2, 1e-2) == math.inf


def test_leading_axes_are_kept_and_the_contraction_left_alone():
    F = make()
    F.train()
    before = {name: value.clone() for name, value in F.state_dict().items()}
    found = on_data(F, points(24).view(2, 3, 4, 6).float())
    assert isinstance(found, OnData) and found.holds
    assert found.x.shape == (2, 3, 4, 6) and found.norms.shape == (1, 2, 3, 4) and found.converged.shape == (2, 3, 4)
    assert F.training and all(torch.equal(before[name], value) for name, value in F.state_dict().items())


def test_one_point_alone_needs_no_axis_of_points():
    F, z = make(coeff=0.6), points(1)
    alone, one = on_data(F, z[0]), on_data(F, z)
    assert alone.norms.shape == (1,) and alone.converged.shape == ()
    torch.testing.assert_close(alone.x, one.x[0])
    assert certify(F, z=z[0]).verdict == certify(F, z=z).verdict


@pytest.mark.parametrize("call", [fold, lambda F: certify(F, z=points())], ids=["fold", "certify"])
def test_looking_draws_no_random_numbers(call):
    F = make(coeff=0.6)
    before = torch.random.get_rng_state()
    call(F)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: certify(make(), z=points(width=5)), r"z has shape \(5, 5\); this contraction takes \(..., 6\)"),
        (lambda: on_data(make(), points().sum()), r"z has shape \(\); this contraction takes \(..., 6\)"),
        (lambda: worst_case(make(), [1.0]), "lipschitz"),
        (lambda: on_data(make(), points(), tol=0), "tol"),
        (lambda: on_data(make(), points(), max_steps=0), "max_steps"),
        (lambda: iterations_needed(0.5, 2.0), "error"),
        (lambda: iterations_needed(-1.0, 0.1), "rate"),
    ],
)
def test_impossible_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def hand_made(bound: float, norm: float, settled: bool = True) -> Certificate:
    ones = torch.ones(1, dtype=torch.bool)
    worst = WorstCase(((1.0, bound),), None, None, (1.0, 1.0), (bound,), (bound,))
    return Certificate(worst, OnData(torch.zeros(1, 2), ones, ones, torch.tensor([[norm]]), ones[None] & settled))


@pytest.mark.parametrize(
    ("bound", "norm", "verdict"),
    [(0.999, 2.0, "guaranteed"), (1.0, 0.999, "observed"), (1.0, 1.0, "violated"), (1.001, 0.5, "observed")],
)
def test_a_bound_or_a_norm_of_exactly_1_is_none_of_a_contraction(bound, norm, verdict):
    """A map of Lipschitz constant 1, such as x -> x + 1, need not have a fixed point."""
    certificate = hand_made(bound, norm)
    assert certificate.verdict == verdict
    assert certificate.worst.proves == (bound < 1)
    assert certificate.data.holds == (norm < 1) != certificate.data.refutes


@pytest.mark.parametrize(
    ("bound", "norm", "verdict"), [(1.0, 0.5, "undecided"), (1.0, 1.5, "violated"), (0.9, 0.5, "guaranteed")]
)
def test_a_norm_that_has_not_settled_is_a_lower_bound_and_observes_nothing(bound, norm, verdict):
    certificate = hand_made(bound, norm, settled=False)
    assert certificate.verdict == verdict and not certificate.data.holds


def test_norms_whose_two_largest_singular_values_are_close_settle_by_default():
    F = scaled(0.5, width=6)
    F.fc2.weight.data = torch.diag(torch.linspace(0.98, 1.0, 6).double())
    assert not on_data(F, points(), max_steps=100).settled.any()
    assert certify(F, [1.0, 2.0], points()).verdict == "observed"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_refused_and_speak_for_no_contraction(value):
    z = points()
    z[1, 2] = value
    for F in (make(coeff=0.5), nn.Linear(6, 6)):
        with pytest.raises(ValueError, match="z has 1 of 30 numbers that are not finite"):
            certify(F, z=z)
    with pytest.raises(ValueError, match=r"tensors\[1\] has 1 of 30 numbers that are NaN"):
        certify(nn.Linear(6, 6), z=points(), tensors=(points(), torch.where(z.isfinite(), z, torch.nan)))
