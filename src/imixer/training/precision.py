"""The arithmetic of a run: what `precision` means to Fabric and autocast, and how `auto` is decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.timing import wait_for

_ROWS, _WIDTH, _HIDDEN = 4096, 128, 512  # a channel mixing of 64 small images
_REPEATS = 5
_GAIN = 1.2  # bfloat16 must be that many times as fast, or its rounding is for nothing


FabricPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
# `TrainConfig.precision` -> Fabric's name of it, and the type that autocast computes in
_ARITHMETIC: dict[str, tuple[FabricPrecision, torch.dtype | None]] = {
    "32": ("32-true", None),
    "bf16": ("bf16-mixed", torch.bfloat16),
    "16": ("16-mixed", torch.float16),
}


def fabric_precision(precision: str) -> FabricPrecision:
    """Translate `TrainConfig.precision`, but `auto`, into the name that Fabric has for it."""
    return _ARITHMETIC[precision][0]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes as it does under Fabric.

    Args:
        precision: `TrainConfig.precision`, but `auto`.
        device: The device that computes.
    """
    dtype = _ARITHMETIC[precision][1]
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()


def set_float32_products(device: torch.device, tf32: bool) -> None:
    """Set how a CUDA device multiplies float32 matrices; others know one way.

    Args:
        device: The device that computes.
        tf32: Whether it may round to TF32.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


@dataclass(frozen=True)
class Measurement:
    """The times of one computation in two precisions.

    Args:
        float32_ms: Milliseconds of a linear layer's forward and backward in float32.
        bf16_ms: The same under autocast to bfloat16, conversions included.
    """

    float32_ms: float
    bf16_ms: float

    @property
    def precision(self) -> Literal["bf16", "32"]:
        """The faster precision: `bf16` if that is clearly faster, else `32`."""
        return "bf16" if self.bf16_ms * _GAIN <= self.float32_ms else "32"

    @property
    def summary(self) -> str:
        """A line for the user: which precision, and why."""
        return (
            f"precision auto: {self.precision}, since a {_ROWS}x{_WIDTH}x{_HIDDEN} product, forward and backward, "
            f"takes {self.bf16_ms:.1f} ms in bf16 and {self.float32_ms:.1f} ms in float32"
        )


@cache
def measure_precision(device: torch.device, tf32: bool) -> Measurement:
    """Measure how long a small linear layer takes in float32 and in bfloat16, the best of a few repeats.

    Measured once in a process for each way to multiply, so that all its runs compute alike. A measurement is needed
    since the processor's name tells nothing: without instructions for them, bfloat16 products are tens of times slower.

    Args:
        device: The device to measure on.
        tf32: Whether float32 products may round to TF32 there, as in the run.
    """
    set_float32_products(device, tf32)
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
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        best = min(best, time.perf_counter() - began)
    return best * 1e3
