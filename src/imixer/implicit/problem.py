"""The equation x = z + F(x, *tensors), as solvers and gradients are given it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from imixer.implicit.solution import Policy, Solution, choose
from imixer.implicit.solvers import Map, Solver
from imixer.implicit.states import outline

# F(x, *tensors): all that F depends on and that needs a gradient is among the tensors.
ContractionMap = Callable[..., Tensor]


@dataclass(frozen=True)
class Problem:
    """x = z + F(x, *tensors), how to solve it, and what to do and say if that fails; see `solve`."""

    F: ContractionMap
    solver: Solver
    policy: Policy
    name: str
    start: Tensor | None = None  # where to begin, if not at z
    solutions: list[Solution[Tensor]] = field(
        default_factory=list
    )  # what an autograd function found, besides its value

    def map(self, z: Tensor, tensors: Sequence[Tensor]) -> Map:
        """Return the map x -> z + F(x, *tensors), which checks what F gives."""

        def f(x: Tensor) -> Tensor:
            version = _version(x)
            fx = self.F(x, *tensors)
            if not isinstance(fx, (Tensor, torch.fx.Proxy)):
                raise ValueError(f"{self.name}: F leads from Tensor to {outline(fx)}; let it give back what z is")
            if fx.shape != z.shape:
                raise ValueError(
                    f"{self.name}: F leads from shape {tuple(z.shape)} to {tuple(fx.shape)}; let it give back what z is"
                )
            if fx.device != z.device:
                raise ValueError(f"{self.name}: F leads from {z.device} to {fx.device}; let it stay on one device")
            if _version(x) != version:
                raise ValueError(
                    f"{self.name}: F changes its argument in place, which the solver still needs; "
                    "let it make a new tensor"
                )
            following = z + fx
            if following.dtype != z.dtype:
                raise ValueError(
                    f"{self.name}: z is {_name(z)} and F(x) {_name(fx)}, so that x would change its dtype at the first "
                    "step; convert one of them"
                )
            return following

        return f

    def without(self, broken: Tensor, z: Tensor) -> tuple["Problem", Tensor]:
        """Return the problem, and its z (B, ...), with samples (B,) held at 0, where F and its derivatives are finite.

        What F gives for them is kept, so that a gradient which is asked of them reaches the tensors.
        """

        def held(x: Tensor) -> Tensor:
            return choose(broken, torch.zeros_like(x), x)

        def F(x: Tensor, *tensors: Tensor) -> Tensor:
            return self.F(held(x), *tensors)

        return replace(self, F=F, start=None if self.start is None else held(self.start)), held(z)

    def solve(self, z: Tensor, tensors: Sequence[Tensor]) -> Solution[Tensor]:
        """Solve from the start on, which is z (B, ...) unless another is known."""
        return self.solver(self.map(z, tensors), z if self.start is None else self.start)


def _version(x: Tensor) -> int:
    """Count the changes of x in place, where they are counted."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
