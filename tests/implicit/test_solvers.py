"""Every solver on every problem, each sample on its own."""

import math

import pytest
import torch
from problems import EVERY, EVERY_SOLVED, PROBLEMS, SOLVERS, TIGHT, TO_TOLERANCE, randn, solver
from torch.utils._python_dispatch import TorchDispatchMode

from imixer.implicit.gradients import CheckpointedUnroll, Implicit
from imixer.implicit.solution import NotConvergedError
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard


class Counted:
    """F, and how often and on how many samples it was evaluated."""

    def __init__(self, F):
        self.F, self.calls, self.samples = F, 0, []

    def __call__(self, x, *tensors):
        self.calls += 1
        self.samples.append(len(x))
        return self.F(x, *tensors)


@pytest.mark.parametrize(("name", "problem"), EVERY_SOLVED)
@torch.no_grad()
def test_solution(name, problem):
    p = PROBLEMS[problem]()
    F = Counted(p.F)
    found = solve(F, p.z, p.tensors, solver=solver(name, p))
    assert p.gap(found.value) < 1e-11
    if p.answer is not None:
        torch.testing.assert_close(found.value, p.answer, rtol=1e-10, atol=1e-10)
    assert found.value.shape == p.z.shape
    assert F.calls == found.n_evaluations
    if name == "fixed":
        assert found.residuals is None and found.converged is None
    else:
        assert found.converged.shape == (len(p.z),) and found.converged.all()
        assert found.residuals.shape == (F.calls, len(p.z))


@pytest.mark.parametrize(("name", "problem"), sorted(set(EVERY) - set(EVERY_SOLVED)))
def test_what_does_not_converge_is_reported(name, problem):
    p = PROBLEMS[problem]()
    if name == "fixed":  # has no tolerance, and 1.8^300 is finite
        assert solve(p.F, p.z, p.tensors, solver=solver(name, p)).value.abs().max() > 1e70
        return
    with pytest.raises(NotConvergedError, match=r"blocks\.3"):
        solve(p.F, p.z, p.tensors, solver=solver(name, p), name="blocks.3")


@torch.no_grad()
def test_residuals_and_tolerance_written_out():
    p, n = PROBLEMS["tanh"](), 6
    found = solve(p.F, p.z, p.tensors, solver=FixedIterations(n, measure=True))
    x, expected = p.z, []
    for _ in range(n):
        fx = p.z + p.F(x, *p.tensors)
        expected.append((fx - x).norm(dim=1) / fx.norm(dim=1))
        x = fx
    assert torch.equal(found.value, x)
    torch.testing.assert_close(found.residuals, torch.stack(expected))
    # The first step at which every sample meets the tolerance is the last, and it is taken.
    rtol = float(found.residuals[3].max()) * 1.001
    stopped = solve(p.F, p.z, p.tensors, solver=Picard(rtol=rtol, atol=0.0))
    assert stopped.n_evaluations == 4
    late = found.residuals[2] > rtol
    assert late.any()
    four = solve(p.F, p.z, p.tensors, solver=FixedIterations(4)).value
    assert torch.equal(stopped.value[late], four[late])


@torch.no_grad()
def test_absolute_tolerance():
    p = PROBLEMS["linear"]()
    for atol in (1e-2, 1e-6):
        found = solve(p.F, p.z, p.tensors, solver=Picard(rtol=0.0, atol=atol))
        x = found.value
        assert 0.01 * atol < (p.z + p.F(x, *p.tensors) - x).norm(dim=1).max() <= 0.5 * atol


@torch.no_grad()
def test_mixing_and_secants_pay_where_convergence_is_slow():
    p = PROBLEMS["slow"]()
    cost = {name: solve(p.F, p.z, p.tensors, solver=s).n_evaluations for name, s in TO_TOLERANCE.items()}
    assert cost["broyden"] < 20 and cost["anderson"] < 20 and cost["picard"] > 400
    # A linear problem of three dimensions is solved in as many steps, and a few more for want of precision.


@pytest.mark.parametrize("name", TO_TOLERANCE)
@torch.no_grad()
def test_a_sample_does_not_depend_on_the_others(name):
    """Rates from 0 to 0.9 in one batch: each sample ends where it ends alone, and stays there."""
    rates = torch.tensor([0.0, 0.1, 0.5, 0.9], dtype=torch.float64)
    z, s = randn(4, 5), TO_TOLERANCE[name]
    together = solve(lambda x, a: a[:, None] * x.sin(), z, (rates,), solver=s)
    for i in range(4):
        alone = solve(lambda x, a: a[:, None] * x.sin(), z[i : i + 1], (rates[i : i + 1],), solver=s)
        torch.testing.assert_close(together.value[i], alone.value[0], rtol=1e-15, atol=1e-16)
        taken = alone.n_evaluations
        torch.testing.assert_close(together.residuals[:taken, i], alone.residuals[:, 0], rtol=1e-6, atol=1e-15)
        rest = together.residuals[taken:, i]
        assert (rest == rest[:1]).all()  # the sample moved no more


@pytest.mark.parametrize("name", TO_TOLERANCE)
@torch.no_grad()
def test_looking_rarely_changes_nothing_but_the_cost(name):
    p = PROBLEMS["gelu"]()
    kind, options = type(TO_TOLERANCE[name]), dict(TIGHT, damping=0.6) if name == "damped" else TIGHT
    often = solve(p.F, p.z, p.tensors, solver=kind(**options))
    rarely = solve(p.F, p.z, p.tensors, solver=kind(**options, check_every=7))
    assert torch.equal(often.value, rarely.value)
    assert rarely.n_evaluations == 7 * math.ceil(often.n_evaluations / 7)


def test_a_gpu_is_not_made_to_wait_at_every_step():
    assert Picard()._look_every(torch.device("cuda")) == 8
    assert Picard()._look_every(torch.device("cpu")) == 1
    assert Picard(check_every=3)._look_every(torch.device("cuda")) == 3


class Synchronisations(TorchDispatchMode):
    """How often a value leaves the device for the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in func.name() or "nonzero" in func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("made", "policy", "expected"),
    [
        (FixedIterations(20), "ignore", 0),
        (FixedIterations(20), "raise", 1),
        # Two looks at whether all have converged, and one at what the gradient must leave out.
        *((kind(rtol=1e-30, max_steps=6, check_every=3), "ignore", 3) for kind in (Picard, Anderson, Broyden)),
    ],
    ids=["fixed", "fixed, checked", "picard", "anderson", "broyden"],
)
def test_synchronisations(made, policy, expected):
    p = PROBLEMS["slow"]()
    with Synchronisations() as mode:
        solve(p.F, p.z, p.tensors, solver=made, on_failure=policy).value.sum().backward()
    assert mode.count == expected


@pytest.mark.parametrize("n_iter", [1, 2, 8])
def test_fixed_iterations_compile_to_one_graph(n_iter):
    p = PROBLEMS["gelu"]()
    torch.compiler.reset()
    compiled = torch.compile(
        lambda z, *tensors: solve(p.F, z, tensors, solver=FixedIterations(n_iter)).value,
        fullgraph=True,
        backend="aot_eager",
    )
    expected = solve(p.F, p.z, p.tensors, solver=FixedIterations(n_iter)).value
    ours = compiled(*p.inputs)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), p.inputs), torch.autograd.grad(expected.sum(), p.inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gradient", [Implicit(), CheckpointedUnroll()], ids=["implicit", "recompute"])
@torch.no_grad()
def test_fixed_iterations_compile_to_one_graph_with_any_gradient_where_none_is_wanted(gradient):
    p = PROBLEMS["gelu"]()
    torch.compiler.reset()
    compiled = torch.compile(
        lambda z, *tensors: solve(p.F, z, tensors, gradient=gradient).value, fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(*p.inputs), solve(p.F, p.z, p.tensors).value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["picard", "damped", "anderson", "broyden"])
@pytest.mark.parametrize("problem", ["linear", "gelu", "slow"])
@torch.no_grad()
def test_a_tolerance_finer_than_the_type_is_what_the_type_resolves(dtype, name, problem):
    p = PROBLEMS[problem]()
    half = dtype.itemsize == 2
    if half and problem == "slow":
        pytest.skip("95 % of a rounding error in each step is too much")
    made = {"damped": Picard(damping=0.6, rtol=1e-30, atol=0.0, max_steps=1500)}.get(
        name, type(TO_TOLERANCE[name])(rtol=1e-30, atol=0.0, max_steps=1500)
    )
    tensors = [t.to(dtype) for t in p.tensors]
    F = p.F
    if problem == "gelu":
        F = lambda x, *t: p.F(x.double(), *(each.double() for each in t)).to(dtype)  # noqa: E731
    found = solve(F, p.z.to(dtype), tensors, solver=made)
    assert (
        found.converged.all()
        and found.value.dtype == dtype
        and found.residuals.dtype == torch.promote_types(dtype, torch.float32)
    )
    exact = solve(p.F, p.z, p.tensors, solver=TO_TOLERANCE["broyden"]).value
    error = (found.value.double() - exact).norm() / exact.norm()
    assert error < 40 * torch.finfo(dtype).eps / (1 - p.rate)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: FixedIterations(-1), "n_iter"),
        *((lambda k=kind: k(rtol=0.0, atol=0.0), "rtol and atol") for kind in (Picard, Anderson, Broyden)),
        *((lambda k=kind: k(rtol=-1e-3), "rtol and atol") for kind in (Picard, Anderson, Broyden)),
        (lambda: Picard(atol=-1.0), "rtol and atol"),
        (lambda: Picard(rtol=math.nan), "rtol and atol"),
        (lambda: Picard(max_steps=0), "max_steps"),
        (lambda: Picard(check_every=0), "check_every"),
        (lambda: Picard(damping=0.0), "damping"),
        (lambda: Picard(damping=1.5), "damping"),
        (lambda: Anderson(damping=0.0), "damping"),
        (lambda: Anderson(memory=0), "memory"),
        (lambda: Anderson(ridge=0.0), "ridge"),
        (lambda: Broyden(memory=0), "memory"),
    ],
)
def test_impossible_options_are_refused_by_name(made, named):
    with pytest.raises(ValueError, match=named):
        made()


@torch.no_grad()
def test_anderson_with_memory_of_one_is_picard():
    p = PROBLEMS["tanh"]()
    for damping in (1.0, 0.6):
        ours = solve(p.F, p.z, p.tensors, solver=Anderson(memory=1, damping=damping))
        torch.testing.assert_close(ours.value, solve(p.F, p.z, p.tensors, solver=Picard(damping=damping)).value)


@pytest.mark.parametrize(
    "made",
    [
        Anderson(memory=2, **TIGHT),
        Anderson(damping=0.5, **TIGHT),
        Broyden(memory=1, **TIGHT),
        Broyden(memory=6, **TIGHT),
    ],
)
@torch.no_grad()
def test_short_memories_converge_too(made):
    for name in ("tanh", "slow"):
        p = PROBLEMS[name]()
        assert p.gap(solve(p.F, p.z, p.tensors, solver=made).value) < 1e-11


@torch.no_grad()
def test_mixing_that_overflows_falls_back_on_the_plain_step():
    """The square of a difference exceeds float32, the squares of the gaps do not."""
    z = torch.tensor([[1e19, 1e19], [1.0, 2.0]])
    for made in (Anderson(), Anderson(damping=0.7), Broyden()):
        found = solve(lambda x: -0.9 * x, z, solver=made)
        torch.testing.assert_close(found.value, z / 1.9, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", TO_TOLERANCE)
def test_a_broken_sample_spoils_no_other(name):
    z = randn(3, 4)
    z[1] = math.nan
    found = solve(lambda x: 0.5 * x.sin(), z, solver=TO_TOLERANCE[name], on_failure="ignore")
    assert found.converged.tolist() == [True, False, True] and found.n_evaluations < 100
    torch.testing.assert_close(
        found.value[[0, 2]], solve(lambda x: 0.5 * x.sin(), z[[0, 2]], solver=TO_TOLERANCE[name]).value
    )


@pytest.mark.parametrize("name", SOLVERS)
@torch.no_grad()
def test_f_that_is_zero(name):
    z = torch.zeros(2, 3)
    for F in (torch.zeros_like, lambda x: 0.5 * x):
        made = FixedIterations(3) if name == "fixed" else TO_TOLERANCE[name]
        assert torch.equal(solve(F, z, solver=made).value, z)
    if name != "fixed":  # f(x) = 0, so that there is no relative residual
        found = solve(lambda x: -torch.ones_like(x), torch.ones(2, 3), solver=made)
        assert torch.equal(found.value, z) and found.residuals.isfinite().all()


@pytest.mark.parametrize("made", [Picard, Anderson, Broyden])
def test_a_sample_that_has_converged_stays_though_its_gap_grows_within_rounding(made):
    """Looked at again, its gap is 1.5 tolerances, which a product of other rows may make of 0.9."""
    tolerance, seen = 1e-3, []

    def f(x):
        gap = (0.9 if not seen else 1.5) * tolerance
        seen.append(x.clone())
        return torch.stack([x[0] + torch.tensor([gap, 0.0]), 0.5 * x[1] + 1])

    solution = made(rtol=1e-9, atol=tolerance)(f, torch.zeros(2, 2))
    assert len(seen) > 2 and all(torch.equal(x[0], seen[0][0]) for x in seen)
    assert solution.converged.tolist() == [True, True] and not solution.relapsed.any()


@pytest.mark.parametrize("made", TO_TOLERANCE.values(), ids=TO_TOLERANCE)
@torch.no_grad()
def test_what_grows_until_its_square_overflows_has_not_converged(made):
    """Then ||f(x)|| is infinite in float32, and any gap is small beside it."""
    found = made(lambda x: 1e25 * (x + 1), torch.ones(2, 3))
    assert not found.converged.any()


def test_plain_steps_of_no_contraction_are_refused_though_the_state_overflows():
    with pytest.raises(NotConvergedError, match=r"2 of 2 samples are not finite from step .*F is no contraction"):
        solve(lambda x: 2 * x, torch.ones(2, 3), solver=Picard())
