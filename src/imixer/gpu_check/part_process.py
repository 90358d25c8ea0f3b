"""Run parts of the check one after the other, each in a process of its own that is ended at its limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from imixer.gpu_check.journal import Bench
from imixer.gpu_check.part_list import PARTS, Part
from imixer.notices import notices_on_stderr

_POLL_S = 0.5
_GRACE_S = 5.0  # to write a line, after SIGTERM


def processes() -> Any:
    """Return what starts a process that has imported torch already, and has not yet touched a device.

    A process that is forked after its parent has touched CUDA cannot touch it. The server that forks here never does.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["imixer.training.train", "matplotlib.pyplot", *(part.path for part in PARTS)])
    return context


def run_parts(
    parts: Sequence[Part], benches: Callable[[Part, float], Bench], minutes: float, draw: Callable[[], None]
) -> None:
    """Run parts in order. What one leaves of its time, those after it have.

    Args:
        parts: The parts.
        benches: Makes what a part works with, of the part and of the moment at which it is to end.
        minutes: Minutes that all parts together may take.
        draw: Draws the page; called whenever something was written down.
    """
    begins = time.monotonic()
    context = processes()
    imports = context.Process(target=_nothing)  # at no part's expense
    imports.start()
    imports.join()
    ends_at = time.monotonic()
    scale = (minutes * 60 - (ends_at - begins)) / sum(part.share for part in parts)
    for part in parts:
        ends_at += part.share * scale
        bench = benches(part, ends_at)
        bench.journal.append({"part": part.name, "begins": time.time()})
        process = context.Process(target=_work, args=(part.name, bench))
        began = time.monotonic()
        process.start()
        size = -1
        while process.is_alive() and time.monotonic() < ends_at:
            process.join(_POLL_S)
            if (now := bench.journal.path.stat().st_size) != size:
                size = now
                draw()
        if how := _end(process):
            bench.journal.append({"part": part.name, "ended": how, "seconds": time.monotonic() - began})
        draw()


def _nothing() -> None:
    """Make a process wait until all is imported."""


def _work(name: str, bench: Bench) -> None:
    """Do a part in this process, with its output in a log, and write down how it ended."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that it can be ended together with whatever it starts
    log = (bench.folder.parent / f"{name}.log").open("w", buffering=1, encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    part = next(part for part in PARTS if part.name == name)
    began = time.monotonic()
    how = "finished"
    try:
        with notices_on_stderr():
            part.load()(bench)
    except KeyboardInterrupt:  # by SIGTERM, in training
        how = "cut off"
    except BaseException as error:
        traceback.print_exc()
        how = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    bench.journal.append({"part": name, "ended": how, "seconds": time.monotonic() - began})


def _end(process: BaseProcess) -> str | None:
    """End a process that is still there, with all that it started. Say how it ended, if it could not do so itself."""
    if not process.is_alive():
        return None if process.exitcode == 0 else f"failed: its process ended with exit code {process.exitcode}"
    _signal(process, signal.SIGTERM)
    process.join(_GRACE_S)
    wrote = process.exitcode == 0
    _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.join()
    return None if wrote else "cut off"


def _signal(process: BaseProcess, number: int) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid or 0, number)
        else:
            process.terminate()
    except ProcessLookupError:  # it has just ended, and all that it started
        pass
