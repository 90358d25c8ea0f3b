"""A start changes how long it takes, not what is found; and what is given back on failure is the best seen."""

import pytest
import torch
from problems import CONTRACTIVE, PROBLEMS, TIGHT, TO_TOLERANCE, leaf, randn
from torch.autograd import gradcheck, gradgradcheck

from imixer.implicit import CheckpointedUnroll, FixedIterations, Implicit, Unroll, solve
from imixer.implicit.solvers import Anderson, Broyden, Picard


@pytest.mark.parametrize("name", TO_TOLERANCE)
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_the_solution_does_not_depend_on_the_start(name, problem):
    p = PROBLEMS[problem]()
    cold = solve(p.F, p.z, p.tensors, solver=TO_TOLERANCE[name])
    far = solve(p.F, p.z, p.tensors, solver=TO_TOLERANCE[name], start=5 * randn(*p.z.shape, seed=9))
    torch.testing.assert_close(far.value, cold.value, rtol=1e-9, atol=1e-10)
    again = solve(p.F, p.z, p.tensors, solver=TO_TOLERANCE[name], start=cold.value)
    assert again.n_evaluations <= 2


def test_fixed_iterations_from_a_start_are_written_out():
    p, x = PROBLEMS["tanh"](), randn(3, 4, seed=9)
    value = solve(p.F, p.z, p.tensors, start=x, solver=FixedIterations(3)).value
    for _ in range(3):
        x = p.z + p.F(x, *p.tensors)
    assert torch.equal(value, x)


@pytest.mark.parametrize("gradient", [Unroll(), CheckpointedUnroll(1)], ids=["unroll", "recompute"])
@pytest.mark.parametrize("n_iter", [0, 1, 4])
def test_gradients_of_steps_from_a_start_are_finite_differences(gradient, n_iter):
    p = PROBLEMS["tanh"]()

    def value(start, z, *tensors):
        return solve(p.F, z, tensors, start=start, solver=FixedIterations(n_iter), gradient=gradient).value

    inputs = leaf(randn(3, 4, seed=9)), *p.inputs
    assert gradcheck(value, inputs)
    assert gradgradcheck(value, inputs, fast_mode=True)


@pytest.mark.parametrize("gradient", [Unroll(), CheckpointedUnroll(1)], ids=["unroll", "recompute"])
def test_a_start_that_is_z_counts_twice(gradient):
    p = PROBLEMS["tanh"]()

    def value(z, *tensors):
        return solve(p.F, z, tensors, start=z, solver=FixedIterations(3), gradient=gradient).value

    assert gradcheck(value, p.inputs, fast_mode=True)
    plain = torch.autograd.grad(solve(p.F, p.z, p.tensors, solver=FixedIterations(3)).value.sum(), p.inputs)
    for a, b in zip(torch.autograd.grad(value(*p.inputs).sum(), p.inputs), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_the_equations_gradient_is_that_without_a_start():
    p = PROBLEMS["tanh"]()
    start = leaf(randn(3, 4, seed=9))
    exact = Implicit(Broyden(**TIGHT))

    def value(z, *tensors):
        return solve(p.F, z, tensors, start=start, solver=Anderson(**TIGHT), gradient=exact).value

    assert gradcheck(value, p.inputs, fast_mode=True)
    assert torch.autograd.grad(value(*p.inputs).sum(), start, allow_unused=True) == (None,)


def test_a_start_may_be_a_structure():
    z = {"a": randn(2, 3), "b": randn(2, 4)}

    def F(x):
        return {key: 0.5 * each.sin() for key, each in x.items()}

    cold = solve(F, z, solver="picard")
    warm = solve(F, z, solver="picard", start=dict(reversed(cold.value.items())))
    assert warm.n_evaluations == 1 and warm.value.keys() == z.keys()


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (torch.zeros(2, 4).double(), r"start is \(2, 4\), and z is of shape \(3, 4\); start from a state like z"),
        (torch.zeros(3, 5).double(), r"start is \(3, 5\), and z is of shape \(3, 4\)"),
        (torch.zeros(3).double(), r"start is \(3,\), and z is of shape"),
        ((torch.zeros(3, 4),), r"start is \(Tensor\), and z is Tensor; start from"),
        (torch.zeros(3, 4).to(torch.complex128), "start is complex128, and z is float64; convert"),
        (torch.zeros(3, 4, device="meta"), "start is meta, and z is on cpu; move it"),
    ],
)
def test_a_start_unlike_z_is_refused_in_a_sentence(start, said):
    with pytest.raises(ValueError, match=rf"blocks\.3: {said}"):
        solve(torch.sin, randn(3, 4), start=start, name="blocks.3")


def test_a_failed_sample_is_taken_out_with_its_start():
    z, start = leaf(randn(3, 4)), leaf(randn(3, 4, seed=1))
    W = leaf(torch.ones(4, dtype=torch.float64))
    bad = start.detach().clone()
    bad[1] = torch.nan
    bad.requires_grad_()
    with pytest.warns(UserWarning, match="1 of 3 samples are not finite"):
        x = solve(lambda x, W: 0.5 * W * x.sin(), z, W, start=bad, on_failure="warn").value
    assert x[1].isnan().all()
    x[[0, 2]].sum().backward()
    assert W.grad.isfinite().all() and z.grad.isfinite().all() and bad.grad.isfinite().all()


# The best iterate


@pytest.mark.parametrize("kind", [Picard, Anderson, Broyden])
@pytest.mark.parametrize("grad", [True, False])
def test_out_of_steps_each_sample_gets_the_iterate_of_its_least_residual(kind, grad):
    slopes = torch.tensor([-1.5, 2.5, 0.99], dtype=torch.float64)[:, None]
    z = leaf(randn(3, 4))

    def F(x):
        return slopes * (x + 0.3 * (5 * x).sin())

    with torch.set_grad_enabled(grad):
        solution = solve(F, z, solver=kind(rtol=1e-12, atol=0.0, max_steps=7), on_failure="ignore")
    x = solution.value
    fx = z + F(x)
    residual = (fx - x).norm(dim=1) / fx.norm(dim=1)
    torch.testing.assert_close(residual, solution.residuals.min(0).values)
    assert not solution.converged.any() and x.requires_grad == grad
    assert kind is Broyden or (solution.residuals.argmin(0) < 6).any()


def test_an_iteration_that_leaves_its_best_point_gives_that_back():
    """Away from the unstable solution 0, doubling its distance at each step."""
    z, start = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 1e-3, dtype=torch.float64)
    solver = Picard(rtol=1e-12, atol=1e-12, max_steps=10)
    solution = solve(lambda x: 2 * x + x**2, z, start=start, solver=solver, on_failure="ignore")
    fx = 2 * solution.value + solution.value**2
    assert solution.value.item() == start.item() and torch.equal(
        (fx - solution.value).abs()[0] / fx, solution.residuals[:1]
    )


def test_what_is_not_finite_stays_so():
    z = torch.ones(2, 3)
    z[1] = 0
    solution = solve(lambda x: torch.where(x > 2, torch.nan, x), z, solver=Picard(max_steps=8), on_failure="ignore")
    assert not solution.value[0].isfinite().any() and (solution.value[1] == 0).all()
    assert solution.converged.tolist() == [False, True]
