"""How an iMLP finds x = (1 - F)^-1 G(v), and its gradient: by the names of the options."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor

from imixer.dtypes import at_least_float32
from imixer.implicit import Contraction
from imixer.implicit.choices import named_gradient, named_solver
from imixer.implicit.gradients import CheckpointedUnroll, Gradient, Implicit, Unroll
from imixer.implicit.solution import Policy, Solution
from imixer.implicit.solve import solve
from imixer.implicit.solvers import FixedIterations, Picard, Solver, ToTolerance
from imixer.implicit.transposed import learns_in_replica, refuse_replica
from imixer.inverse_options import GradientName, SolverName, SolverOptions, check_choice


@dataclass(frozen=True)
class Inversion(SolverOptions):
    """Solver and gradient of x = G(v) + F(x), checked together as soon as either changes.

    Choose one, or change the attributes of the model that have these names, to solve a trained model in another way.

    Raises:
        ValueError: If an option is impossible, see `SolverOptions`. If `recompute` is combined with a tolerance, legacy
            with anything but `fixed`, `unroll` and `ignore`, or norm=batch, with which F depends on the batch, with a
            gradient other than `unroll`.

    Source: `imixer.implicit.solvers`, `imixer.implicit.gradients`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver", self.solver, get_args(SolverName), (FixedIterations, ToTolerance))
        check_choice("gradient", self.gradient, get_args(GradientName), (Unroll, Implicit, CheckpointedUnroll))
        solver, gradient = self._solver(0), self._gradient()
        if isinstance(gradient, CheckpointedUnroll) and not isinstance(solver, FixedIterations):
            raise ValueError(
                f"gradient is {self.gradient}, which replays fixed iterations, and solver is {self.solver}; "
                "choose the solver fixed, or the gradient implicit"
            )
        if self.legacy and not self.unrolled:
            raise ValueError(
                "legacy is the published code, with solver fixed, gradient unroll and on_failure ignore, and they are "
                f"{self.solver} and {self.gradient}, with on_failure {self.on_failure or 'ignore'}"
            )
        if self.norm == "batch" and not isinstance(gradient, Unroll):
            raise ValueError(
                f"norm is batch, with which F depends on the whole batch, and gradient is {self.gradient}; "
                "choose the gradient unroll, or another norm"
            )

    @classmethod
    def of(cls, options: SolverOptions) -> "Inversion":
        """Return the inversion that options ask for."""
        return cls(**{each.name: getattr(options, each.name) for each in fields(cls)})

    @property
    def unrolled(self) -> bool:
        """Whether this is the paper's way: n iterations, differentiated as they are, and nobody looks at the result."""
        return self.solver == "fixed" and self.gradient == "unroll" and self.on_failure in (None, "ignore")

    def steps(self, n_iter: int) -> int:
        """Return the most steps that the outermost inverse may take; `fixed` takes n_iter."""
        solver = self._solver(n_iter)
        return solver.n_iter if isinstance(solver, FixedIterations) else solver.max_steps

    @property
    def needs_float32(self) -> bool:
        """Whether something is solved to a tolerance, which must stay above the precision."""
        gradient = self._gradient()
        return isinstance(self._solver(0), ToTolerance) or (
            isinstance(gradient, Implicit) and isinstance(gradient.adjoint, ToTolerance)
        )

    def __call__(
        self,
        F: Contraction,
        z: Tensor,
        weights: list[Tensor],
        n_iter: int,
        name: str,
        masks: list[Tensor] | None = None,
    ) -> Tensor:
        """Compute x = (1 - F)^-1 z, in at least float32 where it goes to a tolerance.

        Args:
            F: The contraction.
            z: G(v), (..., features), samples along the first axis.
            weights: `F.weights()`.
            n_iter: Iterations of `fixed`, and of inverses inside F.
            name: What to call it in messages.
            masks: `F.masks(z)`: the dropout of this forward. Drawn before, it leaves F one deterministic map.

        Returns:
            x, of the shape and dtype of z.

        Raises:
            NotConvergedError: If the inverse is not found and on_failure is `raise`.
            ValueError: If it is traced symbolically, which cannot follow steps that depend on the data, or
                differentiated by another gradient than `unroll` in a copy by `nn.DataParallel`.
        """
        if isinstance(z, torch.fx.Proxy):
            raise ValueError(
                f"{name}: symbolic tracing cannot follow solver {self.solver} with gradient {self.gradient} and "
                f"on_failure {self.on_failure}; set model.solver = 'fixed', model.gradient = 'unroll' and "
                "model.on_failure = None, or make imixer.models.IMLP a leaf of the tracer"
            )
        if learns_in_replica(F) and torch.is_grad_enabled() and not isinstance(self._gradient(), Unroll):
            refuse_replica(F, f"{name}: gradient is {self.gradient}")
        if not self.needs_float32:
            return self._solve(F, z, weights, n_iter, name, masks)
        with torch.autocast(z.device.type, enabled=False):
            weights = [at_least_float32(weight) for weight in weights]
            return self._solve(F, at_least_float32(z), weights, n_iter, name, masks).to(z.dtype)

    def _solve(
        self,
        F: Contraction,
        z: Tensor,
        weights: list[Tensor],
        n_iter: int,
        name: str,
        masks: list[Tensor] | None,
    ) -> Tensor:
        def f(x: Tensor, *weights: Tensor) -> Tensor:
            return F(x, list(weights), n_iter, masks)

        solver, gradient = self._solver(n_iter), self._gradient()
        stepwise = isinstance(solver, FixedIterations) and isinstance(gradient, Unroll)
        run = solve if stepwise else _solved_eagerly
        policy = self.on_failure or ("raise" if self.needs_float32 else "ignore")
        batched = z if z.dim() > 1 else z[None]
        solution: Solution[Tensor] = run(
            f, batched, weights, solver=solver, gradient=gradient, on_failure=policy, name=name
        )
        return solution.value.view_as(z)

    def _solver(self, n_iter: int) -> Solver:
        if not isinstance(self.solver, str):
            return self.solver
        if self.solver == "fixed":
            return FixedIterations(n_iter)
        return named_solver(self.solver, rtol=self.tolerance, atol=0.0, max_steps=self.max_steps)

    def _gradient(self) -> Gradient:
        if not isinstance(self.gradient, str):
            return self.gradient
        solver = self._solver(0)
        if isinstance(solver, FixedIterations):
            solver = Picard(rtol=self.tolerance, atol=0.0, max_steps=self.max_steps)
        return named_gradient(self.gradient, solver, self.gradient_terms)


@contextmanager
def unsolved_collected() -> Iterator[list[Tensor]]:
    """Let forwards go on where an inverse is not found, and collect of which samples.

    What they go on with is the iterate of least residual, which stays as it is if it is not finite. Fixed iterations
    have no tolerance, and nothing is collected of them.

    Choose it to evaluate a trained model, where one image among thousands must not cost the others' results.

    Yields:
        A list, which gets a mask (B,) for each inverse that is solved: whether it was not found.
    """
    collected: list[Tensor] = []
    token = _COLLECTED.set(collected)
    try:
        yield collected
    finally:
        _COLLECTED.reset(token)


_COLLECTED: ContextVar[list[Tensor] | None] = ContextVar("unsolved", default=None)


def _solved(*args: Any, on_failure: Policy, **options: Any) -> Solution[Tensor]:
    collected = _COLLECTED.get()
    solution: Solution[Tensor] = solve(*args, on_failure=on_failure if collected is None else "ignore", **options)
    if collected is not None and solution.converged is not None:
        collected.append(~solution.converged)
    return solution


# When to stop is up to the data, which no graph can tell.
_solved_eagerly = torch.compiler.disable(_solved)
