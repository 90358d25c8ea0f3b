"""What `solve` takes by name, and how it speaks."""

import pytest
import torch
from problems import PROBLEMS, randn

from imixer.implicit import Anderson, CheckpointedUnroll, FixedIterations, Implicit, NotConvergedError, Unroll, solve
from imixer.implicit.choices import GRADIENTS, SOLVERS, chosen
from imixer.implicit.solvers import Broyden, Picard


class Counted(torch.autograd.Function):
    """The identity, which counts the products with its Jacobian."""

    @staticmethod
    def forward(ctx, x, products):
        ctx.products = products
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.products.append(g)
        return g, None


def test_names_are_the_objects():
    assert chosen("fixed", "unroll") == (FixedIterations(), Unroll())
    assert chosen("picard", "recompute") == (Picard(), CheckpointedUnroll())
    assert chosen("damped", "jacobian_free") == (Picard(damping=0.5), Implicit(FixedIterations(0)))
    assert chosen("broyden", "neumann") == (Broyden(), Implicit(FixedIterations(4)))
    assert chosen("fixed", "implicit") == (FixedIterations(), Implicit())
    assert chosen("anderson", "implicit") == (Anderson(), Implicit(Anderson(atol=0.0)))
    assert chosen(Anderson(rtol=0.0, atol=1e-9), "implicit")[1] == Implicit(Anderson(rtol=1e-9, atol=0.0))
    assert chosen(Anderson(rtol=0.0, atol=1e-2), "implicit")[1] == Implicit(Anderson(rtol=1e-5, atol=0.0))
    assert chosen(Anderson(memory=3), Implicit()) == (Anderson(memory=3), Implicit())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gradient", [name for name in GRADIENTS if name != "recompute"])
def test_every_name_goes_with_every_other(solver, gradient):
    p = PROBLEMS["tanh"]()
    x = solve(p.F, p.z, p.tensors, solver=solver, gradient=gradient).value
    assert x.sum().backward() is None and p.z.grad.isfinite().all() and p.gap(x) < 0.2


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "fixed"])
def test_the_gradient_of_a_small_loss_by_name_is_that_of_the_loss_in_small(solver):
    z, W = randn(4, 3), 0.15 * randn(3, 3, seed=1)

    def loss(z, W):
        return solve(lambda x, W: (x @ W).tanh(), z, W, solver=solver, gradient="implicit").value.sin().sum()

    leaves = z.requires_grad_(), W.requires_grad_()
    whole = torch.autograd.grad(loss(*leaves), leaves)
    small = torch.autograd.grad(1e-8 * loss(*leaves), leaves)
    mapped = torch.func.grad(lambda z, W: 1e-8 * loss(z, W), argnums=(0, 1))(z.detach(), W.detach())
    tangent = torch.func.jvp(loss, (z.detach(), W.detach()), (1e-8 * z.detach(), 1e-8 * W.detach()))[1]
    for a, b, c in zip(whole, small, mapped, strict=True):
        torch.testing.assert_close(1e8 * b, a, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(1e8 * c, a, rtol=1e-9, atol=1e-9)
    along = torch.func.jvp(loss, (z.detach(), W.detach()), (z.detach(), W.detach()))[1]
    torch.testing.assert_close(1e8 * tangent, along, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "fixed"])
def test_a_gradient_of_zero_takes_one_product(solver):
    products = []
    z = randn(4, 3).requires_grad_()
    x = solve(lambda x: Counted.apply(0.5 * x.sin(), products), z, solver=solver, gradient="implicit").value
    x.backward(torch.zeros_like(x))
    assert len(products) == 1 and not z.grad.any()


def test_an_expansive_map_by_name_has_its_gradient():
    """The adjoint equation takes the solver's kind: plain steps would diverge."""
    p = PROBLEMS["overshooting"]()
    solve(p.F, p.z, p.tensors, solver="broyden", gradient="implicit").value.sum().backward()
    A = p.tensors[0]
    expected = torch.linalg.solve((torch.eye(3) - A).T, torch.ones(3, 3).double()).T
    torch.testing.assert_close(p.z.grad, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(solver="andersen"), "solver is 'andersen'; choose fixed, picard, .*; did you mean anderson"),
        (dict(gradient="implict"), "gradient is 'implict'; choose unroll, .*; did you mean implicit"),
        (dict(solver=Anderson), r"solver is the class Anderson; make an object of it, Anderson\(\)"),
        (dict(gradient=Implicit), r"gradient is the class Implicit; make an object of it, Implicit\(\)"),
        (dict(solver=Implicit()), "solver is Implicit, a gradient; give it as gradient="),
        (dict(gradient=Anderson()), "gradient is Anderson, a solver; give it as solver="),
        (dict(solver=3), "solver is 3; give an object of imixer.implicit, or one of fixed"),
        (dict(gradient=None), "gradient is None; give an object of imixer.implicit, or one of unroll"),
    ],
)
def test_what_there_is_not_is_said_with_the_remedy(options, said):
    with pytest.raises(ValueError, match=said):
        solve(torch.sin, randn(2, 3), **options)


def test_a_bare_tensor_is_a_tuple_of_one():
    W, z = 0.3 * randn(3, 3), randn(2, 3)
    assert torch.equal(solve(lambda x, W: x @ W, z, W).value, solve(lambda x, W: x @ W, z, (W,)).value)


def test_a_solution_fits_a_line():
    z = randn(4, 3)
    assert repr(solve(lambda x: 0.5 * x, z)) == "Solution(2 evaluations, value (4, 3))"
    shown = repr(solve(lambda x: (0.5 * x[0], 0.5 * x[1]), (z, z), solver=Picard(rtol=1e-2)))
    assert shown == "Solution(4 of 4 samples converged, 6 evaluations, residual 0.00787, value (Tensor, Tensor))"
    shown = repr(solve(lambda x: 3 * x, z, solver=Picard(max_steps=2), on_failure="ignore"))
    assert shown.startswith("Solution(0 of 4 samples converged, 2 evaluations, residual")


def test_messages_speak_of_f_and_its_solver():
    with pytest.raises(
        NotConvergedError, match=r"F may be no contraction: make it less steep, or choose .* Broyden"
    ) as e:
        solve(lambda x: 2 * x.abs() + 1, randn(2, 3).abs(), solver="picard")
    assert "coeff" not in str(e.value)
