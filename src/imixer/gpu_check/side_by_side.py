"""Run trials side by side on one device, since a small model alone leaves most of a GPU idle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from imixer.gpu_check.part_process import processes
from imixer.sweep.plan import Trial
from imixer.sweep.trial import record_failure, run_trial

_POLL_S = 0.2


class SideBySide:
    """An executor that runs several trials at once, each in a process of its own, those of one seed together.

    Choose it for small models on one large GPU; choose `imixer.sweep.ray_executor.RayExecutor` for several devices.

    Args:
        at_once: Trials at once.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._running: dict[Trial, BaseProcess] = {}

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._running.values():
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM)
        for process in self._running.values():
            process.join()

    def run(self, trials: Sequence[Trial], folder: Path) -> Generator[tuple[Trial, bool], None, None]:
        """Run each trial; see `imixer.sweep.sweep.Executor.run`."""
        context = processes()
        left = sorted(trials, key=lambda trial: trial.seed)  # pairs first, as whatever is cut off leaves more of them
        while left or self._running:
            while left and len(self._running) < self.at_once:
                trial = left.pop(0)
                process = context.Process(target=run_trial, args=(trial, folder))
                yield trial, True
                process.start()
                self._running[trial] = process  # once there is one to end
            for trial, process in list(self._running.items()):
                if not process.is_alive():
                    process.join()
                    del self._running[trial]
                    if process.exitcode:  # killed, for want of memory perhaps: it could not write why
                        record_failure(folder / trial.name, f"its process ended with exit code {process.exitcode}")
                    yield trial, False
            time.sleep(_POLL_S)
