"""Wait for a device, and time what it does."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_BETWEEN_WAITS = 10  # calls: as many as a clock may lag behind


def wait_for(device: torch.device) -> None:
    """Wait until a device has done its work, so that a clock tells how long that took.

    Args:
        device: The device. A CPU does its work at once.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def milliseconds(work: Callable[[], object], device: torch.device, least_s: float = 0.3) -> float:
    """Measure the milliseconds of one call, which is repeated until the clock can tell.

    Args:
        work: What to call. It should have been called before, since a first call chooses kernels and takes memory.
        device: The device that does the work.
        least_s: Seconds to go on for, at least.
    """
    wait_for(device)
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < least_s:
        work()
        calls += 1
        if device.type == "cpu" or calls % _BETWEEN_WAITS == 0:
            wait_for(device)
    wait_for(device)
    return (time.perf_counter() - began) / calls * 1e3


def peak_memory(work: Callable[[], object], device: torch.device) -> int | None:
    """Measure the most bytes that torch holds on a GPU during one call, what it held before included.

    Args:
        work: What to call.
        device: The device that does the work.

    Returns:
        The bytes; None on a CPU, where torch does not count them.
    """
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    wait_for(device)
    return torch.cuda.max_memory_allocated(device)
