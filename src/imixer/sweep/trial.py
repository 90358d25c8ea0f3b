"""Train or continue one trial, with its output in a log."""

from __future__ import annotations

import fcntl
import os
import platform
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from shutil import rmtree
from typing import TextIO

from imixer.errors import InputError
from imixer.notices import notices_on_stderr
from imixer.sweep.plan import Trial
from imixer.training.run.config import TaskName, TrainConfig
from imixer.training.run.directory import RunDirectory, is_locked

_FAILED = "failed: "
_TAIL = 8192  # bytes, more than the longest reason


def run_trial(trial: Trial, folder: Path) -> None:
    """Train a trial of a sweep, from its latest checkpoint if there is one.

    Its output goes to its log, and so does the reason if it fails. Only an interruption is raised. A trial that
    another process trains is left to it, with its log: several may work on one sweep.

    Args:
        trial: The trial.
        folder: Folder of the sweep.
    """
    run = folder / trial.name
    with log_file(run).open("a", buffering=1, encoding="utf-8") as file:
        # the log is there before the run directory is, and so is its lock
        if not _lock(file) or RunDirectory(run).training:
            return
        with redirect_stdout(file), redirect_stderr(file), notices_on_stderr():
            _train(trial, folder)


def is_training(run: Path) -> bool:
    """Tell whether a process trains a trial.

    Args:
        run: The run directory, which need not be there yet.
    """
    return is_locked(log_file(run)) or RunDirectory(run).training


def _lock(log: TextIO) -> bool:
    """Lock a log until it is closed; False if another process has it."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _train(trial: Trial, folder: Path) -> None:
    run = folder / trial.name
    begin, go_on = _ways(trial.cell.config.task)
    print(f"process {os.getpid()} on {platform.node()}")
    try:
        if RunDirectory(run).config.is_file():
            go_on(str(run))
        else:
            _remove_empty(RunDirectory(run))
            begin(trial.config(folder))
    except InputError as error:
        record_failure(run, str(error))
    except Exception as error:  # whatever it is, the other trials go on
        traceback.print_exc()
        record_failure(run, f"{type(error).__name__}: {error}")


def _remove_empty(run: RunDirectory) -> None:
    """Remove the directory of a run that was lost before there was anything.

    Raises:
        InputError: If there is a checkpoint or a model in it, which nobody could train again in no time.
    """
    for folder in (run.checkpoints, run.model):
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{run.path} has lost its config.yaml, and {folder.name} is there; restore it from another trial's, "
                "or remove the directory, and the trial is trained anew"
            )
    if run.path.exists():
        rmtree(run.path)


def _ways(task: TaskName) -> tuple[Callable[[TrainConfig], object], Callable[[str], object]]:
    """Return how a run of a task is begun, and how it goes on."""
    if task == "anomaly":
        from imixer.analysis.anomaly.detector_run import resume_detector, train_detector

        return train_detector, resume_detector
    from imixer.training.train import resume, train

    return train, resume


def record_failure(run: Path, reason: str) -> None:
    """Append to the log of a run why it failed.

    Args:
        run: The run directory.
        reason: The reason, which is cut if it is very long.
    """
    with log_file(run).open("a", encoding="utf-8") as file:
        file.write(f"{_FAILED}{' '.join(reason.split())[: _TAIL // 8]}\n")


def failure_reason(run: Path) -> str | None:
    """Read from the log of a run why its last attempt failed; None if it did not."""
    try:
        with log_file(run).open("rb") as file:
            file.seek(max(0, log_file(run).stat().st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    return lines[-1][len(_FAILED) :] if lines and lines[-1].startswith(_FAILED) else None


def log_file(run: Path) -> Path:
    """Name the log of a run. It lies beside the run directory, which must not exist before training."""
    return run.with_name(f"{run.name}.log")
