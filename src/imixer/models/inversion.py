"""How an iMLP finds x = (1 - F)^-1 G(v), and its gradient: by name."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from imixer.implicit import Contraction
from imixer.implicit.contraction import Norm
from imixer.implicit.gradients import CheckpointedUnroll, Gradient, Implicit, Unroll
from imixer.implicit.solution import POLICIES, Policy, Solution
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard, Solver, ToTolerance
from imixer.implicit.spectral import at_least_float32

SolverName = Literal["fixed", "picard", "damped", "anderson", "broyden"]
GradientName = Literal["unroll", "implicit", "neumann", "jacobian_free", "recompute"]


@dataclass(frozen=True)
class Inversion:
    """Solver and gradient of x = G(v) + F(x). Together, they are checked as soon as either changes.

    Args:
        solver: `fixed`: n iterations (paper). To a tolerance: `picard`, plain iteration; `damped`, by half steps;
            `anderson`; `broyden`. Or a solver of `imixer.implicit`, which brings its own tolerance.
        gradient: `unroll`: through the steps (paper). `recompute`: the same, in memory that hardly grows with n.
            Through the equation, in the memory of one step: `implicit`; `neumann`, cut off after some terms;
            `jacobian_free`, after the first. Or a gradient of `imixer.implicit`.
        tolerance: Relative residual ||G + F(x) - x|| / ||G + F(x)|| at which an image has converged; `implicit` solves
            for the gradient to the same. Used by names, not by instances.
        max_steps: Steps after which solving to a tolerance is given up.
        gradient_terms: Terms k of `neumann`.
        on_failure: `raise`, `warn` or `ignore` an inverse that is not found or not finite, in either direction.
            Default: `raise`, or `ignore` where nothing is solved to a tolerance, since looking makes a GPU wait.
        norm: Of the contraction.
        legacy: Whether weights change between iterations.

    Raises:
        ValueError: If a name is unknown, a number impossible, `recompute` is combined with a tolerance, legacy with
            anything but `fixed` and `unroll`, or norm=batch, with which F depends on the batch, with a gradient other
            than `unroll`.

    Source: `imixer.implicit.solvers`, `imixer.implicit.gradients`.
    """

    solver: SolverName | Solver = "fixed"
    gradient: GradientName | Gradient = "unroll"
    tolerance: float = 1e-4
    max_steps: int = 100
    gradient_terms: int = 5
    on_failure: Policy | None = None
    norm: Norm = "spectral"
    legacy: bool = False

    def __post_init__(self) -> None:
        _check_choice("solver", self.solver, get_args(SolverName), (FixedIterations, ToTolerance))
        _check_choice("gradient", self.gradient, get_args(GradientName), (Unroll, Implicit, CheckpointedUnroll))
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; give a relative residual between 0 and 1")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; give 1 or more")
        if self.gradient_terms < 1:
            raise ValueError(f"gradient_terms is {self.gradient_terms}; give 1 or more")
        if self.on_failure is not None and self.on_failure not in POLICIES:
            raise ValueError(f"on_failure is {self.on_failure!r}; choose {', '.join(POLICIES)}")
        solver, gradient = self._solver(0), self._gradient()
        if isinstance(gradient, CheckpointedUnroll) and not isinstance(solver, FixedIterations):
            raise ValueError(
                f"gradient is {self.gradient}, which replays fixed iterations, and solver is {self.solver}; "
                "choose the solver fixed, or the gradient implicit"
            )
        if self.legacy and not self.unrolled:
            raise ValueError(
                f"legacy is the published code, with solver fixed and gradient unroll, and they are {self.solver} and "
                f"{self.gradient}"
            )
        if self.norm == "batch" and not isinstance(gradient, Unroll):
            raise ValueError(
                f"norm is batch, with which F depends on the whole batch, and gradient is {self.gradient}; "
                "choose the gradient unroll, or another norm"
            )

    @property
    def unrolled(self) -> bool:
        """Whether this is the paper's: n iterations, differentiated as they are."""
        return self.solver == "fixed" and self.gradient == "unroll"

    def steps(self, n_iter: int) -> int:
        """The most steps that the outermost inverse may take; `fixed` takes n_iter."""
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
        """x = (1 - F)^-1 z for z (..., features). What goes to a tolerance does so in at least float32.

        Args:
            F: The contraction.
            z: G(v), whose first axis is the samples.
            weights: `F.weights()`.
            n_iter: Iterations of `fixed`, and of inverses inside F.
            name: What to call it in messages.
            masks: `F.masks(z)`: the dropout of this forward. Drawn before, it leaves F one deterministic map.

        Raises:
            NotConvergedError: If it fails and on_failure is `raise`.
        """
        if isinstance(z, torch.fx.Proxy):
            raise ValueError(
                f"{name}: symbolic tracing cannot follow solver {self.solver} with gradient {self.gradient}; set "
                "model.solver = 'fixed' and model.gradient = 'unroll', or make imixer.models.IMLP a leaf of the tracer"
            )
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
        run = solve if stepwise else _solve_eagerly
        policy = self.on_failure or ("raise" if self.needs_float32 else "ignore")
        batched = z if z.dim() > 1 else z[None]
        solution: Solution = run(f, batched, weights, solver=solver, gradient=gradient, on_failure=policy, name=name)
        return solution.value.view_as(z)

    def _solver(self, n_iter: int) -> Solver:
        if not isinstance(self.solver, str):
            return self.solver
        if self.solver == "fixed":
            return FixedIterations(n_iter)
        goal: dict[str, Any] = dict(rtol=self.tolerance, atol=0.0)
        if self.solver == "anderson":
            return Anderson(**goal, max_steps=self.max_steps)
        if self.solver == "broyden":
            return Broyden(**goal, max_steps=self.max_steps)
        return Picard(**goal, max_steps=self.max_steps, damping=0.5 if self.solver == "damped" else 1.0)

    def _gradient(self) -> Gradient:
        if not isinstance(self.gradient, str):
            return self.gradient
        if self.gradient == "unroll":
            return Unroll()
        if self.gradient == "recompute":
            return CheckpointedUnroll()
        if self.gradient == "neumann":
            return Implicit(FixedIterations(self.gradient_terms - 1))
        if self.gradient == "jacobian_free":
            return Implicit(FixedIterations(0))
        solver = self._solver(0)
        if isinstance(solver, ToTolerance):
            return Implicit(solver)
        return Implicit(Picard(rtol=self.tolerance, atol=0.0, max_steps=self.max_steps))


# When to stop is up to the data, which no graph can tell.
_solve_eagerly = torch.compiler.disable(solve)


def _check_choice(option: str, value: object, names: tuple, kinds: tuple) -> None:
    if not isinstance(value, kinds) and value not in names:
        known = f"{', '.join(names[:-1])} or {names[-1]}"
        raise ValueError(f"{option} is {value!r}; choose {known}, or give one of imixer.implicit")
