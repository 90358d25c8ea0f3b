"""Gradients of x = z + F(x, *tensors) with respect to z and the tensors, whichever solver found x.

J: dF/dx at x. But for `Unroll`, F is applied again in the backward pass, under the autocast of the forward, and
must give the same; and `torch.compile` breaks its graph there. What F draws from torch's global generators is drawn
again: by `CheckpointedUnroll` at every step as it was there, by `Implicit` as in the last evaluation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imixer.errors import check_whole
from imixer.implicit.func_transforms import every, has_tangent, transformed
from imixer.implicit.functional import refusal, solve_functionally
from imixer.implicit.problem import Problem
from imixer.implicit.random_state import RandomState, Watched, drawing_as, drawing_from, random_state
from imixer.implicit.solution import Solution, choose, finite_samples, spoilt
from imixer.implicit.solvers import FixedIterations, Picard, Solver, ToTolerance

DEFAULT_ADJOINT = Picard(rtol=1e-5, atol=0.0)


def adjoint_like(solver: ToTolerance) -> ToTolerance:
    """Return a solver of the adjoint equation that is like the forward's, but with a relative tolerance alone.

    The adjoint is proportional to the incoming gradient, which may be of any size: by an absolute tolerance a small one
    would have converged at the first step. It takes the place of a relative tolerance of 0.
    """
    rtol = solver.rtol or min(solver.atol, DEFAULT_ADJOINT.rtol)
    return replace(solver, rtol=rtol, atol=0.0)


@dataclass(frozen=True)
class Unroll:
    """Differentiate the solver's own steps: exact for what was computed, with memory for every step.

    Choose it for few steps.
    """

    def __call__(self, problem: Problem, z: Tensor, tensors: tuple[Tensor, ...]) -> Solution[Tensor]:
        """Solve with a graph through every step."""
        return problem.solve(z, tensors)


@dataclass(frozen=True)
class Implicit:
    """Differentiate the equation: dx = (1 - J)^-1 (dz + dF). Exact at a fixed point, with memory for one step.

    Choose it with a solver that goes to a tolerance. Backward solves y = g + J^T y for the incoming gradient g, by a
    solver of its own. `FixedIterations(k - 1)` keeps k terms of the Neumann series of the inverse; k = 1 is the
    Jacobian-free gradient, which leaves the inverse out.
    These are no derivatives of anything, and have none; with an adjoint to a tolerance, second derivatives are exact.

    Args:
        adjoint: Solver of y = g + J^T y. Of a solver to a tolerance `atol` is to be 0, since y is of the size of g.

    Source: Bai et al., arXiv 1909.01377, theorem 1; Fung et al., arXiv 2103.12803; Geng et al., arXiv 2111.05177.
    """

    adjoint: Solver = DEFAULT_ADJOINT

    def __call__(self, problem: Problem, z: Tensor, tensors: tuple[Tensor, ...]) -> Solution[Tensor]:
        """Solve without a graph, and differentiate the equation in the backward pass."""
        inside = transformed()  # where torch.no_grad stops no derivative in forward mode
        if not inside and not torch.is_grad_enabled():
            return _without_derivatives(problem, z, tensors)
        start = None if problem.start is None else problem.start.detach()  # the solution is the same from anywhere
        problem = replace(problem, start=start)
        if inside:
            return solve_functionally(problem, self.adjoint, z, tensors)
        return _apply(_ImplicitFunction, problem, self.adjoint, z, tensors)


@dataclass(frozen=True)
class CheckpointedUnroll:
    """The gradient of `Unroll`, with memory that does not grow with the number of steps.

    Choose it for many fixed iterations; it takes no other solver. Inside transforms of `torch.func` it is `Unroll`.
    Backward finds the iterates again, from a few kept
    ones, by the schedule that needs the fewest evaluations: about n log n / log s for s of them.

    Args:
        checkpoints: Iterates s kept at a time, 0 or more.

    Raises:
        ValueError: If checkpoints is negative; when applied, if the solver is another.

    Source: Griewank & Walther, ACM Trans. Math. Softw. 26 (2000).
    """

    checkpoints: int = 3

    def __post_init__(self) -> None:
        check_whole(checkpoints=self.checkpoints)
        if self.checkpoints < 0:
            raise ValueError(f"checkpoints is {self.checkpoints}; give 0 or more iterates to keep")

    def __call__(self, problem: Problem, z: Tensor, tensors: tuple[Tensor, ...]) -> Solution[Tensor]:
        """Solve without a graph, and go through the steps again in the backward pass."""
        if not isinstance(problem.solver, FixedIterations):
            raise ValueError(
                f"{problem.name}: CheckpointedUnroll replays fixed iterations, and the solver is "
                f"{type(problem.solver).__name__}; choose the solver FixedIterations, or the gradient Implicit"
            )
        if transformed():
            return problem.solve(z, tensors)
        if not torch.is_grad_enabled():
            return _without_derivatives(problem, z, tensors)
        return _apply(_CheckpointedUnrollFunction, problem, self.checkpoints, z, tensors)


Gradient = Unroll | Implicit | CheckpointedUnroll

_DUAL_NUMBERS = (
    "dual numbers do not go through Implicit or CheckpointedUnroll; take torch.func.jvp, or the gradient Unroll"
)


def _without_derivatives(problem: Problem, z: Tensor, tensors: tuple[Tensor, ...]) -> Solution[Tensor]:
    """Solve where no graph is recorded. The steps' derivative, which dual numbers would take along, is another."""
    solution = problem.solve(z, tensors)
    if has_tangent(solution.value):
        raise RuntimeError(_DUAL_NUMBERS)
    return solution


def _apply_eagerly(
    function: Any, problem: Problem, option: Any, z: Tensor, tensors: tuple[Tensor, ...]
) -> Solution[Tensor]:
    start = problem.start
    if not any(t.requires_grad for t in (z, *tensors)) and (start is None or not start.requires_grad):
        # There will be no backward pass to find hidden tensors in.
        with drawing_from(random_state(z), z):
            _refuse_hidden_tensors(problem.F(z, *tensors), ())
    value = function.apply(problem, option, start, z, *tensors)
    return replace(problem.solutions.pop(), value=value)


# Compiled, it would keep what it is to compute again.
_apply: Callable[..., Solution[Tensor]] = torch.compiler.disable(_apply_eagerly)


def _forward(ctx: Any, problem: Problem, option: Any, z: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    watched = Watched(problem.F)
    # Detached, lest autocast remember casts of the tensors that were made without a graph.
    solution = replace(problem, F=watched).solve(z, [t.detach() for t in tensors])
    problem.solutions.append(solution)
    after = random_state(z)
    ctx.first, ctx.last = (s if s is not None and s.differs(after) else None for s in (watched.first, watched.last))
    ctx.problem, ctx.option, ctx.autocast = problem, option, _autocast_state(z)
    # A solver that takes no step gives its start back, which autograd does not allow.
    return solution.value.clone() if solution.value is z or solution.value is problem.start else solution.value


class _BackwardOnly(torch.autograd.Function):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(_DUAL_NUMBERS)


class _ImplicitFunction(_BackwardOnly):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, adjoint: Solver, start: Tensor | None, z: Tensor, *tensors: Tensor
    ) -> Tensor:
        x = _forward(ctx, problem, adjoint, z, tensors)
        ctx.save_for_backward(x, *tensors)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()  # somebody will differentiate again
        p = replace(ctx.problem, F=drawing_as(ctx.last, ctx.problem.F))
        if create_graph and isinstance(ctx.option, FixedIterations):
            raise RuntimeError(refusal(p.name))
        with torch.autocast(**ctx.autocast), torch.enable_grad():
            needed = x.requires_grad
            x, g = _without_broken(x, g, ~finite_samples(x.detach()))
            x, *inputs = _cut([x, *tensors], create_graph)
            x = x.requires_grad_(needed)
            fx = p.F(x, *inputs)
            _refuse_hidden_tensors(fx, [x, *inputs])
            adjoint = Problem(p.F, ctx.option, p.policy, f"{p.name}, gradient")
            with torch.set_grad_enabled(create_graph):
                y = _differentiable_adjoint(adjoint, g, x, inputs) if create_graph else _adjoint(adjoint, g, x, fx)
            return None, None, None, y, *_gradients(fx, inputs, y, create_graph, retain_graph=create_graph)


def _adjoint(problem: Problem, g: Tensor, x: Tensor, fx: Tensor) -> Tensor:
    """Solve y = g + J^T y, which is (1 - J^T)^-1 g."""

    def transposed(y: Tensor) -> Tensor:
        product = _gradients(fx, [x], y)[0]
        return torch.zeros_like(x) if product is None else product

    solution = Problem(transposed, problem.solver, problem.policy, problem.name).solve(g, ())
    _check_adjoint(problem, solution, g)
    return solution.value


def _differentiable_adjoint(problem: Problem, g: Tensor, x: Tensor, tensors: list[Tensor]) -> Tensor:
    """Solve it as a function of g, x and the tensors: y is a fixed point too, with an implicit gradient of its own."""

    def transposed(y: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = _cut([x], create_graph)[0].requires_grad_()
            product = _gradients(problem.F(x, *tensors), [x], y, create_graph)[0]
            return torch.zeros_like(x) if product is None else product

    again = Problem(transposed, problem.solver, problem.policy, problem.name)
    solution = _apply(_ImplicitFunction, again, problem.solver, g, (x, *tensors))
    _check_adjoint(problem, solution, g)
    return solution.value


def _check_adjoint(problem: Problem, solution: Solution, g: Tensor) -> None:
    if problem.policy != "ignore":
        # A gradient that comes in broken, as those of a scaled loss sometimes do, is not this problem's fault.
        failed = solution.failed() & ~Solution(g, None, 0, None).failed()
        if not every(~failed):
            solution.report(failed, problem.policy, problem.name)


class _CheckpointedUnrollFunction(_BackwardOnly):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, checkpoints: int, start: Tensor | None, z: Tensor, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(z, start, *tensors)
        value = _forward(ctx, problem, checkpoints, z, tensors)
        ctx.broken = ~finite_samples(value)
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        z, start, *tensors = ctx.saved_tensors
        broken: Tensor = ctx.broken
        p: Problem = ctx.problem
        assert isinstance(p.solver, FixedIterations)
        n_iter = p.solver.n_iter
        with torch.autocast(**ctx.autocast):
            if torch.is_grad_enabled():  # somebody will differentiate again: keep the whole graph
                first, z, *tensors = inputs = _cut([z if start is None else start, z, *tensors], True)
                p = replace(p, start=first)
                if not every(~broken):
                    (p, z), g = p.without(broken, z), spoilt(g, broken)
                with drawing_from(ctx.first, z):
                    x = p.solve(z, tensors).value
                _refuse_hidden_tensors(x, inputs)
                return None, None, *_from_start(start, _gradients(x, inputs, g, True))
            leaves = _cut(tensors, False)
            f = p.map(z, [t.detach() for t in tensors])
            sums: list[Tensor | None] = [None] * (1 + len(leaves))

            def advance(at: _Iterate, steps: int) -> _Iterate:
                x = at.x
                with drawing_from(at.random, x):
                    for _ in range(steps):
                        x = f(x)
                    return _Iterate(x, random_state(x) if at.random else None)

            def back(at: _Iterate) -> None:
                """Go back through one step from x: g, the gradient of the next, becomes that of x."""
                nonlocal g, broken
                broken = broken | ~finite_samples(at.x)  # what steps to it would be multiplied with, too
                x, g = _without_broken(at.x, g, broken)
                x = x.detach().requires_grad_()
                with torch.enable_grad(), drawing_from(at.random, x):
                    fx = p.F(x, *leaves)
                    _refuse_hidden_tensors(fx, [x, *leaves])
                product, *products = _gradients(fx, [x, *leaves], g, retain_graph=False)
                del fx
                for i, more in enumerate([g, *products]):
                    sums[i] = _add(sums[i], more)
                g = torch.zeros_like(x) if product is None else product

            _reverse(_Iterate(z if start is None else start, ctx.first), n_iter, ctx.option, advance, back)
            return None, None, *_from_start(start, [g, *sums])


def _without_broken(x: Tensor, g: Tensor, broken: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and its gradient g, with 0 and NaN for samples that are or will not be finite, (B,).

    One would spoil the tensors' gradient also where the loss leaves it out.
    """
    if x.device.type == "cpu" and not broken.any():  # where looking is free, it saves two copies
        return x, g
    return choose(broken, torch.zeros_like(x), x), spoilt(g, broken)


def _from_start(start: Tensor | None, gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Give z the gradient of the start, the first of all, where z is where it began."""
    first, second, *others = gradients
    return [None, _add(second, first), *others] if start is None else [first, second, *others]


@dataclass(frozen=True)
class _Iterate:
    """A point on the way, and the state of the random generators there; None where F draws nothing."""

    x: Tensor
    random: RandomState | None


def _reverse(
    x: _Iterate,
    steps: int,
    checkpoints: int,
    advance: Callable[[_Iterate, int], _Iterate],
    back: Callable[[_Iterate], None],
) -> None:
    """Go back through `steps` steps from x, the last one first, with `checkpoints` iterates in memory besides x."""
    while steps > 1:
        if checkpoints:
            ahead = _split(steps, checkpoints)
            _reverse(advance(x, ahead), steps - ahead, checkpoints - 1, advance, back)
            steps = ahead
        else:
            back(advance(x, steps - 1))
            steps -= 1
    if steps:
        back(x)


def _split(steps: int, checkpoints: int) -> int:
    """Compute how far ahead to keep the next iterate, so that replays are fewest.

    With s kept and no step replayed more than r times, binomial(s + 1 + r, r) steps can be pulled back through.
    """
    r = next(r for r in range(steps) if math.comb(checkpoints + 1 + r, r) >= steps)
    return min(math.comb(checkpoints + r, r - 1), steps - math.comb(checkpoints + r - 1, r - 1))


def _cut(tensors: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
    """Return the same values where a derivative may stop, though one of them depends on another."""
    if create_graph:
        return [t.view_as(t) for t in tensors]
    return [t.detach().requires_grad_(t.requires_grad) for t in tensors]


def _gradients(
    y: Tensor, inputs: Sequence[Tensor], g: Tensor, create_graph: bool = False, retain_graph: bool = True
) -> list[Tensor | None]:
    """Compute the products of g with dy/dinput, None where there is none."""
    wanted = [t for t in inputs if t.requires_grad]
    if not wanted or not y.requires_grad:
        return [None] * len(inputs)
    options: dict[str, Any] = dict(retain_graph=retain_graph, create_graph=create_graph, allow_unused=True)
    products = iter(torch.autograd.grad(y, wanted, g.to(y.dtype), **options))
    return [next(products) if t.requires_grad else None for t in inputs]


def _add(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return y if x is None else x if y is None else x + y


def _refuse_hidden_tensors(fx: Tensor, known: Sequence[Tensor]) -> None:
    """Raise if fx depends on a tensor that needs a gradient and will not get it."""
    leaves = {id(t) for t in known}
    seen = {t.grad_fn for t in known}
    stack = [fx.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in leaves:
            raise ValueError(
                f"F depends on a tensor of shape {tuple(variable.shape)} that needs a gradient and is not among its "
                "arguments; let F take it, and pass it: solve(F, z, tensors)"
            )
        stack += [parent for parent, _ in node.next_functions]


def _autocast_state(x: Tensor) -> dict[str, Any]:
    kind = x.device.type
    return dict(device_type=kind, enabled=torch.is_autocast_enabled(kind), dtype=torch.get_autocast_dtype(kind))
