"""Solvers and gradients by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from imixer.errors import did_you_mean
from imixer.implicit.gradients import CheckpointedUnroll, Gradient, Implicit, Unroll, adjoint_like
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard, Solver, ToTolerance

SOLVERS: Mapping[str, Callable[..., Solver]] = {
    "fixed": FixedIterations,
    "picard": Picard,
    "damped": partial(Picard, damping=0.5),
    "anderson": Anderson,
    "broyden": Broyden,
}
GRADIENTS = ("unroll", "implicit", "neumann", "jacobian_free", "recompute")


def named_solver(name: str, **options: Any) -> Solver:
    """Make the solver of a name.

    Args:
        name: One of `SOLVERS`.
        options: Arguments of its class.

    Raises:
        ValueError: If there is no such name.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver is {name!r}; choose {', '.join(SOLVERS)}{did_you_mean(name, SOLVERS)}")
    return SOLVERS[name](**options)


def named_gradient(name: str, adjoint: Solver | None = None, terms: int = 5) -> Gradient:
    """Make the gradient of a name.

    Args:
        name: One of `GRADIENTS`.
        adjoint: How `implicit` solves the adjoint equation, by its relative tolerance alone. Fixed iterations, which
            would cut it off, are not taken. Default: that of `Implicit`.
        terms: Terms of `neumann`.

    Raises:
        ValueError: If there is no such name.
    """
    if name == "unroll":
        return Unroll()
    if name == "recompute":
        return CheckpointedUnroll()
    if name == "implicit":
        return Implicit(adjoint_like(adjoint)) if isinstance(adjoint, ToTolerance) else Implicit()
    if name == "neumann":
        return Implicit(FixedIterations(terms - 1))
    if name == "jacobian_free":
        return Implicit(FixedIterations(0))
    raise ValueError(f"gradient is {name!r}; choose {', '.join(GRADIENTS)}{did_you_mean(name, GRADIENTS)}")


def chosen(solver: Solver | str, gradient: Gradient | str) -> tuple[Solver, Gradient]:
    """Take a solver and a gradient, each by name or as an object; `implicit` by name adopts the solver.

    Raises:
        ValueError: If there is no such name, or one is no object that can be called.
    """
    if isinstance(solver, str):
        solver = named_solver(solver)
    if isinstance(gradient, str):
        gradient = named_gradient(gradient, solver)
    for what, choice, known in (("solver", solver, SOLVERS), ("gradient", gradient, GRADIENTS)):
        if isinstance(choice, type):
            raise ValueError(f"{what} is the class {choice.__name__}; make an object of it, {choice.__name__}()")
        if isinstance(choice, Gradient if what == "solver" else Solver):
            other = "gradient" if what == "solver" else "solver"
            raise ValueError(f"{what} is {type(choice).__name__}, a {other}; give it as {other}=")
        if not callable(choice):
            raise ValueError(f"{what} is {choice!r}; give an object of imixer.implicit, or one of {', '.join(known)}")
    return solver, gradient
