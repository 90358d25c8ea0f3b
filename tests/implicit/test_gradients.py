"""Every gradient agrees with finite differences to what its theory says, whichever solver it goes with."""

from functools import lru_cache

import pytest
import torch
from problems import CONTRACTIVE, EVERY_SOLVED, PROBLEMS, SOLVERS, TIGHT, Problem, leaf, randn, solver
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from imixer.implicit.gradients import CheckpointedUnroll, Implicit, Unroll
from imixer.implicit.solution import NotConvergedError
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard

NOT_FIXED = [name for name in SOLVERS if name != "fixed"]
EXACT = Implicit(Broyden(**TIGHT))


def value(p: Problem, solver, gradient, **options):
    return lambda z, *tensors: solve(p.F, z, tensors, solver=solver, gradient=gradient, **options).value


def gradients(p: Problem, solver, gradient, **options):
    """Of a loss without symmetries."""
    x = value(p, solver, gradient, **options)(*p.inputs)
    weights = randn(*x.shape, seed=7).to(x.dtype)
    return torch.autograd.grad((x * weights).sin().sum(), p.inputs)


def relative_error(found, expected) -> float:
    found, expected = (torch.cat([g.flatten() for g in gs]) for gs in (found, expected))
    return float((found - expected).norm() / expected.norm())


SHAPES = ["tanh", "gelu", "scalar", "image"]  # which differ in what F is made of, not in how fast it contracts

# The exact ones


@pytest.mark.parametrize(("name", "problem"), EVERY_SOLVED)
def test_finite_differences_of_the_solution_through_the_steps(name, problem):
    p = PROBLEMS[problem]()
    assert gradcheck(value(p, solver(name, p), Unroll()), p.inputs, fast_mode=True)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_finite_differences_of_the_solution_through_the_equation(problem):
    """Which does not depend on the solver that found it."""
    p = PROBLEMS[problem]()
    assert gradcheck(value(p, solver("anderson", p), EXACT), p.inputs, fast_mode=True)


@pytest.mark.parametrize("problem", SHAPES)
@pytest.mark.parametrize("n_iter", [0, 1, 5])
@pytest.mark.parametrize("gradient", [Unroll(), CheckpointedUnroll(2)], ids=["steps", "recompute"])
def test_finite_differences_of_a_few_steps(problem, n_iter, gradient):
    p = PROBLEMS[problem]()
    assert gradcheck(value(p, FixedIterations(n_iter), gradient), p.inputs, fast_mode=True)


@pytest.mark.parametrize("name", NOT_FIXED)
@pytest.mark.parametrize("problem", ["tanh", "gelu", "image"])
def test_finite_differences_through_steps_that_stop_early(name, problem):
    """The derivative is of what was computed, not of the solution, wherever that stops."""
    p = PROBLEMS[problem]()
    coarse = type(solver(name, p))(**dict(rtol=1e-2, atol=0.0), **({"damping": 0.6} if name == "damped" else {}))
    assert gradcheck(value(p, coarse, Unroll()), p.inputs)


@pytest.mark.parametrize("adjoint", NOT_FIXED)
@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_every_adjoint_solver_gives_the_same(adjoint, problem):
    p = PROBLEMS[problem]()
    expected = gradients(p, solver("broyden", p), EXACT)
    found = gradients(p, solver("anderson", p), Implicit(solver(adjoint, p)))
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_steps_to_the_solution_and_the_equation_have_one_gradient(problem):
    p = PROBLEMS[problem]()
    assert relative_error(gradients(p, solver("fixed", p), Unroll()), gradients(p, solver("picard", p), EXACT)) < 1e-9


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_implicit_gradient_is_as_good_as_the_solution(problem):
    """Its error falls with that of the solution, Lip^n."""
    p = PROBLEMS[problem]()
    expected = gradients(p, solver("broyden", p), EXACT)
    errors = [relative_error(gradients(p, FixedIterations(n), EXACT), expected) for n in (1, 5, 10, 20)]
    for n, error in zip((5, 10, 20), errors[1:], strict=True):
        assert error < 1e-10 + 5 * p.rate**n


# CheckpointedUnroll


@pytest.mark.parametrize("problem", SHAPES)
@pytest.mark.parametrize(("n_iter", "checkpoints"), [(1, 0), (2, 1), (3, 10), (7, 0), (7, 3), (30, 1), (30, 10)])
def test_recompute_is_the_gradient_through_the_steps_to_the_bit(problem, n_iter, checkpoints):
    p = PROBLEMS[problem]()
    expected = gradients(p, FixedIterations(n_iter), Unroll())
    for a, b in zip(gradients(p, FixedIterations(n_iter), CheckpointedUnroll(checkpoints)), expected, strict=True):
        assert torch.equal(a, b)


@lru_cache(None)
def fewest_replays(steps: int, checkpoints: int) -> int:
    """By trying every split."""
    if steps <= 1:
        return 0
    if checkpoints == 0:
        return steps * (steps - 1) // 2
    return min(k + fewest_replays(steps - k, checkpoints - 1) + fewest_replays(k, checkpoints) for k in range(1, steps))


@pytest.mark.parametrize("n_iter", [1, 2, 3, 5, 8, 17, 33, 64])
@pytest.mark.parametrize("checkpoints", [0, 1, 2, 3, 5])
def test_recompute_replays_as_little_as_can_be_with_the_iterates_it_keeps(n_iter, checkpoints):
    z = torch.zeros(1, requires_grad=True)
    calls = 0

    def F(x):
        nonlocal calls
        calls += 1
        return 0.5 * x.sin() + 1

    solve(F, z, solver=FixedIterations(n_iter), gradient=CheckpointedUnroll(checkpoints)).value.sum().backward()
    assert calls == 2 * n_iter + fewest_replays(n_iter, checkpoints)


@pytest.mark.parametrize("gradient", [CheckpointedUnroll(), Implicit()], ids=["recompute", "implicit"])
def test_what_is_saved_does_not_grow_with_the_number_of_steps(gradient):
    p = PROBLEMS["gelu"]()

    def saved(n_iter: int) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            value(p, FixedIterations(n_iter), gradient)(*p.inputs)
        return sum(sizes)

    assert saved(2) == saved(64) == sum(t.numel() for t in p.inputs)


def test_a_checkpointed_unroll_wants_fixed_iterations():
    p = PROBLEMS["tanh"]()
    with pytest.raises(ValueError, match=r"blocks\.3: CheckpointedUnroll .* Picard"):
        value(p, Picard(), CheckpointedUnroll(), name="blocks.3")(*p.inputs)
    with pytest.raises(ValueError, match="checkpoints is -1"):
        CheckpointedUnroll(-1)


# The approximate ones


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_neumann_error_decays_like_the_powers_of_the_lipschitz_constant(problem):
    p = PROBLEMS[problem]()
    expected = gradients(p, solver("broyden", p), EXACT)
    errors = [
        relative_error(gradients(p, solver("broyden", p), Implicit(FixedIterations(k - 1))), expected)
        for k in (1, 2, 4, 8, 16, 32)
    ]
    for k, error in zip((1, 2, 4, 8, 16, 32), errors, strict=True):
        assert error <= 4 * p.rate**k / (1 - p.rate) + 1e-11
    assert errors[-1] < 1e-3 * errors[0] or problem == "slow"


@pytest.mark.parametrize("problem", ["linear", "tanh"])
def test_neumann_terms_written_out(problem):
    p = PROBLEMS[problem]()
    x = solve(p.F, p.z, p.tensors, solver=solver("broyden", p)).value.detach()
    J = torch.stack([torch.func.jacrev(lambda x: p.F(x, *p.tensors))(each) for each in x])
    g = randn(*x.shape)
    for k in (1, 2, 5):
        y = sum((torch.linalg.matrix_power(J, i).mT @ g[..., None])[..., 0] for i in range(k))
        ours = value(p, solver("broyden", p), Implicit(FixedIterations(k - 1)))(*p.inputs)
        torch.testing.assert_close(torch.autograd.grad(ours, p.z, g)[0], y)


@pytest.mark.parametrize("problem", CONTRACTIVE)
def test_the_jacobian_free_gradient_descends(problem):
    p = PROBLEMS[problem]()
    free = gradients(p, solver("broyden", p), Implicit(FixedIterations(0)))
    exact = gradients(p, solver("broyden", p), EXACT)
    assert sum((a * b).sum() for a, b in zip(free, exact, strict=True)) > 0


# Second derivatives


@pytest.mark.parametrize("problem", ["linear", "tanh", "gelu", "scalar", "overshooting"])
@pytest.mark.parametrize(
    ("made", "gradient"),
    [
        (FixedIterations(3), Unroll()),
        (FixedIterations(3), CheckpointedUnroll()),
        (Broyden(**TIGHT), EXACT),
        (Anderson(**TIGHT), Implicit(Anderson(**TIGHT))),
    ],
    ids=["steps", "recompute", "implicit by broyden", "implicit by anderson"],
)
def test_second_derivatives(problem, made, gradient):
    p = PROBLEMS[problem]()
    assert gradgradcheck(value(p, made, gradient), p.inputs, fast_mode=True)


def test_second_derivatives_need_no_gradient_everywhere():
    p = PROBLEMS["tanh"]()
    p.tensors[1].requires_grad_(False)
    for made, gradient in [(FixedIterations(3), CheckpointedUnroll()), (Broyden(**TIGHT), EXACT)]:
        assert gradgradcheck(value(p, made, gradient), p.inputs, fast_mode=True)


@pytest.mark.parametrize("terms", [1, 4])
def test_an_approximation_has_no_second_derivative(terms):
    p = PROBLEMS["tanh"]()
    x = value(p, Picard(), Implicit(FixedIterations(terms - 1)), name="blocks.3")(*p.inputs)
    with pytest.raises(RuntimeError, match=r"blocks\.3: .* no second derivative"):
        torch.autograd.grad(x.sum(), p.inputs, create_graph=True)


def test_a_solve_inside_another():
    """F^2 = H . (1 - F^3)^-1 . G, both inverses implicit: first and second derivatives."""
    W, V = leaf(0.3 * randn(3, 3)), leaf(0.3 * randn(3, 3, seed=1))
    tight = Broyden(**TIGHT)

    def F(x, W, V):
        inner = solve(lambda h, V: h.tanh() @ V.T, x.tanh() @ W.T, (V,), solver=tight, gradient=Implicit(tight))
        return inner.value.sin() @ W

    def outer(z, W, V):
        return solve(F, z, (W, V), solver=tight, gradient=Implicit(tight)).value

    z = leaf(randn(2, 3, seed=2))
    assert gradcheck(outer, (z, W, V)) and gradgradcheck(outer, (z, W, V), fast_mode=True)


# What needs a gradient, and what does not

ALL = {
    "steps": (FixedIterations(8), Unroll()),
    "steps of anderson": (Anderson(), Unroll()),
    "implicit": (Anderson(), Implicit()),
    "jacobian-free": (Picard(), Implicit(FixedIterations(0))),
    "neumann": (Picard(), Implicit(FixedIterations(3))),
    "recompute": (FixedIterations(8), CheckpointedUnroll()),
}
OWN = ["implicit", "jacobian-free", "neumann", "recompute"]  # with a backward pass of their own


@pytest.mark.parametrize("gradient", ALL)
def test_each_subset_of_the_inputs_may_need_a_gradient(gradient):
    full = PROBLEMS["tanh"]()
    expected = gradients(full, *ALL[gradient])
    for frozen in range(len(full.inputs)):
        p = PROBLEMS["tanh"]()
        p.inputs[frozen].requires_grad_(False)
        wanted = [i for i in range(len(full.inputs)) if i != frozen]
        x = value(p, *ALL[gradient])(*p.inputs)
        found = torch.autograd.grad((x * randn(*x.shape, seed=7)).sin().sum(), [p.inputs[i] for i in wanted])
        for i, g in zip(wanted, found, strict=True):
            torch.testing.assert_close(g, expected[i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", ALL)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_where_no_gradient_is_wanted(gradient, mode):
    p = PROBLEMS["tanh"]()
    checkpoints = []
    with mode(), torch.autograd.graph.saved_tensors_hooks(lambda t: checkpoints.append(t) or t, lambda t: t):
        x = value(p, *ALL[gradient])(*p.inputs)
    assert not checkpoints and not x.requires_grad
    torch.testing.assert_close(x, value(p, *ALL[gradient])(*p.inputs).detach(), rtol=0, atol=0)
    for t in p.inputs:
        t.requires_grad_(False)
    assert not value(p, *ALL[gradient])(*p.inputs).requires_grad


@pytest.mark.parametrize("gradient", OWN)
@pytest.mark.parametrize("hidden", ["a leaf", "the result of something"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_hidden_tensor_that_needs_a_gradient_is_refused(gradient, hidden, create_graph):
    z, W = leaf(randn(2, 3)), leaf(0.2 * randn(3, 3))
    A = W if hidden == "a leaf" else 2 * W
    solver, made = ALL[gradient]
    x = solve(lambda x: x.sin() @ A, z, solver=solver, gradient=made).value
    match = r"shape \(3, 3\)"
    if create_graph and gradient in ("jacobian-free", "neumann"):
        pytest.skip("has no graph to create")
    with pytest.raises(ValueError, match=match):
        torch.autograd.grad(x.sum(), z, create_graph=create_graph)
    with pytest.raises(ValueError, match=match):  # there will be no backward pass
        solve(lambda x: x.sin() @ A, z.detach(), solver=solver, gradient=made)
    with torch.no_grad():
        solve(lambda x: x.sin() @ A, z, solver=solver, gradient=made)
    A = A.detach()
    solve(lambda x: x.sin() @ A, z, solver=solver, gradient=made).value.sum().backward()


@pytest.mark.parametrize("gradient", ALL)
def test_no_samples(gradient):
    p = PROBLEMS["gelu"]()
    z = leaf(p.z[:0])
    x = solve(p.F, z, p.tensors, solver=ALL[gradient][0], gradient=ALL[gradient][1]).value
    assert x.shape == z.shape
    for g, t in zip(torch.autograd.grad(x.sum(), (z, *p.tensors)), (z, *p.tensors), strict=True):
        assert g.shape == t.shape and not g.any()


@pytest.mark.parametrize("gradient", ALL)
def test_tensors_that_f_ignores(gradient):
    z, unused = leaf(randn(2, 3)), leaf(randn(2))
    solver, made = ALL[gradient]
    x = solve(lambda x, unused: torch.ones_like(x), z, (unused,), solver=solver, gradient=made).value
    gz, gu = torch.autograd.grad(x.sum(), (z, unused), allow_unused=True)
    assert torch.equal(gz, torch.ones_like(z)) and gu is None


# Autocast and half types


@pytest.mark.parametrize("gradient", ALL)
def test_autocast_forward_and_backward(gradient):
    torch.manual_seed(0)
    seen = []

    def F(x, W1, W2):
        h = nn.functional.linear(x.tanh(), W1)
        seen.append(h.dtype)
        return nn.functional.linear(h.tanh(), W2)

    W1, W2, z = (leaf(torch.randn(*s) / 8) for s in [(16, 8), (8, 16), (4, 8)])

    def run(enabled):
        for t in (z, W1, W2):
            t.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            solver, made = ALL[gradient]
            x = solve(F, z, (W1, W2), solver=solver, gradient=made).value
            extra = nn.functional.linear(z.detach(), W1).sum()  # W1's cast has a graph, whatever came before
        (x.float().sin().sum() + extra.float()).backward()
        return [x, z.grad, W1.grad, W2.grad]

    exact = run(False)
    seen.clear()
    found = run(True)
    assert set(seen) == {torch.bfloat16}
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("gradient", ALL)
def test_bfloat16(gradient):
    W, z = leaf((0.2 * randn(4, 4)).bfloat16()), leaf(randn(3, 4).bfloat16())
    solver, made = ALL[gradient]
    solve(lambda x, W: x.tanh() @ W, z, (W,), solver=solver, gradient=made).value.sum().backward()
    ours = z.grad, W.grad
    V, y = leaf(W.double()), leaf(z.double())
    solve(lambda x, W: x.tanh() @ W, y, (V,), solver=solver, gradient=made).value.sum().backward()
    for a, b in zip(ours, (y.grad, V.grad), strict=True):
        assert a.dtype == torch.bfloat16 and (a - b).norm() < 0.05 * b.norm()


# An adjoint that fails


def test_an_adjoint_that_does_not_converge_is_reported():
    p = PROBLEMS["overshooting"]()
    for adjoint, found in [
        (Picard(max_steps=50), "did not converge in 50 steps"),
        (Picard(max_steps=5000), "not finite"),
    ]:
        for policy in ("raise", "warn", "ignore"):
            x = value(p, Broyden(**TIGHT), Implicit(adjoint), name="blocks.3", on_failure=policy)(*p.inputs)
            for create_graph in (False, True):
                if policy == "raise":
                    with pytest.raises(NotConvergedError, match=rf"blocks\.3, gradient: 3 of 3 samples .*{found}"):
                        torch.autograd.grad(x.sum(), p.inputs, retain_graph=True, create_graph=create_graph)
                elif policy == "warn":
                    with pytest.warns(UserWarning, match=r"blocks\.3, gradient: 3 of 3"):
                        torch.autograd.grad(x.sum(), p.inputs, retain_graph=True, create_graph=create_graph)
                else:
                    torch.autograd.grad(x.sum(), p.inputs, retain_graph=True, create_graph=create_graph)


@pytest.mark.parametrize("adjoint", [Picard(), FixedIterations(3)], ids=["picard", "neumann"])
def test_an_adjoint_that_breaks_is_reported_and_a_broken_loss_is_not_its_fault(adjoint):
    class BreaksBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * float("nan")

    z = leaf(randn(2, 3))
    x = solve(lambda x: 0.1 * BreaksBackward.apply(x), z, solver=Picard(), gradient=Implicit(adjoint)).value
    with pytest.raises(NotConvergedError, match="gradient: 2 of 2 samples are not finite"):
        x.sum().backward()
    z = leaf(randn(2, 3))
    x = solve(lambda x: 0.1 * x.sin(), z, solver=Picard(), gradient=Implicit(adjoint)).value
    (x * torch.tensor([[float("inf")], [1.0]])).sum().backward()
    assert z.grad[1].isfinite().all() and not z.grad[0].isfinite().all()
