"""Describe what a run is computed with: versions, hardware and threads."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning
import timm
import torch

import imixer

_FULL_HASH = ("--always", "--dirty", "--abbrev=40", "--exclude=*")
# What the same seed needs besides, to give the same numbers: others add in another order, or draw otherwise.
_DECISIVE = ("imixer", "commit", "torch", "timm", "cpu", "cpu_capability", "torch_threads", "gpus")


def environment() -> dict[str, Any]:
    """Describe versions, commit, processor, threads and accelerators.

    The commit is None outside a checkout of git, and ends in `-dirty` if files were changed since.
    """
    return {
        "imixer": imixer.__version__,
        "commit": _commit(Path(imixer.__file__)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Find what may make numbers differ between two sessions of a run.

    Args:
        before: The environment of the session that began the run.
        now: The environment of the session that resumes it.

    Returns:
        The entries of `now` that have other values in `before`. An entry that `before` lacks is no change.
    """
    return {name: now[name] for name in _DECISIVE if before.get(name, now[name]) != now[name]}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return platform.processor() or platform.machine()


def _commit(file: Path) -> str | None:
    """Return the commit of the checkout that tracks a file. A checkout may surround a file without tracking it."""
    git = ["git", "-C", str(file.parent)]
    commands = ([*git, "ls-files", "--error-unmatch", file.name], [*git, "describe", *_FULL_HASH])
    try:
        done = [subprocess.run(each, capture_output=True, text=True, check=True, timeout=10) for each in commands]
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        return None
    return done[-1].stdout.strip()
