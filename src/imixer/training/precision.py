"""`precision: auto`: bfloat16 where it is measured to be fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS, _WIDTH, _HIDDEN = 4096, 128, 512  # a channel mixing of 64 small images
_REPEATS = 5
_GAIN = 1.2  # bfloat16 must be that many times as fast, or its rounding is for nothing


@dataclass(frozen=True)
class Measurement:
    """What `measure_precision` found.

    Args:
        float32_ms: Milliseconds of a linear layer's forward and backward in float32.
        bf16_ms: The same under autocast to bfloat16, conversions included.
    """

    float32_ms: float
    bf16_ms: float

    @property
    def precision(self) -> Literal["bf16", "32"]:
        """`bf16` if that is clearly faster, else `32`."""
        return "bf16" if self.bf16_ms * _GAIN <= self.float32_ms else "32"

    @property
    def summary(self) -> str:
        """One line that says which and why."""
        return (
            f"precision auto: {self.precision}, since a {_ROWS}x{_WIDTH}x{_HIDDEN} product, forward and backward, "
            f"takes {self.bf16_ms:.1f} ms in bf16 and {self.float32_ms:.1f} ms in float32"
        )


def measure_precision(device: torch.device) -> Measurement:
    """Time a small linear layer in both precisions on a device, the best of a few repeats.

    The processor's name tells nothing: without instructions for them, bfloat16 products are tens of times slower.
    """
    x = torch.randn(_ROWS, _WIDTH, device=device, requires_grad=True)
    weight = torch.randn(_HIDDEN, _WIDTH, device=device, requires_grad=True)

    def run(bf16: bool) -> Callable[[], None]:
        def once() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                y: Tensor = F.linear(x, weight)
            torch.autograd.grad(y.sum(), (x, weight))

        return once

    return Measurement(*(_best_ms(run(bf16), device) for bf16 in (False, True)))


def _best_ms(work: Callable[[], None], device: torch.device) -> float:
    best = float("inf")
    for _ in range(_REPEATS + 1):  # the first warms up, and cannot be the best by being cold
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
