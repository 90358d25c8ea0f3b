"""x = z + F(x): one entry point, any solver, any gradient."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from imixer.errors import in_short
from imixer.implicit.choices import chosen
from imixer.implicit.func_transforms import differentiable, every
from imixer.implicit.gradients import Gradient, Unroll
from imixer.implicit.problem import ContractionMap, Problem
from imixer.implicit.random_state import drawing_from, random_state
from imixer.implicit.solution import POLICIES, Policy, Solution, StateT, choose, finite_samples, spoil_gradient_of
from imixer.implicit.solvers import FixedIterations, Solver, epsilon
from imixer.implicit.states import as_tuple, layout_of

DEFAULT_SOLVER = FixedIterations()
DEFAULT_GRADIENT = Unroll()


def solve(
    F: Callable[..., StateT],
    z: StateT,
    tensors: Tensor | Sequence[Tensor] = (),
    *,
    start: StateT | None = None,
    solver: Solver | str = DEFAULT_SOLVER,
    gradient: Gradient | str = DEFAULT_GRADIENT,
    on_failure: Policy = "raise",
    early_exit: bool = False,
    name: str = "solve",
) -> Solution[StateT]:
    """Solve x = z + F(x, *tensors), starting from z, samples along the first axis.

    Args:
        F: The contraction, from states like z to the same. It must treat samples apart: where the first axis is part
            of one state, such as the nodes of a graph, put one of samples before it, z[None]. With a tolerance it must
            be deterministic; otherwise it may draw from torch's global generators.
        z: (B, ...), real or complex; or a tuple, list or dict of such, nested as you like. The residual of a sample is
            taken over all its tensors, and complex numbers count as pairs of real ones.
        tensors: What F depends on; they get gradients. One alone needs no tuple. Inputs per sample, F(x, u), are among
            them, with samples along their first axis.
        start: Where to begin, like z, such as the value of a related problem's solution. The solution does not depend
            on it, so that `Implicit` gives it no gradient; the steps of `Unroll` and `CheckpointedUnroll` do.
        solver: How x is found: an object, or `fixed`, `picard`, `damped`, `anderson` or `broyden`.
        gradient: How the gradient is found: an object, or `unroll`, `implicit`, `neumann`, `jacobian_free` or
            `recompute`. Independent of the solver, but for `CheckpointedUnroll`; by name, `implicit` solves the adjoint
            equation by a solver to a tolerance likewise, to its relative tolerance alone.
        on_failure: What to do about samples that do not converge or are not finite, in either direction: `raise`,
            `warn` or `ignore`. Without a tolerance only values that are not finite are a failure. Finding out makes the
            host wait for the device, once; compiled code does not ask. With a tolerance and `Unroll`, `ignore` looks
            too, for what the gradient must leave out.
        early_exit: Evaluate F on those samples only that still move. Only where no derivative is taken. Tensors with
            one entry per sample along their first axis are cut like z; evaluating one sample alone tells which.
        name: What to call it in messages.

    Returns:
        The solution; gradients flow through its value.

    A sample whose value is not finite does not spoil the gradient of the tensors if the loss leaves it out, so that its
    own gradient is 0: F is differentiated at 0 in its place. Two things do spoil it. With `FixedIterations`, `Unroll`
    and the policy `ignore` nobody looks. And a number per sample that is not finite and comes in by the tensors, as in
    F(x, u), is multiplied with that 0.

    Raises:
        NotConvergedError: If it fails, with the policy `raise`; in the backward pass, if that of an implicit gradient
            fails.
        RuntimeError: If dual numbers outside `torch.func` meet another gradient than `Unroll`; in the backward pass, if
            a second derivative is asked of an adjoint of fixed iterations.
        ValueError: If F cannot be called, on_failure is none of the three, there is no solver or gradient of that name,
            the tensors hold something else, z holds something else than tensors with an axis of samples and not of
            integers, the start differs from z in structure, shape or dtype, F changes the structure, shape, dtype or
            device, or its argument in place, early_exit is asked where gradients are recorded, in a transform of
            `torch.func`, with dual numbers, or of an F that does not treat samples apart, `CheckpointedUnroll` is asked
            of a solver with a tolerance, or F depends on a tensor that needs a gradient and is not among `tensors` (for
            `Implicit` and `CheckpointedUnroll`; mostly found in the backward pass).
    """
    if on_failure not in POLICIES:
        raise ValueError(f"{name}: on_failure is {on_failure!r}; choose {', '.join(POLICIES)}")
    if early_exit and torch.is_grad_enabled():
        raise ValueError(f"{name}: early_exit is for inference; call it under torch.no_grad()")
    if early_exit and differentiable():
        raise ValueError(
            f"{name}: early_exit is for inference, and a transform of torch.func or dual numbers are in use; leave "
            "early_exit out"
        )
    solver, gradient = chosen(solver, gradient)
    if not callable(F):
        raise ValueError(f"{name}: F is {type(F).__name__}; give a function of x and the tensors, solve(F, z, tensors)")
    given = as_tuple(tensors, f"{name}: tensors")
    layout = layout_of(z, name)
    if start is not None:
        remedy = "start from a state like z, such as the value of an earlier solution"
        start = layout.matched(start, "start is", remedy, samples_too=True)
    problem = Problem(layout.wrap(F), solver, on_failure, name, None if start is None else layout.pack(start))
    solution = _solve(problem, gradient, layout.pack(z), given, early_exit)
    value: StateT = layout.unpack(solution.value)
    return solution.with_value(value)


def _solve(
    problem: Problem, gradient: Gradient, z: Tensor, tensors: tuple[Tensor, ...], early_exit: bool
) -> Solution[Tensor]:
    """Solve for one real tensor, and do what the policy says about samples that fail."""
    solver, policy = problem.solver, problem.policy
    if early_exit:
        problem = replace(problem, F=_OnlyWhatMoves(problem.F, problem.name))
    compiling, fixed = torch.compiler.is_compiling(), isinstance(solver, FixedIterations)
    # Then steps that are differentiated are taken again without the samples that are not finite.
    looks_later = policy != "raise" and isinstance(gradient, Unroll) and not (fixed and policy == "ignore")
    before = random_state(z) if looks_later and torch.is_grad_enabled() and not compiling else None
    solution = gradient(problem, z, tensors)
    again = looks_later and solution.value.requires_grad
    if compiling or (policy == "ignore" and not again):
        return solution
    broken = ~finite_samples(solution.value.detach())
    failed = broken if policy == "ignore" else solution.failed()
    if every(~failed):
        return solution
    if policy != "ignore":
        traced = solution
        if isinstance(solver, FixedIterations) and not solver.measure:  # once more, to say at which step
            with torch.no_grad():
                traced = replace(problem, solver=replace(solver, measure=True)).solve(z, tensors)
        traced.report(failed, policy, problem.name)
    if not again or (failed is not broken and every(~broken)):
        return solution
    rest, rest_z = problem.without(broken, z)
    with drawing_from(before, z):
        value = gradient(rest, rest_z, tensors).value
    return replace(solution, value=_not_finite(value, z, broken))


def _not_finite(value: Tensor, z: Tensor, broken: Tensor) -> Tensor:
    """Make the value NaN for broken samples, (B,), and their gradients too unless they are 0."""
    zero = torch.zeros_like(value)
    value = value + choose(broken, z + torch.nan, zero)
    spoil_gradient_of(value, broken)
    return value


class _OnlyWhatMoves:
    """F, evaluated on samples that differ from those of the call before, and remembered for the others."""

    def __init__(self, F: ContractionMap, name: str) -> None:
        self.F, self.name = F, name
        self.x: Tensor | None = None
        self.fx: Tensor | None = None
        self.cut: Sequence[bool] | None = None  # which tensors have an entry per sample

    def __call__(self, x: Tensor, *tensors: Tensor) -> Tensor:
        if self.x is None or self.fx is None:
            fx = self.F(x, *tensors)
        else:
            differs = x != self.x
            moved = (differs.flatten(1).any(1) if x.dim() > 1 else differs).nonzero()[:, 0]
            if len(moved) == 0:
                fx = self.fx
            elif len(moved) == len(x):
                fx = self.F(x, *tensors)
            else:
                if self.cut is None:
                    self.cut = self._find_cut(self.x, self.fx, tensors, moved[:1])
                fx = self.fx.index_copy(0, moved, self._on(moved, x, tensors, self.cut))
        self.x, self.fx = x, fx
        return fx

    def _on(self, rows: Tensor, x: Tensor, tensors: Sequence[Tensor], cut: Sequence[bool]) -> Tensor:
        return self.F(x[rows], *(t[rows] if yes else t for t, yes in zip(tensors, cut, strict=True)))

    def _find_cut(self, x: Tensor, fx: Tensor, tensors: Sequence[Tensor], row: Tensor) -> Sequence[bool]:
        """Find which tensors to cut for one sample alone, row (1,), to get what it got among all."""
        may_be = [(False, True) if t.dim() > 0 and len(t) == len(x) else (False,) for t in tensors]
        trouble = ""
        for cut in itertools.product(*may_be):
            try:
                alone = self._on(row, x, tensors, cut)
            except Exception as error:  # whatever F raises on shapes that do not fit each other
                trouble = f"raises {type(error).__name__}: {in_short(error)}"
                continue
            if alone.shape != fx[row].shape:
                trouble = trouble or f"gives the shape {tuple(alone.shape)}"
            elif torch.allclose(alone, fx[row], rtol=0, atol=_rounding(fx[row]), equal_nan=True):
                return cut
            else:
                trouble = trouble or "gives another value"
        raise ValueError(
            f"{self.name}: early_exit evaluates F on some samples only, and on one alone F {trouble}; leave early_exit "
            "out, or let F treat samples apart: inputs per sample go among the tensors, samples along the first axis"
        )


def _rounding(fx: Tensor) -> float:
    """Bound what two ways of computing fx may differ by, with much to spare."""
    return epsilon(fx) ** 0.5 * float(fx.nan_to_num().abs().amax())
