"""The fused token mixing, by Triton's interpreter on the CPU: what it computes, and where it is chosen."""

import copy
import os

import pytest
import timm
import torch

from imixer.implicit import fused
from imixer.implicit.fused import fused_mode, step_by_step, token_mixing
from imixer.models import IMLP

SHAPES = {  # B, C, S, D, H, S', n
    "odd": (2, 5, 7, 9, 20, 7, 2),
    "more than a block of each": (1, 70, 33, 17, 37, 40, 3),
    "no iteration": (1, 3, 4, 4, 4, 4, 0),
    "one of each": (1, 1, 1, 1, 1, 1, 1),
    "wide": (1, 2, 5, 130, 3, 5, 1),
    "eight iterations, narrow inside": (3, 2, 6, 8, 2, 6, 8),
}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def tokens_and_weights(shape, dtype):
    B, C, S, d, h, s_out, _ = shape
    sizes = [(d, S), (d,), (h, d), (h,), (d, h), (d,), (s_out, d), (s_out,)]
    weights = [
        torch.randn(*size, dtype=torch.float64) * (0.5 / size[-1] ** 0.5 if len(size) == 2 else 0.5) for size in sizes
    ]
    v = torch.randn(B, S, C, dtype=torch.float64).transpose(1, 2)
    return [t.to(dtype).requires_grad_() for t in (v, *weights)]


@pytest.fixture(autouse=True)
def interpreted():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the interpreter is chosen when Triton is imported: see test_fused_choice.py")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in SHAPES),
        *((name, dtype) for name in list(SHAPES)[:2] for dtype in TOLERANCE if dtype != torch.float64),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_one_product_after_the_other(name, dtype):
    shape = SHAPES[name]
    v, *weights = leaves = tokens_and_weights(shape, dtype)
    with fused_mode("on"):
        y = token_mixing(v, weights, shape[-1])
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = step_by_step(exact[0], exact[1:], shape[-1])
    assert y.dtype == dtype and y.shape == expected.shape
    ahead = torch.randn_like(expected)
    found = torch.autograd.grad(y, leaves, ahead.to(dtype))
    wanted = torch.autograd.grad(expected, exact, ahead, allow_unused=True)
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        b = torch.zeros_like(a, dtype=torch.float64) if b is None else b
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm()


def test_float64_gradients_are_those_of_finite_differences():
    v, *weights = tokens_and_weights(SHAPES["odd"], torch.float64)
    with fused_mode("on"):
        assert torch.autograd.gradcheck(lambda v, *w: token_mixing(v, w, 2), (v, *weights), fast_mode=True)


@pytest.mark.parametrize("layout", ["(C, S)", "(2, 3, C, S)", "contiguous", "expanded", "sliced"])
def test_any_layout_of_the_tokens_will_do(layout):
    v, *weights = tokens_and_weights((2, 5, 7, 9, 20, 7, 2), torch.float64)
    v = {
        "(C, S)": lambda: v[0],
        "(2, 3, C, S)": lambda: torch.randn(2, 3, 5, 7, dtype=torch.float64),
        "contiguous": v.contiguous,
        "expanded": lambda: v[:1].expand(3, 5, 7),
        "sliced": lambda: torch.randn(2, 5, 21, dtype=torch.float64)[:, :, ::3],
    }[layout]()
    with fused_mode("on"):
        torch.testing.assert_close(token_mixing(v, weights, 2), step_by_step(v, weights, 2))


def test_biases_may_be_missing():
    v, *weights = tokens_and_weights(SHAPES["odd"], torch.float64)
    given = [w if i % 2 == 0 else None for i, w in enumerate(weights)]
    with fused_mode("on"):
        found = token_mixing(v, given, 2)
    matrices = weights[::2]
    expected = step_by_step(v, [w if i % 2 == 0 else torch.zeros_like(w) for i, w in enumerate(weights)], 2)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(y.sum(), (v, *matrices)) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)  # of a sum, whose gradient is one number repeated


def test_a_second_derivative_is_refused():
    v, *weights = tokens_and_weights(SHAPES["odd"], torch.float64)
    with fused_mode("on"):
        y = token_mixing(v, weights, 2)
    with pytest.raises(RuntimeError, match="fused_mode"):
        torch.autograd.grad(y.sum(), v, create_graph=True)


def test_what_the_kernel_cannot_do_is_left_to_others():
    v, *weights = tokens_and_weights((1, 2, 3, 513, 4, 3, 1), torch.float32)
    with fused_mode("on"):
        assert token_mixing(v, weights, 1) is None
        assert token_mixing(v[:0], weights, 1) is None


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel was called."""
    made = []
    forward = fused._TokenMixing.apply
    monkeypatch.setattr(fused._TokenMixing, "apply", lambda *a: made.append(1) or forward(*a))
    return made


@pytest.mark.parametrize(
    "options", [{}, {"norm": "none"}, {"norm": "orthogonal"}, {"n_iter": 3}, {"sigma": "exact"}], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_a_model_computes_the_same_with_it(options, training, calls):
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", num_blocks=1, **options).double().train(training)
    torch.nn.init.normal_(model.head.weight)
    other, images = copy.deepcopy(model), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = model(images)
    expected.sum().backward()
    assert not calls
    with fused_mode("on"):
        found = other(images)
    found.sum().backward()
    assert calls
    torch.testing.assert_close(found, expected)
    for a, b in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    "options",
    [
        {"tied": True},
        {"num_layers": 4},
        {"norm": "batch"},
        {"solver": "picard", "gradient": "implicit"},
        {"gradient": "recompute"},
        {"legacy": True},
        {"act_layer": "tanh"},
        {"drop": 0.1},
        {"inner_drop_rate": 0.1},
        {"num_layers": 2},
    ],
    ids=str,
)
def test_an_imlp_that_the_kernel_does_not_compute_is_left_alone(options, calls):
    imlp = IMLP(6, 8, **options).train()
    with fused_mode("on"):
        imlp(torch.randn(2, 3, 6))
    assert not calls


@pytest.mark.parametrize("penalty", ["jacobian_penalty", "trajectory_penalty", "correction_penalty"])
def test_a_penalty_is_not_dropped_with_it(penalty, calls):
    torch.manual_seed(0)
    imlp, v = IMLP(6, 8, n_iter=2, **{penalty: 1.0}).train(), torch.randn(2, 3, 6)
    other = copy.deepcopy(imlp)
    torch.manual_seed(1)
    imlp(v)
    expected = imlp.penalties.take()
    torch.manual_seed(1)
    with fused_mode("on"):
        other(v)
    assert not calls
    torch.testing.assert_close(other.penalties.take(), expected)
    with fused_mode("on"):
        other.eval()(v)
    assert calls


def test_what_the_kernel_declines_is_normalised_once_all_the_same():
    torch.manual_seed(0)
    imlp, v = IMLP(6, 513).train(), torch.randn(2, 3, 6)
    with torch.no_grad():
        torch.nn.init.normal_(imlp.contraction.fc1.weight)  # the vector lags behind
    other = copy.deepcopy(imlp)
    expected = imlp(v)
    with fused_mode("on"):
        found = other(v)
    assert torch.equal(other.contraction.fc1.v, imlp.contraction.fc1.v)
    assert torch.equal(found, expected)


def test_a_hook_sees_every_call_with_it_too(calls):
    imlp, seen = IMLP(6, 8, n_iter=2), []
    imlp.contraction.fc1.register_forward_hook(lambda *_: seen.append(1))
    with fused_mode("on"):
        imlp(torch.randn(2, 3, 6))
    assert len(seen) == 2 and not calls


def test_under_autocast_it_computes_in_that_type(calls):
    imlp = IMLP(6, 8)
    v = torch.randn(2, 3, 6)
    expected = imlp(v)
    with fused_mode("on"), torch.autocast("cpu", dtype=torch.bfloat16):
        found = imlp(v)
    assert calls and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.02)
