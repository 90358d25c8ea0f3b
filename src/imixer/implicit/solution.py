"""What a solver gives back, and what is done when it fails."""

import warnings
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from imixer.implicit.func_transforms import physical, transformed
from imixer.implicit.states import outline, tensors_of

StateT = TypeVar("StateT")
NewT = TypeVar("NewT")

Policy = Literal["raise", "warn", "ignore"]
POLICIES = ("raise", "warn", "ignore")


class NotConvergedError(RuntimeError):
    """A solver met values that are not finite, or ran out of steps."""


@dataclass(frozen=True, repr=False)
class Solution(Generic[StateT]):
    """How far a solver came with x = f(x), in which (B,) are the samples, the first axis of x.

    Attributes:
        value: x, of the shape and the structure of z. Of a sample that ran out of steps, the iterate whose residual was
            the least. One that is not finite stays so, lest it be taken for an answer.
        residuals: ||f(x) - x|| / ||f(x)|| before each step that was taken, (steps, B), the numerator alone where f(x)
            is 0; None if not measured.
        n_evaluations: Evaluations of f.
        converged: Whether the tolerance is met, (B,), and was met whenever it was looked at again; None for a solver
            that has none.
        relapsed: Which samples met the tolerance and, left as they were, did not any more, (B,): F does not treat
            samples apart, or is not deterministic. None for a solver without a tolerance.
    """

    value: StateT
    residuals: Tensor | None
    n_evaluations: int
    converged: Tensor | None
    relapsed: Tensor | None = None

    def __repr__(self) -> str:
        """Say in a line how it went."""
        parts = [f"{self.n_evaluations} evaluations"]
        if self.converged is not None:
            converged = physical(self.converged)
            parts.insert(0, f"{int(converged.sum())} of {converged.numel()} samples converged")
        if self.residuals is not None:
            parts.append(f"residual {_largest(physical(self.residuals)):.3g}")
        value = self.value
        parts.append(f"value {tuple(value.shape)}" if isinstance(value, Tensor) else f"value {outline(value)}")
        return f"Solution({', '.join(parts)})"

    def with_value(self, value: NewT) -> "Solution[NewT]":
        """Say the same of another value."""
        return Solution(value, self.residuals, self.n_evaluations, self.converged, self.relapsed)

    def failed(self) -> Tensor:
        """Tell which samples are not finite, or have not met the tolerance, (B,)."""
        finite = torch.stack([finite_samples(x.detach()) for x in tensors_of(self.value)]).all(0)
        return ~finite if self.converged is None else ~(finite & self.converged)

    def report(self, failed: Tensor, policy: Policy, name: str) -> None:
        """Say what became of samples that failed, at least one.

        Args:
            failed: Which, (B,).
            policy: `raise`, `warn` or `ignore`.
            name: What was solved, such as `blocks.3.mlp_tokens`.

        Raises:
            NotConvergedError: If the policy is `raise`.
        """
        if policy == "ignore":
            return
        failed = physical(failed)
        message = f"{name}: {int(failed.sum())} of {failed.numel()} samples {self._trouble(failed)}"
        if policy == "raise":
            raise NotConvergedError(message)
        warnings.warn(message, stacklevel=2)

    def _trouble(self, failed: Tensor) -> str:
        if self.residuals is None:
            return "are not finite"
        residuals = physical(self.residuals)[:, failed]
        broken = ~residuals.isfinite().all(1)
        if broken.any():
            step = 1 + int(broken.to(torch.int).argmax())
            return f"are not finite from step {step} on; F is no contraction, or it or its input is not finite"
        if self.relapsed is not None and bool((physical(self.relapsed) & failed).any()):
            return (
                "did not converge: some had, and their residual rose again though nothing had moved them. F does not "
                "treat the samples along the first axis apart, or draws at random; if that axis is part of one state, "
                "as the nodes of a graph are, put one of samples before it, z[None]"
            )
        no_progress = bool((residuals[-1] > 0.5 * residuals[0]).any())
        hint = "allow more steps, or a larger tolerance"
        if no_progress:
            hint = "F may be no contraction: make it less steep, or choose the solver Broyden"
        return (
            f"did not converge in {len(residuals)} steps, with a relative residual of up to "
            f"{_largest(residuals):.3g}; {hint}"
        )


def _largest(residuals: Tensor) -> float:
    return float(residuals[-1].max()) if residuals.numel() else 0.0


def finite_samples(x: Tensor) -> Tensor:
    """Tell which samples of x (B, ...) are finite throughout, (B,)."""
    return x.isfinite().flatten(1).all(1) if x.dim() > 1 else x.isfinite()


def choose(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Choose per sample, which (B,), between two tensors (B, ...)."""
    return torch.where(which.view(-1, *[1] * (yes.dim() - 1)), yes, no)


def spoil_gradient_of(value: Tensor, broken: Tensor) -> None:
    """Make the gradient NaN for samples that are broken, (B,), if anything asks for theirs.

    Where their part in the computation was replaced by a harmless one, a gradient of that would be an invention.
    """
    if value.requires_grad and not transformed():  # which take no hooks
        value.register_hook(lambda g: None if g is None else spoilt(g, broken))  # None: autograd's zero


def spoilt(g: Tensor, broken: Tensor) -> Tensor:
    """Make a gradient g (B, ...) NaN for broken samples, (B,), but for those whose gradient is 0."""
    asked = (g != 0).flatten(1).any(1) if g.dim() > 1 else g != 0
    return choose(broken & asked, torch.full_like(g, torch.nan), g)
