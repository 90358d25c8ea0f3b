"""A step whose gradient is not finite must not reach the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Guard:
    """Looks at the gradient norm of every step, without making an accelerator wait.

    On the CPU the answer is there at once. On an accelerator a fused optimizer takes the flag itself and leaves the
    weights as they are; the host reads it one step later, when it has long been computed.

    Args:
        optimizer: Of torch.
        scaled: Whether a loss scaler skips steps that overflow, which is how it finds its scale; then only a long row
            of them counts.
    """

    def __init__(self, optimizer: Any, scaled: bool = False) -> None:
        self.optimizer = optimizer
        self.patience = 20 if scaled else 0  # 65536 halved 17 times is below 1
        self._row: Tensor | None = None
        self._pending: Tensor | None = None

    def should_skip(self, norm: Tensor) -> bool:
        """Whether the step at hand must not be taken; for a step that the optimizer leaves out by itself, False.

        Args:
            norm: Norm of the whole gradient, a scalar.
        """
        bad = ~torch.isfinite(norm)
        self._row = bad.int() if self._row is None else (self._row + 1) * bad
        flag = self._row > self.patience
        if not norm.is_cuda or not self._gated:
            return bool(flag)
        self.optimizer.found_inf = bad.float()
        self._pending = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()
        return False

    def refused(self) -> bool:
        """Whether the last step was left out by the optimizer. Waits for the accelerator to have finished that step."""
        if self._pending is None:
            return False
        self._copied.synchronize()
        flag, self._pending = bool(self._pending), None
        return flag

    @property
    def _gated(self) -> bool:
        return self.patience == 0 and bool(self.optimizer.defaults.get("fused"))


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Norm of the whole gradient, over the processes too if it is sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
