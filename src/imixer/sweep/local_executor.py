"""Run trials in this process, one after the other."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from imixer.sweep.plan import Trial
from imixer.sweep.trial import run_trial


class LocalExecutor:
    """An executor that runs one trial after the other, in this process.

    Choose it for a single device that one trial fills; choose `RayExecutor` to run trials side by side.
    """

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, trials: Sequence[Trial], folder: Path) -> Generator[tuple[Trial, bool], None, None]:
        """Run each trial; see `Executor.run`."""
        for trial in trials:
            yield trial, True
            run_trial(trial, folder)
            yield trial, False
