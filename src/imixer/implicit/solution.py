"""What a solver gives back, and what is done when it fails."""

import warnings
from dataclasses import dataclass
from typing import Literal, Optional

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
        converged: Whether the tolerance is met, (B,); None for a solver that has none.
    """

    value: Tensor
    residuals: Optional[Tensor]
    n_evaluations: int
    converged: Optional[Tensor]

    def failed(self) -> Tensor:
        """Which samples are not finite, or have not met the tolerance, (B,)."""
        value = self.value.detach()
        finite = value.isfinite().flatten(1).all(1) if value.dim() > 1 else value.isfinite()
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
        no_progress = bool((residuals[-1] > 0.5 * residuals[0]).any())
        hint = "F may be no contraction: lower coeff" if no_progress else "allow more steps, or a larger tolerance"
        return (
            f"did not converge in {len(residuals)} steps, with a relative residual of up to "
            f"{float(residuals[-1].max()):.3g}; {hint}"
        )
