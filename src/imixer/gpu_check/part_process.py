"""Run parts of the check one after the other, each in a process of its own that is ended at its limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from imixer.errors import in_short
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.part_list import PARTS, Part
from imixer.notices import notices_on_stderr
from imixer.training.devices import device_name

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


def name_device() -> str | None:
    """Name the CUDA device, as a process of its own says: this one must not touch it. None if that fails.

    The first part will say what is wrong.
    """
    context = processes()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_name, args=(sender,))
    process.start()
    sender.close()
    try:
        name: str | None = receiver.recv()
    except EOFError:
        name = None
    process.join()
    return name


def _send_name(sender: Any) -> None:
    sender.send(device_name(torch.device("cuda")))


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
    if not parts:
        return
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
        try:
            while process.is_alive() and time.monotonic() < ends_at:
                process.join(_POLL_S)
                if (now := bench.journal.path.stat().st_size) != size:
                    size = now
                    draw()
        finally:  # interrupted, too
            if how := _end(process):
                bench.journal.append({"part": part.name, "ended": how, "seconds": time.monotonic() - began})
            draw()


def _nothing() -> None:
    """Make a process wait until all is imported."""


def _work(name: str, bench: Bench) -> None:
    """Do a part in this process, with its output in a log, and write down how it ended."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that it can be ended together with whatever it starts
        threading.Thread(target=_end_after_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it writes down how far it came
    log = bench.folder.with_name(f"{bench.folder.name}.log").open("w", buffering=1, encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    part = next(part for part in PARTS if part.name == name)
    began = time.monotonic()
    try:
        with notices_on_stderr():
            part.load()(bench)
        how = "finished" if bench.complete else "at its limit"
    except KeyboardInterrupt:  # by SIGTERM
        how = "cut off"
    except BaseException as error:
        traceback.print_exc()
        how = f"failed: {type(error).__name__}: {in_short(error)}"
    bench.journal.append({"part": name, "ended": how, "seconds": time.monotonic() - began})


def _end_after_parent() -> None:
    """Wait until the parent is no more, killed perhaps, and end this process with all that it started."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGTERM)
        time.sleep(_GRACE_S)
        os.killpg(0, signal.SIGKILL)


def _end(process: BaseProcess) -> str | None:
    """End a process, with all that it started. Say how it ended, if it could not do so itself."""
    was_alive = process.is_alive()
    if was_alive:
        _signal(process, signal.SIGTERM)
        process.join(_GRACE_S)
    wrote = process.exitcode == 0
    _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))  # what it started may have outlived it
    process.join()
    if wrote:
        return None
    return "cut off" if was_alive else f"failed: its process ended with exit code {process.exitcode}"


def _signal(process: BaseProcess, number: int) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid or 0, number)
        else:
            process.terminate()
    except ProcessLookupError:  # it has just ended, and all that it started
        pass
