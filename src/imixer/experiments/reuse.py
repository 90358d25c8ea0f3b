"""Link trials that another sweep has finished, instead of training them again."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

from imixer.sweep.plan import Trial
from imixer.sweep.results import SweepResults
from imixer.sweep.spec import SPEC, read_sweep
from imixer.sweep.sweep import Executor, changed_default


class ReuseFinishedRuns:
    """An executor that links the runs which neighbouring sweeps have finished, and lets another executor do the rest.

    Choose it where several sweeps in one folder share configurations. A run is the same if its configuration and seed
    are.

    Args:
        executor: What runs the other trials.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def __enter__(self) -> ReuseFinishedRuns:
        self._entered = self.executor.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.executor.__exit__(*exception)

    def run(self, trials: Sequence[Trial], folder: Path) -> Generator[tuple[Trial, bool], None, None]:
        """Link finished trials and run the others; see `Executor.run`."""
        finished = _finished(folder.parent)
        left: list[Trial] = []
        for trial in trials:
            run = folder / trial.name
            if run.is_symlink():  # what it leads to is gone, or no longer whole: it would not be here otherwise
                run.unlink()
            there = finished.get(_identity(trial))
            if there and not run.exists():
                with suppress(OSError):  # where the system has no links, it is trained again
                    run.symlink_to(os.path.relpath(there, run.parent), target_is_directory=True)
            if run.is_symlink():
                yield trial, False
            else:
                left.append(trial)
        yield from self._entered.run(left, folder)


def _finished(folder: Path) -> dict[tuple[str, int], Path]:
    """Find the finished runs of all sweeps in a folder, by configuration and seed."""
    finished: dict[tuple[str, int], Path] = {}
    for spec in sorted(folder.glob(f"*/{SPEC}")):
        sweep = read_sweep(str(spec))
        if changed_default(spec.parent, sweep):
            continue
        outcomes = SweepResults(sweep, spec.parent)
        for trial in sweep.trials:
            run = spec.parent / trial.name
            if not run.is_symlink() and outcomes[trial].status == "finished":
                finished[_identity(trial)] = run
    return finished


def _identity(trial: Trial) -> tuple[str, int]:
    return repr(trial.cell.config), trial.seed
