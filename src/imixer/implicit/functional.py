"""The implicit gradient inside transforms of `torch.func`, in both modes and of any order.

Hooks and walks through the graph, which autograd's own way takes, are not to be had there. Here every product with a
Jacobian is a transform of F, and the equations of the derivatives are solved as the first one is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imixer.implicit.func_transforms import every
from imixer.implicit.problem import ContractionMap, Problem
from imixer.implicit.random_state import RandomState, Watched, drawing_as, drawing_from, random_state
from imixer.implicit.solution import Solution, choose, finite_samples, spoilt
from imixer.implicit.solvers import FixedIterations, Solver


def solve_functionally(problem: Problem, adjoint: Solver, z: Tensor, tensors: Sequence[Tensor]) -> Solution[Tensor]:
    """Solve without a graph, and differentiate the equation wherever a transform asks for it.

    Raises:
        ValueError: If F depends on a tensor that needs a gradient and is not among `tensors`.
    """
    with drawing_from(random_state(z), z):
        fx = problem.F(z.detach(), *(t.detach() for t in tensors))
    if fx.requires_grad:
        raise ValueError(
            f"{problem.name}: F depends on a tensor that needs a gradient and is not among its arguments; let F take "
            "it, and pass it: solve(F, z, tensors)"
        )
    return _solve(problem, adjoint, z, tensors)


def _solve(problem: Problem, adjoint: Solver, z: Tensor, tensors: Sequence[Tensor]) -> Solution[Tensor]:
    tally = _Tally()
    value, *measured = _Solve.apply(problem, adjoint, tally, problem.start, z, *tensors)
    measured = [x.detach() if known else None for x, known in zip(measured, tally.measured, strict=True)]
    residuals, converged, relapsed = measured
    verdicts = (None if x is None else x > 0 for x in (converged, relapsed))
    return Solution(value, residuals, tally.n_evaluations, *verdicts)


@dataclass
class _Tally:
    """What an autograd function found that is no tensor.

    Attributes:
        n_evaluations: Evaluations of F.
        measured: Whether residuals, convergence and relapse are known.
        last: State of the random generators before the last evaluation of F, if it draws.
    """

    n_evaluations: int = 0
    measured: tuple[bool, bool, bool] = (False, False, False)
    last: RandomState | None = None


class _Solve(torch.autograd.Function):
    """x of z and the tensors; besides, what the solver measured."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        problem: Problem, adjoint: Solver, tally: _Tally, start: Tensor | None, z: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        watched = Watched(problem.F)
        solution = replace(problem, F=watched, start=start).solve(z, tensors)
        tally.last = watched.last if watched.last is not None and watched.last.differs(random_state(z)) else None
        measured = solution.residuals, solution.converged, solution.relapsed
        tally.n_evaluations = solution.n_evaluations
        tally.measured = (measured[0] is not None, measured[1] is not None, measured[2] is not None)
        # Verdicts as numbers, since forward mode gives every output a tangent.
        return solution.value.clone(), *(z.new_zeros(0) if x is None else x.to(z.dtype) for x in measured)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        problem, adjoint, tally, _, _, *tensors = inputs
        value, *measured = output
        ctx.problem, ctx.adjoint = replace(problem, F=drawing_as(tally.last, problem.F), start=None), adjoint
        ctx.save_for_backward(value, *measured, *tensors)
        ctx.save_for_forward(value, *measured, *tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> Any:
        x, _, _, _, *tensors = ctx.saved_tensors
        broken = ~finite_samples(x.detach())
        x, g = choose(broken, torch.zeros_like(x), x), spoilt(g, broken)
        F = ctx.problem.F

        def transposed(y: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
            product: Tensor = torch.func.vjp(lambda x: F(x, *tensors), x)[1](y)[0]
            return product

        y = _derivative(ctx.problem, transposed, "gradient", ctx.adjoint, g, (x, *tensors))
        chosen, F_of = _smooth(F, x, tensors)
        products = iter(torch.func.vjp(F_of, *chosen)[1](y) if chosen else ())
        of_tensors = [next(products) if _is_smooth(t) else None for t in tensors]
        if isinstance(ctx.adjoint, FixedIterations):
            y, of_tensors = _final(ctx, y), [None if t is None else _final(ctx, t) for t in of_tensors]
        return None, None, None, None, y, *of_tensors

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x, *measured = ctx.saved_tensors
        measured, tensors = measured[:3], measured[3:]
        _, _, _, _, dz, *moved = tangents
        F = ctx.problem.F
        right = torch.zeros_like(x) if dz is None else dz
        chosen, F_of = _smooth(F, x, tensors)
        ways = [torch.zeros_like(t) if d is None else d for t, d in zip(tensors, moved, strict=True) if _is_smooth(t)]
        if chosen:
            right = right + torch.func.jvp(F_of, chosen, tuple(ways))[1]

        def straight(u: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
            product: Tensor = torch.func.jvp(lambda x: F(x, *tensors), (x,), (u,))[1]
            return product

        dx = _derivative(ctx.problem, straight, "derivative", ctx.adjoint, right, (x, *tensors))
        dx = _final(ctx, dx) if isinstance(ctx.adjoint, FixedIterations) else dx
        return dx, *(torch.zeros_like(m) for m in measured)


def _derivative(
    problem: Problem, product: ContractionMap, what: str, solver: Solver, g: Tensor, inputs: tuple[Tensor, ...]
) -> Tensor:
    """Solve y = g + product(y, *inputs), in which product is linear in y."""
    equation = Problem(product, solver, problem.policy, f"{problem.name}, {what}")
    if isinstance(solver, FixedIterations):
        return equation.solve(g, inputs).value
    solution = _solve(equation, solver, g, inputs)
    if problem.policy != "ignore":
        failed = solution.failed() & finite_samples(g.detach())
        if not every(~failed):
            solution.report(failed, problem.policy, equation.name)
    return solution.value


def _smooth(
    F: ContractionMap, x: Tensor, tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Callable[..., Tensor]]:
    """Pick the tensors that can have a gradient, and F at x as a function of these."""

    def F_of(*chosen: Tensor) -> Tensor:
        left = iter(chosen)
        return F(x, *(next(left) if _is_smooth(t) else t for t in tensors))

    return tuple(t for t in tensors if _is_smooth(t)), F_of


def _is_smooth(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _final(ctx: Any, x: Tensor) -> Tensor:
    """Return x, which has no derivative to offer."""
    last: Tensor = _Last.apply(x, ctx.problem.name)
    return last


class _Last(torch.autograd.Function):
    """The identity, that refuses to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, name: str) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        raise RuntimeError(refusal(ctx.name))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(refusal(ctx.name))


def refusal(name: str) -> str:
    """Say that a gradient by fixed iterations of the adjoint is the last."""
    return (
        f"{name}: an adjoint of fixed iterations approximates the gradient, and the approximation has no second "
        "derivative to offer; choose Unroll, CheckpointedUnroll, or Implicit with an adjoint to a tolerance"
    )
