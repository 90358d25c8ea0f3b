"""Failures are reported by name and step, or as the policy says; and what `solve` itself decides."""

import math
import warnings

import pytest
import torch
from problems import CONTRACTIVE, PROBLEMS, TIGHT, TO_TOLERANCE, leaf, randn

from imixer.implicit.gradients import CheckpointedUnroll, Implicit, Unroll
from imixer.implicit.solution import NotConvergedError
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard

COARSE = dict(rtol=1e-4, max_steps=40)
SOLVERS = {
    "fixed": FixedIterations(10),
    "measured": FixedIterations(10, measure=True),
    "picard": Picard(**COARSE),
    "damped": Picard(damping=0.6, **COARSE),
    "anderson": Anderson(**COARSE),
    "broyden": Broyden(**COARSE),
}


class BreaksAt:
    """A contraction that gives NaN for one sample from some evaluation on."""

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def __call__(self, x):
        broken = x.detach()[1] + self.step
        fx = 0.9 * x.sin()
        self.calls += 1
        if self.calls >= self.step:
            fx = torch.where(torch.arange(len(x))[:, None] == 1, broken * math.nan, fx)
        if self.calls == 10:  # a solver of fixed iterations is asked again
            self.calls = 0
        return fx


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("step", [1, 3])
def test_nan_is_reported_with_the_step(name, step):
    with pytest.raises(NotConvergedError, match=rf"blocks\.3: 1 of 3 samples are not finite from step {step} on"):
        solve(BreaksAt(step), randn(3, 4), solver=SOLVERS[name], name="blocks.3")


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_start_that_is_not_finite(name, broken):
    z = randn(3, 4)
    z[2, 1] = broken
    with pytest.raises(NotConvergedError, match="solve: 1 of 3 samples are not finite from step 1 on"):
        solve(lambda x: 0.5 * x.tanh(), z, solver=SOLVERS[name])


@pytest.mark.parametrize("name", ["picard", "damped", "anderson", "broyden"])
def test_divergence_is_reported(name):
    """x = z + |x| + 1 has no solution."""
    with pytest.raises(NotConvergedError, match="no contraction"):
        solve(lambda x: 2 * x.abs() + 1, randn(3, 4).abs(), solver=SOLVERS[name])


def test_divergence_until_overflow_stops_there():
    z = torch.ones(2, 3)
    with pytest.raises(NotConvergedError, match=r"2 of 2 samples are not finite from step \d+ on"):
        solve(lambda x: 1e3 * x, z, solver=Picard(max_steps=10**9))
    with pytest.raises(NotConvergedError, match=r"2 of 2 samples are not finite from step \d+ on"):
        solve(lambda x: 1e3 * x, z, solver=FixedIterations(20))


def test_running_out_of_steps_is_reported_with_the_residual():
    p = PROBLEMS["slow"]()
    with pytest.raises(NotConvergedError, match=r"3 of 3 .* in 100 steps, .* residual of up to .*; allow more steps"):
        solve(p.F, p.z, p.tensors, solver=Picard(**{**TIGHT, "max_steps": 100}), gradient=Implicit())


@pytest.mark.parametrize(
    "gradient", [Unroll(), Implicit(), CheckpointedUnroll()], ids=["steps", "implicit", "recompute"]
)
def test_policies(gradient):
    z = leaf(randn(3, 4))
    made = FixedIterations(3) if isinstance(gradient, CheckpointedUnroll) else Picard(max_steps=3)

    def attempt(policy):
        F = (lambda x: x * math.nan) if isinstance(gradient, CheckpointedUnroll) else torch.sin
        return solve(F, z, solver=made, gradient=gradient, on_failure=policy, name="blocks.3")

    with pytest.raises(NotConvergedError, match=r"blocks\.3"):
        attempt("raise")
    with pytest.warns(UserWarning, match=r"blocks\.3"):
        warned = attempt("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignored = attempt("ignore")
    torch.testing.assert_close(warned.value, ignored.value, equal_nan=True)
    with pytest.raises(ValueError, match="on_failure is 'quiet'"):
        attempt("quiet")


def test_a_failure_does_not_touch_the_result_of_fixed_iterations():
    """To name the step they are asked again, and what that finds is not returned."""
    with pytest.warns(UserWarning, match="from step 1 on"):
        found = solve(lambda x: x / 0 * 0, leaf(randn(3, 4)), solver=FixedIterations(3), on_failure="warn")
    assert found.value.requires_grad and found.residuals is None and found.n_evaluations == 3


@pytest.mark.parametrize("shape", [(2, 1), (2, 4), (1, 3), (3,), (2, 2, 3)])
def test_f_that_changes_the_shape(shape):
    for gradient in (Unroll(), Implicit(), CheckpointedUnroll()):
        with pytest.raises(ValueError, match=r"blocks\.3: F leads from shape"):
            solve(lambda x: torch.zeros(shape), torch.zeros(2, 3), gradient=gradient, name="blocks.3")


def test_z_without_samples():
    with pytest.raises(ValueError, match="no axis of samples"):
        solve(torch.sin, torch.tensor(1.0))


@pytest.mark.parametrize("name", TO_TOLERANCE)
@pytest.mark.parametrize("problem", CONTRACTIVE)
@torch.no_grad()
def test_leaving_early_changes_nothing(name, problem):
    p = PROBLEMS[problem]()
    plain = solve(p.F, p.z, p.tensors, solver=TO_TOLERANCE[name])
    early = solve(p.F, p.z, p.tensors, solver=TO_TOLERANCE[name], early_exit=True)
    torch.testing.assert_close(early.value, plain.value, rtol=1e-12, atol=1e-13)
    # Products of fewer rows may round otherwise, and so move the last step.
    assert abs(early.n_evaluations - plain.n_evaluations) <= 2
    assert early.converged.all()


@pytest.mark.parametrize("name", TO_TOLERANCE)
@torch.no_grad()
def test_leaving_early_evaluates_only_what_moves(name):
    rates, samples = torch.tensor([0.0, 0.1, 0.9], dtype=torch.float64)[:, None], []
    z = randn(3, 1) * torch.ones(5, dtype=torch.float64) + rates  # a sample's rate is found from the sample

    def F(x):
        samples.append(len(x))
        return torch.where(x[:, :1] > 1e6, 0.0, 0.7 * x.sin())

    z[0] = 1e7
    plain = solve(F, z, solver=TO_TOLERANCE[name])
    assert set(samples) == {3}
    samples.clear()
    early = solve(F, z, solver=TO_TOLERANCE[name], early_exit=True)
    assert torch.equal(early.value, plain.value) and torch.equal(early.residuals, plain.residuals)
    assert early.n_evaluations == plain.n_evaluations
    asked_alone = samples.pop(samples.index(1))  # once, whether F treats samples apart
    assert asked_alone == 1 and samples[0] == 3 and max(samples[1:]) < 3 and samples == sorted(samples, reverse=True)


@pytest.mark.parametrize("z", [randn(0, 3, 2), randn(3, 2, 4).transpose(1, 2)], ids=["no samples", "transposed"])
@torch.no_grad()
def test_leaving_early_whatever_the_layout(z):
    for made in TO_TOLERANCE.values():
        early = solve(lambda x: 0.5 * x.sin(), z, solver=made, early_exit=True)
        assert torch.equal(early.value, solve(lambda x: 0.5 * x.sin(), z, solver=made).value)


def test_leaving_early_is_for_inference():
    with pytest.raises(ValueError, match=r"torch.no_grad"):
        solve(torch.sin, randn(2, 3), solver=Picard(), early_exit=True)
