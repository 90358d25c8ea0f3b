"""Say what a promise is that a device keeps or breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Place:
    """Where a promise is tried.

    Args:
        device: The device.
        folder: An empty folder to write to.
    """

    device: torch.device
    folder: Path


@dataclass(frozen=True)
class Promise:
    """A promise about a device, and how to try it.

    Args:
        name: The promise, in words.
        attempt: Tries it. It raises an AssertionError if the promise is broken, and may return how far off it was.
        only_cuda: Whether a CPU cannot try it.
        slow: Whether it takes more than a second on a CPU.
    """

    name: str
    attempt: Callable[[Place], float | None]
    only_cuda: bool = False
    slow: bool = False


def relative_distance(computed: Any, expected: Any) -> float:
    """Measure the distance of some tensors from others, over the length of the latter, in float64 on the CPU.

    Args:
        computed: A tensor, or a sequence of tensors.
        expected: Likewise, of the same shapes.
    """
    computed, expected = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (computed, expected))
    a, b = (torch.cat([t.detach().double().cpu().flatten() for t in side]) for side in (computed, expected))
    assert b.norm() > 0, "there is nothing to compare: all that is expected is 0"
    return float((a - b).norm() / b.norm())


def at_most(error: float, bound: float) -> float:
    """Return an error that is within its bound.

    Raises:
        AssertionError: If it is larger, or no number.
    """
    assert error <= bound, f"it is {error:.3g} off, and {bound:.3g} is allowed"
    return error
