"""What a solver gives back, and what is done when it fails."""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Policy = Literal["raise", "warn", "ignore"]
POLICIES = ("raise", "warn", "ignore")


class NotConvergedError(RuntimeError):
    """A solver met values that are not finite, or ran out of steps."""


@dataclass(frozen=True)
class Solution:
    """How far a solver came with x = f(x), in which (B,) are the samples, the first axis of x.

    Attributes:
        value: x, of the shape of the start.
        residuals: ||f(x) - x|| / ||f(x)|| before each step that was taken, (steps, B), the numerator alone where f(x)
            is 0; None if not measured.
        n_evaluations: Evaluations of f.
        converged: Whether the tolerance is met, (B,), and was met whenever it was looked at again; None for a solver
            that has none.
        relapsed: Which samples met the tolerance and, left as they were, did not any more, (B,): F does not treat
            samples apart, or is not deterministic. None for a solver without a tolerance.
    """

    value: Tensor
    residuals: Tensor | None
    n_evaluations: int
    converged: Tensor | None
    relapsed: Tensor | None = None

    def failed(self) -> Tensor:
        """Tell which samples are not finite, or have not met the tolerance, (B,)."""
        finite = finite_samples(self.value.detach())
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
        message = f"{name}: {int(failed.sum())} of {len(failed)} samples {self._trouble(failed)}"
        if policy == "raise":
            raise NotConvergedError(message)
        warnings.warn(message, stacklevel=2)

    def _trouble(self, failed: Tensor) -> str:
        if self.residuals is None:
            return "are not finite"
        residuals = self.residuals[:, failed]
        broken = ~residuals.isfinite().all(1)
        if broken.any():
            step = 1 + int(broken.to(torch.int).argmax())
            return f"are not finite from step {step} on; F is no contraction, or it or its input is not finite"
        if self.relapsed is not None and bool((self.relapsed & failed).any()):
            return (
                "did not converge: some had, and their residual rose again though nothing had moved them. F does not "
                "treat the samples along the first axis apart, or draws at random; if that axis is part of one state, "
                "as the nodes of a graph are, put one of samples before it, z[None]"
            )
        no_progress = bool((residuals[-1] > 0.5 * residuals[0]).any())
        hint = "F may be no contraction: lower coeff" if no_progress else "allow more steps, or a larger tolerance"
        return (
            f"did not converge in {len(residuals)} steps, with a relative residual of up to "
            f"{float(residuals[-1].max()):.3g}; {hint}"
        )


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
    if value.requires_grad:
        value.register_hook(lambda g: None if g is None else spoilt(g, broken))  # None: autograd's zero


def spoilt(g: Tensor, broken: Tensor) -> Tensor:
    """Make a gradient g (B, ...) NaN for broken samples, (B,), but for those whose gradient is 0."""
    asked = (g != 0).flatten(1).any(1) if g.dim() > 1 else g != 0
    return choose(broken & asked, torch.full_like(g, torch.nan), g)
