"""Keep steps whose gradient is not finite from reaching the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Guard:
    """A watch on the gradient norm of every step, for which an accelerator does not have to wait.

    On the CPU the answer is there at once. On an accelerator a fused optimizer takes the flag itself and leaves the
    weights as they are; the host reads it one step later, when it has long been computed.

    Args:
        optimizer: The optimizer, of torch.
        scaled: Whether a loss scaler skips steps that overflow, which is how it finds its scale. Then only a long run
            of them counts.

    Attributes:
        left_out: Whether the weights must not see the step at hand, a scalar on its device; None before the first.
    """

    def __init__(self, optimizer: Optimizer, scaled: bool = False) -> None:
        self.optimizer: Any = optimizer  # `found_inf` is no attribute to mypy
        self.patience = 20 if scaled else 0  # 65536 halved 17 times is below 1
        self.left_out: Tensor | None = None
        self._in_a_row: Tensor | None = None
        self._pending: Tensor | None = None

    def should_skip(self, norm: Tensor) -> bool:
        """Decide whether the step at hand must not be taken.

        Args:
            norm: The norm of the whole gradient, a scalar.

        Returns:
            True if the caller must skip the step. False otherwise, and also if the optimizer skips it by itself.
        """
        bad = self.left_out = ~torch.isfinite(norm)
        self._in_a_row = bad.int() if self._in_a_row is None else (self._in_a_row + 1) * bad
        flag = self._in_a_row > self.patience
        if not norm.is_cuda or not self._gated:
            return bool(flag)
        self.optimizer.found_inf = bad.float()
        self._pending = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()
        return False

    def skipped(self) -> bool:
        """Return whether the optimizer skipped the last step. It waits for the accelerator to have finished it."""
        if self._pending is None:
            return False
        self._copied.synchronize()
        flag, self._pending = bool(self._pending), None
        return flag

    @property
    def _gated(self) -> bool:
        return self.patience == 0 and bool(self.optimizer.defaults.get("fused"))


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Compute the norm of the whole gradient, a scalar, over the processes too if it is sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
