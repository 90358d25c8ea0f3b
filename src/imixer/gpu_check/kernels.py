"""Profile training steps, and name the kernels that take the most time."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from imixer.gpu_check.journal import Bench
from imixer.gpu_check.speed import CASES, CLASSES, TINY_CASES, Case, config_of, step_of
from imixer.timing import wait_for

_LARGEST = 10
_STEPS = 3
_LONGEST_NAME = 90


def _profile(bench: Bench, case: Case) -> None:
    config = config_of(case, bench)
    images = torch.randn(config.data.batch_size, 3, case.size, case.size, device=bench.device)
    targets = torch.arange(len(images), device=bench.device) % CLASSES
    on_gpu = bench.device.type == "cuda"
    steps = 1 if bench.tiny else _STEPS
    step, _ = step_of(config, case.size)
    for _ in range(steps):
        step(images, targets)
    wait_for(bench.device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step(images, targets)
        wait_for(bench.device)

    def microseconds(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = sorted(profiled.key_averages(), key=microseconds, reverse=True)
    total = sum(map(microseconds, events)) or 1.0
    if on_gpu:  # the host's calls are recorded too, and take the device no time
        events = [event for event in events if microseconds(event) > 0]
    bench.note(
        f"{case.model} at {case.images}: {sum(event.count for event in events) / steps:,.0f} "
        f"{'kernels and copies' if on_gpu else 'calls'} a step, {total / steps / 1e3:.3g} ms a step in all of them."
    )
    for event in events[:_LARGEST]:
        bench.row(
            f"{case.model} at {case.images}, eager",
            kernel=event.key[:_LONGEST_NAME],
            share_percent=100 * microseconds(event) / total,
            ms_a_step=microseconds(event) / steps / 1e3,
            calls_a_step=event.count / steps,
        )


def run(bench: Bench) -> None:
    """Write down the largest kernels of a step at 32x32 and of one at 224x224."""
    torch.set_float32_matmul_precision("high")
    for case in TINY_CASES[:1] if bench.tiny else (CASES[0], CASES[3]):
        if not bench.skipped(case.images):
            _profile(bench, case)
