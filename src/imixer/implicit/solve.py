"""x = z + F(x): one entry point, any solver, any gradient."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from imixer.implicit.gradients import ContractionMap, Gradient, Problem, ThroughSteps
from imixer.implicit.solution import POLICIES, Policy, Solution
from imixer.implicit.solvers import FixedIterations, Solver

DEFAULT_SOLVER = FixedIterations()
DEFAULT_GRADIENT = ThroughSteps()


def solve(
    F: ContractionMap,
    z: Tensor,
    tensors: Sequence[Tensor] = (),
    *,
    solver: Solver = DEFAULT_SOLVER,
    gradient: Gradient = DEFAULT_GRADIENT,
    on_failure: Policy = "raise",
    early_exit: bool = False,
    name: str = "solve",
) -> Solution:
    """Solve x = z + F(x, *tensors), starting from z, samples along the first axis.

    Args:
        F: The contraction, from the shape of z to the same. It must treat samples apart, and be deterministic for any
            gradient but `ThroughSteps`.
        z: (B, ...).
        tensors: What F depends on; they get gradients.
        solver: How x is found.
        gradient: How the gradient is found. Independent of the solver, but for `Recompute`.
        on_failure: What to do about samples that do not converge or are not finite, in either direction: `raise`,
            `warn` or `ignore`. Without a tolerance only values that are not finite are a failure. Finding out makes the
            host wait for the device, once; compiled code does not ask.
        early_exit: Evaluate F on those samples only that still move. Only where no gradient is recorded.
        name: What to call it in messages.

    Returns:
        The solution; gradients flow through its value.

    Raises:
        NotConvergedError: If it fails, with the policy `raise`; in the backward pass, if that of an implicit gradient
            fails.
        RuntimeError: In the backward pass, if a second derivative is asked of an adjoint of fixed iterations.
        ValueError: If on_failure is none of the three, z has no axis, F changes the shape, early_exit is asked where
            gradients are recorded, `Recompute` is asked of a solver with a tolerance, or F depends on a tensor that
            needs a gradient and is not among `tensors` (for `Implicit` and `Recompute`; mostly found in the backward
            pass).
    """
    if on_failure not in POLICIES:
        raise ValueError(f"{name}: on_failure is {on_failure!r}; choose {', '.join(POLICIES)}")
    if z.dim() == 0:
        raise ValueError(f"{name}: z has no axis of samples; give it one, z[None]")
    if early_exit:
        if torch.is_grad_enabled():
            raise ValueError(f"{name}: early_exit is for inference; call it under torch.no_grad()")
        F = _OnlyWhatMoves(F)
    problem = Problem(F, solver, on_failure, name)
    solution = gradient(problem, z, tuple(tensors))
    if on_failure != "ignore" and not torch.compiler.is_compiling():
        failed = solution.failed()
        if failed.any():
            traced = solution
            if isinstance(solver, FixedIterations) and not solver.measure:  # once more, to say at which step
                with torch.no_grad():
                    traced = replace(solver, measure=True)(problem.map(z, tensors), z)
            traced.report(failed, on_failure, name)
    return solution


class _OnlyWhatMoves:
    """F, evaluated on samples that differ from those of the call before, and remembered for the others."""

    def __init__(self, F: ContractionMap) -> None:
        self.F = F
        self.x: Optional[Tensor] = None
        self.fx: Optional[Tensor] = None

    def __call__(self, x: Tensor, *tensors: Tensor) -> Tensor:
        if self.x is None or self.fx is None:
            fx = self.F(x, *tensors)
        else:
            differs = x != self.x
            moved = (differs.flatten(1).any(1) if x.dim() > 1 else differs).nonzero()[:, 0]
            fx = self.fx if len(moved) == 0 else self.fx.index_copy(0, moved, self.F(x[moved], *tensors))
        self.x, self.fx = x, fx
        return fx
