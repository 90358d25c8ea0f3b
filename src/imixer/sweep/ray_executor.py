"""Run trials side by side on Ray: on this machine, or on a cluster whose machines share a file system."""

from __future__ import annotations

import math
import os
import platform
import signal
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from imixer.errors import InputError
from imixer.extras import require_extra
from imixer.progress import announce
from imixer.sweep.plan import Trial
from imixer.sweep.spec import RAY_LOG
from imixer.sweep.trial import is_training, log_file, record_failure, run_trial
from imixer.training.stop_signals import Interrupted, interrupt

_POLL_S = 0.5
_ORPHANS_S = 20  # seconds
_SAVING_S = 120  # seconds for running trials to save a checkpoint when interrupted
_QUIET: dict[str, Any] = dict(log_to_driver=False, logging_level="ERROR")
_OBJECT_STORE = 100 * 2**20  # bytes; trials exchange nothing but their configuration


@dataclass
class RayExecutor:
    """An executor that gives each trial a process and a share of a Ray cluster's CPUs and GPUs.

    Choose it where there are several GPUs, several machines, or models too small to keep a machine busy. A trial whose
    process or machine is lost goes on from its latest checkpoint. PyTorch gets as many threads as the trial has CPUs.
    Settings that name files are relative to the present folder, on every machine.

    Args:
        address: A running cluster, such as `host:6379` or `auto`. Default: one on this machine, for the time it takes.
        cpus: CPUs of a trial. Default: per device one, and one for each loader process, or as many as a machine has.
        gpus: GPUs of a trial, of which several trials may share one. Default: one per device if the cluster has any
            and the trial is not for CPU.
        retries: How often a lost trial is started again.

    Raises:
        InputError: If a number is impossible, or Ray is not installed; when entered, if there is no cluster, or this
            machine has less than a trial's share.
    """

    address: str | None = None
    cpus: int | None = None
    gpus: float | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise InputError(f"cpus is {self.cpus}; give 1 or more")
        if self.gpus is not None and (not 0 <= self.gpus < math.inf or (self.gpus > 1 and self.gpus % 1)):
            raise InputError(f"gpus is {self.gpus}; give 0, a share of one such as 0.5, or a whole number")
        if self.retries < 0:
            raise InputError(f"retries is {self.retries}; give 0 or more")
        require_extra("cluster", "--executor ray")

    def __enter__(self) -> RayExecutor:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._at_sigterm, self._stopped_by = signal.getsignal(signal.SIGTERM), int(signal.SIGINT)
        if self.address is None:
            self._start()
        else:
            _connect(self.address)
            for name, wanted, there in self._shares():
                if wanted is not None and wanted > there:
                    announce(f"{name} is {wanted:g}, and no machine there has more than {there:g}; waiting for one")
        signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        signal.signal(signal.SIGTERM, self._at_sigterm)
        ray.shutdown()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped_by = number
        interrupt(number, frame)

    def run(self, trials: Sequence[Trial], folder: Path) -> Generator[tuple[Trial, bool], None, None]:
        """Run the trials side by side; see `Executor.run`."""
        import ray

        task = ray.remote(max_retries=self.retries, retry_exceptions=True)(_run_trial)
        tasks: dict[Any, Trial] = {}
        logged = {trial: _log_size(trial, folder) for trial in trials}
        for trial in trials:
            cpus, gpus = self._share(trial)
            tasks[task.options(num_cpus=cpus, num_gpus=gpus).remote(trial, folder, os.getcwd(), cpus)] = trial
        begun: set[Trial] = set()
        with (folder / RAY_LOG).open("a", encoding="utf-8") as file, redirect_stdout(file):  # what Ray prints of losses
            try:
                while tasks:
                    done, _ = ray.wait(list(tasks), timeout=_POLL_S)
                    for trial in tasks.values():
                        if trial not in begun and _log_size(trial, folder) > logged[trial]:
                            begun.add(trial)
                            yield trial, True
                    for reference in done:
                        trial = tasks.pop(reference)
                        try:
                            ray.get(reference)
                        except ray.exceptions.RayError as error:
                            cause = getattr(error, "cause", error)  # without Ray's traceback
                            record_failure(folder / trial.name, f"{type(cause).__name__}: {cause}")
                        yield trial, False
            except KeyboardInterrupt as error:  # Ray raises its own, which does not know the signal
                raise Interrupted(str(error), self._stopped_by) from error
            finally:
                if tasks:
                    announce("stopping: running trials save a checkpoint first")
                    for reference in tasks:
                        ray.cancel(reference)
                    ray.wait(list(tasks), num_returns=len(tasks), timeout=_SAVING_S)

    def _start(self) -> None:
        import ray

        ray.init("local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **_QUIET)
        for name, wanted, there in self._shares():
            if wanted is not None and wanted > there:  # Ray would wait for a larger machine, for ever
                ray.shutdown()
                raise InputError(f"{name} is {wanted:g}, and this machine has {there:g}; give at most that")

    def _shares(self) -> tuple[tuple[str, float | None, float], ...]:
        """Return what a trial is to have, by name, and the most that a machine has of it."""
        return (("cpus", self.cpus, _most("CPU")), ("gpus", self.gpus, _most("GPU")))

    def _share(self, trial: Trial) -> tuple[int, float]:
        config, gpus = trial.cell.config, self.gpus
        if gpus is None:
            gpus = min(config.devices, _most("GPU")) if config.accelerator != "cpu" else 0
        cpus = self.cpus or min(config.devices * (1 + config.data.workers), _most("CPU", gpus))
        return max(1, int(cpus)), gpus


def _connect(address: str) -> None:
    import ray

    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # if nobody listens, Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address, **_QUIET)
    except Exception as error:  # of many kinds
        raise InputError(
            f"address is {address}, and no Ray cluster lets us in there: {error}; "
            "if it asks for a token, set RAY_AUTH_MODE=token"
        ) from error


def _most(resource: str, gpus: float = 0) -> float:
    """Find the most that a machine of the cluster has of a resource, among those with so many GPUs."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max((m.get(resource, 0) for m in machines if m.get("GPU", 0) >= gpus), default=0)


def _run_trial(trial: Trial, folder: Path, here: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what Ray interrupts by; ignored by processes of `... &`
    import torch

    try:
        os.chdir(here)
    except OSError as error:
        raise InputError(f"{here} is not on {platform.node()}; the machines must share a file system") from error
    torch.set_num_threads(threads)
    for _ in range(_ORPHANS_S):  # processes of a worker that was killed hold the trial's lock until they notice
        if not is_training(folder / trial.name):
            break
        time.sleep(1)
    try:
        run_trial(trial, folder)
    except KeyboardInterrupt as error:  # unless the whole sweep is stopped, Ray goes on with the trial elsewhere
        raise RuntimeError(f"stopped {error}") from error


def _log_size(trial: Trial, folder: Path) -> int:
    """Count the bytes of a trial's log, which grows as soon as the trial begins."""
    file = log_file(folder / trial.name)
    return file.stat().st_size if file.exists() else 0
