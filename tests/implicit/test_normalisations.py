"""What each way to hold a matrix promises of its norm, of its gradient and at any scale."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from imixer.implicit import (
    Contraction,
    OrthogonalLinear,
    SpectralConv2d,
    SpectralLinear,
    certify,
    exact_sigma,
    fold,
)
from imixer.implicit.spectral import _advance_together, row_norm_bound

C = 0.9
KINDS = {
    "power": {},
    "exact": {"sigma": "exact"},
    "row_norm": {"sigma": "row_norm"},
    "hard power": {"scaling": "hard"},
    "hard exact": {"scaling": "hard", "sigma": "exact"},
    "hard row_norm": {"scaling": "hard", "sigma": "row_norm"},
    "detached": {"detach_sigma": True},
    "orthogonal": {"norm": "orthogonal"},
}
CERTIFYING = ["exact", "row_norm", "hard exact", "hard row_norm", "orthogonal"]
SHAPES = [(12, 20), (20, 12), (9, 9), (1, 6), (6, 1)]
SCALES = [0.0, 1e-7, 1e-30, 1.0, 1e10, 1e30]


def kinds(test):
    return pytest.mark.parametrize("kind", KINDS)(test)


def layer(kind: str, shape=(12, 20), scale: float = 1.0, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    options = {name: value for name, value in KINDS[kind].items() if name != "norm"}
    make = OrthogonalLinear if kind == "orthogonal" else SpectralLinear
    made = make(*shape, coeff=C, dtype=dtype, **options, **kwargs)
    with torch.no_grad():
        made.weight.copy_(scale * torch.randn(shape[1], shape[0], dtype=torch.float64))
    settle(made)
    return made.eval()


def settle(module: nn.Module, times: int = 10) -> None:
    for each in module.modules():
        if isinstance(each, SpectralLinear):
            for _ in range(times):
                each.warm_up()


# --- the norm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("kind", CERTIFYING)
def test_the_ceiling_holds_to_rounding_where_sigma_is_not_from_below(kind, scale, shape):
    made = layer(kind, shape, scale)
    assert exact_sigma(made.normalized_weight()) <= C * (1 + 1e-12)


@pytest.mark.parametrize("kind", [kind for kind in CERTIFYING if not kind.startswith("row") and "row" not in kind])
@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_the_norm_is_the_ceiling_where_that_is_meant(kind, scale):
    sigma = exact_sigma(layer(kind, scale=scale).normalized_weight())
    below = kind == "exact" and scale == 0.01
    assert float(sigma) == pytest.approx(float(exact_sigma(layer(kind, scale=scale).weight)) if below else C, rel=1e-12)


@pytest.mark.parametrize("kind", ["power", "exact", "row_norm", "detached"])
def test_soft_scaling_leaves_a_small_matrix_bit_for_bit(kind):
    made = layer(kind, scale=1e-3)
    assert torch.equal(made.normalized_weight(), made.weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_singular_value_of_an_orthogonal_layer_is_the_ceiling(shape):
    for scale in (0.0, 1e-7, 1.0, 1e4):
        values = torch.linalg.svdvals(layer("orthogonal", shape, scale).normalized_weight())
        torch.testing.assert_close(values, torch.full_like(values, C), rtol=1e-11, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_row_norm_bound_is_never_below_the_norm_and_attained(shape):
    for seed in range(20):
        W = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
        assert row_norm_bound(W) >= exact_sigma(W)
    flat = torch.ones(shape, dtype=torch.float64)
    assert float(row_norm_bound(flat)) == pytest.approx(float(exact_sigma(flat)), rel=1e-12)


@kinds
def test_a_layer_tells_the_norm_of_what_multiplies(kind):
    for scale in (0.01, 10.0):
        made = layer(kind, scale=scale)
        told, true = float(made.normalized_sigma()), float(exact_sigma(made.normalized_weight()))
        assert told == pytest.approx(true, rel=1e-6) if "row" not in kind else told >= true


# --- any scale --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@kinds
def test_any_scale_gives_finite_matrices_and_gradients_in_single_precision(kind, scale):
    made = layer(kind, (8, 16), scale, torch.float32).train()
    W = made.normalized_weight()
    assert W.isfinite().all()
    W.sum().backward()
    if scale == 0 or scale * C > 1e-30:
        assert made.weight.grad.isfinite().all()
    assert exact_sigma(W.double()) <= C * (1 + 1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_power_iteration_is_right_to_rounding_at_any_scale_alone_and_together(scale):
    alone = layer("power", (8, 16), scale, torch.float32)
    together = [layer("power", (8, 16), scale, torch.float32, n_power_iterations=300) for _ in range(2)]
    for each in together:
        each.v.copy_(torch.linspace(1, 2, 8))
    _advance_together(together)
    true = float(exact_sigma(alone.weight.double()))
    for each in (alone, *together):
        assert float(each.sigma()) == pytest.approx(true, rel=1e-6, abs=0)
        assert each.v.isfinite().all() and each.v.norm() > 0.5


def convolution(scale: float, **options) -> SpectralConv2d:
    torch.manual_seed(0)
    made = SpectralConv2d(2, 4, 3, (5, 6), coeff=C, **options)
    with torch.no_grad():
        made.weight.copy_(scale * torch.randn(made.weight.shape, dtype=torch.float64))
    made.warm_up()
    return made


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("options", [{}, {"sigma": "power"}, {"sigma": "power", "padding_mode": "zeros"}], ids=str)
def test_a_convolution_of_any_scale_has_its_norm_to_rounding_in_single_precision(options, scale):
    made, unscaled = convolution(scale, **options), convolution(1.0, **options)
    true = scale * float(unscaled.sigma())
    assert float(made.sigma()) == pytest.approx(true, rel=1e-5, abs=0)
    kernel = made.train().normalized_weight()
    torch.testing.assert_close(kernel, made.weight / max(1.0, true / C), rtol=1e-3, atol=0)  # which advanced
    kernel.sum().backward()
    assert made.weight.grad.isfinite().all()
    if made.v is not None:
        assert made.v.isfinite().all() and made.v.norm() > 0.5


@pytest.mark.parametrize("broken", [0.0, math.nan, math.inf])
def test_a_kernel_that_was_zero_or_broken_once_is_tracked_again(broken):
    made = convolution(3.0, sigma="power").train()
    kernel, sigma = made.weight.detach().clone(), float(made.sigma())
    made.weight.data.fill_(broken)
    made.advance()
    made.weight.data.copy_(kernel)
    made.advance()
    assert float(made.sigma()) == pytest.approx(sigma, rel=1e-5)


def test_a_vector_that_the_matrix_sends_to_zero_is_replaced():
    made = SpectralLinear(3, 3)
    made.v.copy_(torch.tensor([1.0, 0.0, 0.0]))
    made.load_state_dict({"weight": torch.diag(torch.tensor([0.0, 2.0, 5.0])), "bias": torch.zeros(3)})
    assert float(made.sigma()) == pytest.approx(5.0)


def test_a_matrix_that_was_zero_or_broken_once_is_tracked_again():
    for broken in (0.0, math.nan, math.inf):
        made = layer("power", (8, 16), 3.0, torch.float32).train()
        W = made.weight.detach().clone()
        made.weight.data.fill_(broken)
        made.advance()
        _advance_together([made, made])
        made.weight.data.copy_(W)
        settle(made)
        assert float(made.sigma()) == pytest.approx(float(exact_sigma(W)), rel=1e-5)


@pytest.mark.parametrize("sigma", ["power", "exact", "row_norm"])
def test_hard_scaling_leaves_zeros_zero(sigma):
    made = SpectralLinear(4, 5, scaling="hard", sigma=sigma)
    made.weight.data.zero_()
    made.warm_up()
    assert not made.normalized_weight().any()
    assert float(made.normalized_sigma()) < 1e-30


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", "row_norm", "hard exact", "hard row_norm", "orthogonal"])
@pytest.mark.parametrize("scale", [0.05, 3.0])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_gradients_are_those_of_finite_differences(kind, scale, shape):
    made = layer(kind, shape, scale)

    def effective(W):
        return torch.func.functional_call(Through(made), {"layer.weight": W}, ())

    assert torch.autograd.gradcheck(effective, made.weight.detach().clone().requires_grad_())


class Through(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.normalized_weight()


@pytest.mark.parametrize("kind", ["hard power", "detached"])
def test_gradients_with_a_settled_vector_are_as_defined(kind):
    made, cotangent = layer(kind, scale=3.0), torch.randn(20, 12, dtype=torch.float64)
    (found,) = torch.autograd.grad((made.normalized_weight() * cotangent).sum(), made.weight)
    if kind == "detached":
        expected = cotangent * (C / made.sigma().detach())
    else:
        W = made.weight.detach().requires_grad_()
        (expected,) = torch.autograd.grad((W * (C / exact_sigma(W)) * cotangent).sum(), W)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["power", "exact", "detached"])
def test_only_a_detached_norm_leaves_a_radial_gradient_above_the_ceiling(kind):
    made = layer(kind, scale=3.0)
    made.normalized_weight().square().sum().backward()
    radial = float((made.weight.grad * made.weight).sum() / (made.weight.grad.norm() * made.weight.norm()))
    assert radial > 0.9 if kind == "detached" else abs(radial) < 1e-6


def test_a_matrix_comes_below_its_ceiling_again_only_where_the_norm_is_detached():
    final = {}
    for kind in ("power", "detached"):
        made = layer(kind, (6, 6), 0.5).train()
        start, optimizer = made.weight.norm().item(), torch.optim.SGD([made.weight], lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            made.normalized_weight().square().sum().backward()  # wants to be small
            optimizer.step()
        final[kind] = float(exact_sigma(made.weight))
        assert (made.weight.norm() < start) == (kind == "detached")
    assert final["detached"] < C < final["power"]


# --- in a contraction -------------------------------------------------------------------------------------------------


def contraction(kind: str, scale: float = 3.0, hidden=20, **kwargs) -> Contraction:
    torch.manual_seed(0)
    made = Contraction(12, hidden, **{"coeff": C, "dtype": torch.float64, **KINDS[kind], **kwargs})
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale)
    settle(made)
    return made.eval()


@pytest.mark.parametrize("tied", [False, True])
@kinds
def test_folding_and_the_certificate_see_what_multiplies(kind, tied):
    F, x = contraction(kind, tied=tied, coeff=0.8), torch.randn(5, 12, dtype=torch.float64)
    folded = fold(F)
    assert {type(m) for m in folded.modules()} <= {Contraction, nn.Linear, nn.GELU, nn.Identity}
    torch.testing.assert_close(folded(x, folded.weights()), F(x, F.weights()))
    certificate = certify(F, [1.1290, 1.1290], x)
    norms = tuple(float(exact_sigma(W)) for W in F.weights()[:2])
    assert certificate.worst.sigmas[0] == pytest.approx(norms)
    assert certificate.worst.coeff == 0.8
    assert certificate.worst.bound == pytest.approx(norms[0] * norms[1] * 1.1290**2)
    assert certificate.worst.estimates[0] == pytest.approx(norms, rel=1e-6) or "row" in kind
    assert certificate.verdict == "guaranteed"  # 0.8 x 0.8 x 1.129 x 1.129 = 0.816


def test_an_estimate_from_below_certifies_nothing_by_itself_and_the_certificate_says_so():
    for kind, verdict in (("power", "observed"), ("exact", "guaranteed"), ("row_norm", "guaranteed")):
        F = contraction(kind, coeff=0.95)
        if F.fc1.v is not None:
            for fc in (F.fc1, F.fc2):
                fc.v.copy_(torch.randn(len(fc.v)))  # far from settled: norms slip above the ceiling
        found = certify(F, [1.0, 1.0], -30 + torch.zeros(1, 12, dtype=torch.float64))
        assert found.verdict == verdict


@kinds
def test_half_precision_stays_near_single_and_keeps_its_dtype(kind):
    F, x = contraction(kind).float(), torch.randn(5, 12)
    expected = F(x, F.weights())
    half = copy.deepcopy(F).bfloat16().train()
    found = half(x.bfloat16(), half.weights())
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    found.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        W = F.weights()[0]
    assert W.dtype == torch.float32 and torch.equal(W, F.weights()[0])


@pytest.mark.parametrize(("source", "target"), itertools.permutations(["power", "exact", "row_norm"], 2))
def test_weights_go_from_one_way_to_find_the_norm_to_another(source, target):
    theirs, ours = contraction(source), contraction(target, scale=0.1)
    ours.load_state_dict(theirs.state_dict())
    settle(ours)
    assert torch.equal(ours.fc1.weight, theirs.fc1.weight)
    assert float(ours.fc1.sigma()) >= float(exact_sigma(theirs.fc1.weight)) * (1 - 1e-6)


@pytest.mark.parametrize("kind", ["exact", "row_norm", "hard power", "orthogonal"])
def test_compiles_to_one_graph(kind):
    made, x = layer(kind, dtype=torch.float32, scale=2.0), torch.randn(3, 12)
    torch.compiler.reset()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sigma": "qr"}, "sigma is 'qr'; choose power, exact or row_norm"),
        ({"scaling": "firm"}, "scaling is 'firm'; choose soft or hard"),
        (
            {"norm": "orthogonal", "sigma": "exact"},
            "sigma is exact, an option of norm=spectral, and norm is orthogonal",
        ),
        ({"norm": "none", "scaling": "hard"}, "scaling is hard, .* and norm is none"),
        ({"norm": "batch", "detach_sigma": True}, "detach_sigma is True, .* and norm is batch"),
        ({"norm": "orthogonal", "coeff": 0.0}, "coeff is 0.0"),
        ({"drop_rate": 1.0}, "dropout inside F is 1.0"),
        ({"drop_rate": -0.1}, "dropout inside F is -0.1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Contraction(4, 6, **kwargs)


# --- dropout inside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [20, [20, 9]])
def test_masks_have_one_factor_for_each_activation_of_each_level(hidden):
    F, x = contraction("power", hidden=hidden, drop_rate=0.25).train(), torch.randn(3, 5, 12)
    widths = [12, 20] if hidden == 20 else [12, 20, 20, 9]
    masks = F.masks(x)
    assert [tuple(mask.shape) for mask in masks] == [(3, 5, width) for width in widths]
    assert all(torch.equal(mask.unique(), torch.tensor([0.0, 4 / 3])) for mask in masks)
    assert F.eval().masks(x) is None
    assert contraction("power").train().masks(x) is None


def test_dropout_preserves_the_expectation_of_what_follows_an_activation():
    F, x = contraction("power", drop_rate=0.3).train(), torch.zeros(20_000, 12, dtype=torch.float64)
    for mask in F.masks(x):
        assert float(mask.mean()) == pytest.approx(1, abs=0.01)


def test_a_nest_with_masks_is_the_same_map_at_every_call():
    F, x = contraction("power", hidden=[20, 9], drop_rate=0.5).train(), torch.randn(3, 12, dtype=torch.float64)
    weights, masks = F.weights(), F.masks(x)
    first = F(x, weights, 3, masks)
    assert torch.equal(F(x, weights, 3, masks), first)
    assert not torch.allclose(F(x, weights, 3), first)
    for i in range(4):
        others = [mask * 0 if i == j else mask for j, mask in enumerate(masks)]
        assert not torch.allclose(F(x, weights, 3, others), first)
