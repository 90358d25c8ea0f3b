"""Log-determinants and Frobenius norms are those of the dense Jacobian."""

import itertools

import pytest
import torch
from problems import leaf, randn
from torch.autograd import gradcheck

from imixer.implicit import Broyden, exact_log_det, inverse_log_det, residual_log_det, solve
from imixer.implicit.regularizers import fixed_point_correction, iterates, jacobian_penalty, trajectory_cost

W, x = 0.25 * randn(3, 3, seed=1), randn(2, 3)
# Of all vectors of signs the mean of v v^T is the unit matrix: traces are exact.
SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3))).double()[:, None].expand(8, 2, 3)


def F(x, W):
    return (x @ W).tanh() + 0.1 * x.sin()


def jacobians(x, W):
    return torch.stack([torch.func.jacrev(lambda x: F(x, W))(each) for each in x])


def test_the_series_is_the_determinant_of_the_dense_jacobian():
    expected = torch.linalg.slogdet(torch.eye(3) - jacobians(x, W)).logabsdet
    found = residual_log_det(F, x, (W,), terms=120, roulette=0, probes=SIGNS)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inverse_log_det(F, x, (W,), terms=120, roulette=0, probes=SIGNS), -expected)


def test_the_inverses_determinant_is_that_of_the_solution_as_a_function_of_z():
    z = randn(2, 3, seed=4)
    tight = Broyden(rtol=1e-13, atol=1e-14)
    solution = solve(F, z, W, solver=tight).value
    dense = torch.func.jacfwd(lambda z: solve(F, z[None], W, solver=tight).value[0])
    expected = torch.stack([torch.linalg.slogdet(dense(each)).logabsdet for each in z])
    torch.testing.assert_close(inverse_log_det(F, solution, (W,), terms=120, roulette=0, probes=SIGNS), expected)


def test_its_gradient_is_finite_differences_of_the_determinant():
    def value(x, W):
        return residual_log_det(F, x, (W,), terms=60, roulette=0, probes=SIGNS)

    assert gradcheck(value, (leaf(x), leaf(W)), fast_mode=True)


def test_roulette_is_unbiased_where_a_short_series_is_not():
    expected = torch.linalg.slogdet(torch.eye(3) - jacobians(x, W)).logabsdet
    generator = torch.Generator().manual_seed(0)

    def draw(roulette):
        return residual_log_det(F, x, (W,), terms=1, roulette=roulette, probes=SIGNS, generator=generator)

    draws = torch.stack([draw(0.5) for _ in range(1000)]).detach()
    error = draws.std(0) / 1000**0.5
    assert ((draws.mean(0) - expected).abs() < 4 * error).all()
    assert ((draw(0) - expected).abs() > 8 * error).all()


def test_random_probes_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    draws = residual_log_det(F, x, (W,), terms=30, roulette=0, probes=2000, generator=generator)
    expected = torch.linalg.slogdet(torch.eye(3) - jacobians(x, W)).logabsdet
    torch.testing.assert_close(draws.detach(), expected, rtol=0, atol=0.05)


def test_the_jacobian_penalty_is_the_frobenius_norm():
    torch.testing.assert_close(jacobian_penalty(F, x, (W,), probes=SIGNS), jacobians(x, W).square().sum((1, 2)) / 3)
    assert gradcheck(lambda x, W: jacobian_penalty(F, x, (W,), probes=SIGNS), (leaf(x), leaf(W)), fast_mode=True)


FUNCTIONS = {
    "residual": lambda x: residual_log_det(F, x, (W,), terms=3, roulette=0, probes=SIGNS),
    "inverse": lambda x: inverse_log_det(F, x, (W,), terms=3, roulette=0, probes=SIGNS),
    "exact": lambda x: exact_log_det(F, x, (W,)),
    "penalty": lambda x: jacobian_penalty(F, x, (W,), probes=SIGNS),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_derivatives_in_forward_mode_are_those_of_backward_mode_whatever_is_recorded(f, mode):
    dx = randn(2, 3, seed=5)
    at = leaf(x)
    (gradient,) = torch.autograd.grad(f(at).sum(), at)
    expected = (gradient * dx).sum(1)
    with mode():
        torch.testing.assert_close(torch.func.jvp(f, (x,), (dx,))[1], expected)
        with torch.autograd.forward_ad.dual_level():
            dual = f(torch.autograd.forward_ad.make_dual(x, dx))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, expected)


def test_the_trajectory_cost_is_written_out_and_descends_with_the_slope():
    z, first = x, x + F(x, W)
    second = x + F(first, W)
    expected = ((first - z) ** 2 + (second - first) ** 2).mean(1)
    torch.testing.assert_close(trajectory_cost(iterates(F, z, (W,), steps=2)), expected)
    assert gradcheck(lambda W: trajectory_cost(iterates(F, z, (W,), steps=2)), leaf(W))


def test_the_trajectory_cost_of_complex_states_is_that_of_pairs_of_real_ones():
    z = torch.complex(randn(2, 3), randn(2, 3, seed=1))

    def squared_length(step):
        return torch.view_as_real(step).square().mean((1, 2))

    path = iterates(lambda x: 0.5j * x, z, steps=2)
    expected = squared_length(0.5j * z) + squared_length(0.5j * (0.5j * z))
    torch.testing.assert_close(trajectory_cost(path), expected)


def test_a_corrections_gradient_is_that_of_one_step_from_each_iterate():
    weight, states = leaf(W), [randn(2, 3, seed=s) for s in (1, 2, 3)]
    correction = fixed_point_correction(F, x, (weight,), states, lambda x: x.square().sum(), decay=0.5)
    written_out = sum(c * (x + F(s, W)).square().sum() for c, s in zip((0.25, 0.5, 1), states, strict=True))
    torch.testing.assert_close(correction, written_out)
    assert gradcheck(
        lambda W: fixed_point_correction(F, x, (W,), states, lambda x: x.square().sum(), decay=0.5), weight
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: residual_log_det(F, x, (W,), terms=0), "terms and roulette are 0 and 0.5; give"),
        (lambda: residual_log_det(F, x, (W,), roulette=1.0), "terms and roulette are 10 and 1.0; give"),
        (lambda: residual_log_det(F, x, (W,), probes=0), "probes is 0; give 1 or more"),
        (lambda: jacobian_penalty(F, x, (W,), probes=SIGNS[:, :1]), r"probes are \(8, 1, 3\) and x \(2, 3\); give"),
        (lambda: iterates(F, x, (W,), steps=0), "steps is 0; give 1 or more"),
        (lambda: fixed_point_correction(F, x, (W,), [x], torch.sum, decay=0), "decay is 0; give a weight"),
        (lambda: fixed_point_correction(F, x, (W,), [], torch.sum), "path has no states; give one or more"),
        (
            lambda: fixed_point_correction(F, x, (W,), [x], torch.abs),
            r"the loss of a state has shape \(2, 3\); give one",
        ),
        (
            lambda: fixed_point_correction(F, x, (W,), [x], lambda x: 3.0),
            "the loss of a state is float; give one number",
        ),
        (lambda: trajectory_cost([x]), "path has 1 states; give two or more"),
        (
            lambda: iterates(lambda x: x[:, :1], x, steps=1),
            r"F leads from \(2, 3\) to \(2, 1\); let it give back what x is",
        ),
        (lambda: iterates(torch.sin, {"x": x}, steps=1), "z is dict; give one tensor of states"),
        (lambda: iterates(torch.sin, x, steps=1, start=x[:1]), r"start has shape \(1, 3\); give \(2, 3\)"),
        (lambda: iterates(torch.sin, x.long(), steps=1), r"z is of torch.int64; convert it, z.float\(\)"),
        (lambda: iterates(torch.sin, x[0, 0], steps=1), r"z has no axis of samples; give it one, z\[None\]"),
        (lambda: trajectory_cost([x, x[:, :1]]), r"path\[1\] has shape \(2, 1\); give \(2, 3\)"),
        (lambda: trajectory_cost([{"x": x}] * 2), r"path\[0\] is dict; give one tensor of states"),
        (
            lambda: fixed_point_correction(lambda x: x[:, :1], x, (), [x], torch.sum),
            r"F leads from \(2, 3\) to \(2, 1\); let it",
        ),
        (
            lambda: fixed_point_correction(torch.sin, x, (), [x[:1]], torch.sum),
            r"path\[0\] has shape \(1, 3\); give \(2, 3\)",
        ),
        (lambda: residual_log_det(lambda x: x[:, :2], x), r"F leads from \(2, 3\) to \(2, 2\); let it give back"),
        (lambda: jacobian_penalty(lambda x: (x,), x), r"F leads from \(2, 3\) to tuple; let it give back what x is"),
        (lambda: residual_log_det(F, torch.ones(2, 3, dtype=torch.long), (W,)), "x is torch.int64; give real points"),
    ],
)
def test_bad_options_are_refused_with_the_remedy(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("lip", [0.5, 0.99])
def test_close_to_contraction_one_the_exact_determinant_is_still_that_of_the_jacobian(dims, lip):
    Q = torch.linalg.qr(randn(dims, dims))[0]
    points = 0.1 * randn(4, dims)
    J = torch.stack([torch.func.jacrev(lambda x: lip * (x @ Q).sin())(each) for each in points])
    expected = torch.linalg.slogdet(torch.eye(dims) - J).logabsdet
    torch.testing.assert_close(exact_log_det(lambda x, Q: lip * (x @ Q).sin(), points, Q), expected)


def test_states_of_one_number_have_a_density_too():
    x = randn(5)
    expected = (1 - 0.5 * x.cos()).log()
    torch.testing.assert_close(exact_log_det(lambda x: 0.5 * x.sin(), x), expected)
    torch.testing.assert_close(residual_log_det(lambda x: 0.5 * x.sin(), x, terms=60, roulette=0), expected)
    torch.testing.assert_close(jacobian_penalty(lambda x: 0.5 * x.sin(), x), (0.5 * x.cos()) ** 2)
    torch.testing.assert_close(trajectory_cost(iterates(lambda x: 0.5 * x, x, steps=1)), (0.5 * x) ** 2)


def test_determinants_and_penalties_go_through_the_transforms_of_torch_func():
    def dense(x, W):
        return torch.linalg.slogdet(torch.eye(3) - torch.func.jacrev(lambda x: F(x, W))(x)).logabsdet

    of_sample = [
        (lambda x, W: exact_log_det(F, x[None], W)[0], dense),
        (lambda x, W: residual_log_det(F, x[None], W, terms=120, roulette=0, probes=SIGNS[:, :1])[0], dense),
        (
            lambda x, W: jacobian_penalty(F, x[None], W, probes=SIGNS[:, :1])[0],
            lambda x, W: torch.func.jacrev(lambda x: F(x, W))(x).square().sum() / 3,
        ),
    ]
    for found, expected in of_sample:
        for transform in (
            lambda f: torch.func.vmap(torch.func.grad(f, argnums=(0, 1)), in_dims=(0, None))(x, W),
            lambda f: torch.func.jacfwd(f, argnums=1)(x[0], W),
            lambda f: torch.func.hessian(f)(x[0], W),
        ):
            torch.testing.assert_close(transform(found), transform(expected), rtol=1e-7, atol=1e-9)


def test_coins_are_tossed_once_for_all_that_is_mapped_over():
    def estimate(x):
        return residual_log_det(F, x[None], W, terms=2, roulette=0.9, probes=SIGNS[:, :1])[0]

    torch.manual_seed(3)
    mapped = torch.func.vmap(estimate)(x)
    torch.manual_seed(3)
    one_by_one = estimate(x[0])
    torch.testing.assert_close(mapped[0], one_by_one)


@pytest.mark.parametrize("probes", [2, torch.ones(2, 3, 4)], ids=["drawn", "given"])
@pytest.mark.parametrize("measure", [jacobian_penalty, residual_log_det, exact_log_det, inverse_log_det])
def test_determinants_and_penalties_are_the_same_in_inference_mode(measure, probes):
    results = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.manual_seed(0)
            W, x = torch.randn(4, 4) / 8, torch.randn(3, 4)
            given = probes if isinstance(probes, int) else probes + 0 * x  # made in that mode too
            options = {} if measure is exact_log_det else {"probes": given}
            results.append(measure(lambda x, W: torch.tanh(x @ W), x, W, **options))
    assert torch.equal(*results) and not results[1].requires_grad


def test_one_tensor_alone_needs_no_tuple():
    for each in (
        lambda W: exact_log_det(F, x, W),
        lambda W: residual_log_det(F, x, W, roulette=0, probes=SIGNS),
        lambda W: jacobian_penalty(F, x, W, probes=SIGNS),
        lambda W: trajectory_cost(iterates(F, x, W, steps=2)),
        lambda W: fixed_point_correction(F, x, W, [x], torch.sum),
    ):
        torch.testing.assert_close(each(W), each((W,)))
    with pytest.raises(ValueError, match=r"tensors\[0\] is float; give a tensor"):
        exact_log_det(F, x, [0.5])


def test_a_constant_f_changes_no_density():
    assert torch.equal(residual_log_det(lambda x: torch.ones_like(x), x), torch.zeros(2, dtype=torch.float64))
