"""Run a sweep, or what is left of one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import yaml

from imixer.errors import InputError
from imixer.reading import read_json
from imixer.sweep.display import live_display
from imixer.sweep.local_executor import LocalExecutor
from imixer.sweep.plan import Sweep, Trial
from imixer.sweep.results import SweepResults
from imixer.sweep.spec import SETTINGS, SPEC, read_sweep
from imixer.training.run.directory import check_out
from imixer.training.run.parsing import flatten
from imixer.writing import is_temporary, write_json, write_text


class Executor(Protocol):
    """What runs the trials of a sweep.

    It is entered before anything is written, and may then refuse what it was given. Choose `LocalExecutor` or
    `RayExecutor`, or write one for another scheduler.
    """

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exception: object) -> None: ...

    def run(self, trials: Sequence[Trial], folder: Path) -> Generator[tuple[Trial, bool], None, None]:
        """Run each trial by `run_trial`.

        Args:
            trials: The trials.
            folder: Folder of the sweep.

        Yields:
            A trial with True as it begins, and with False as it ends.
        """


def run_sweep(
    sweep: Sweep,
    out: str | None = None,
    executor: Executor | None = None,
    trials: Sequence[Trial] | None = None,
) -> SweepResults:
    """Train the trials of a sweep that are not finished, and keep `results.csv` and `summary.csv` up to date.

    A trial that fails is recorded with its reason, and the others go on.

    Args:
        sweep: The sweep.
        out: Its folder, which may hold an earlier start of the same sweep or of part of it. Default: `sweeps/<name>`.
        executor: What runs the trials. Default: `LocalExecutor()`.
        trials: Trials of the sweep to run. Default: all.

    Returns:
        The outcome of every trial.

    Raises:
        InputError: If the folder holds something else, or the executor cannot run. Nothing is written then.
        KeyboardInterrupt: When interrupted; the message says what is done.
    """
    folder = Path(out or f"sweeps/{sweep.name}")
    check_folder(folder, sweep)
    results = SweepResults(sweep, folder)
    chosen = sweep.trials if trials is None else trials
    left = [trial for trial in chosen if results[trial].status != "finished"]
    with executor if executor and left else LocalExecutor() as entered:  # no cluster is started for nothing
        _prepare(folder, sweep)
        results.write()
        with live_display(results) as shown:
            try:
                with closing(entered.run(left, folder)) as events:
                    for trial, running in events:
                        results.note(trial, running)
                        shown.note(trial)
            except KeyboardInterrupt as error:  # keeps its class, which may say more
                finished = len(results.with_status("finished"))
                error.args = (f"with {finished} of {len(sweep.trials)} trials finished; the same command goes on",)
                raise
            finally:
                results.stop()
    return results


def check_folder(folder: Path, sweep: Sweep) -> None:
    """Check that a sweep can be written to a folder, without writing.

    Args:
        folder: The folder.
        sweep: The sweep.

    Raises:
        InputError: If the folder is taken, and not by this sweep or part of it.
    """
    if (folder / SPEC).is_file():
        if problem := _difference(folder, sweep):
            raise InputError(f"out: {folder} holds another sweep: {problem}; give another --out")
    elif not folder.is_dir() or any(not is_temporary(file) for file in folder.iterdir()):
        check_out(str(folder))


def _prepare(folder: Path, sweep: Sweep) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / SPEC, yaml.safe_dump(sweep.spec, sort_keys=False))
        write_json(folder / SETTINGS, _all_settings(sweep))
        for cell in sweep.cells:
            (folder / cell.name).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {error.filename} cannot be made, {error.strerror}") from error


def _difference(folder: Path, new: Sweep) -> str | None:
    """Name the first cell, setting or seed of the sweep in a folder that a new one lacks or has otherwise."""
    old = read_sweep(str(folder / SPEC))
    there, here = _recorded_settings(folder, old), _all_settings(new)
    seeds = {cell.name: set(cell.seeds) for cell in new.cells}
    for cell in old.cells:
        if cell.name not in here:
            return f"it has a cell {cell.name}, and this one has not"
        if changed := _first_change(cell.name, there[cell.name], here[cell.name]):
            return changed
    for cell in old.cells:
        if gone := set(cell.seeds) - seeds[cell.name]:
            return f"it has seed {min(gone)}, and this one has not"
    return None


def changed_default(folder: Path, sweep: Sweep) -> str | None:
    """Name the first setting that trials in a folder have otherwise than its specification says now.

    A specification has the settings that were given. The others may have had other defaults when it was written.

    Args:
        folder: Folder of the sweep.
        sweep: The sweep in it, as its specification is read now.

    Returns:
        None if there is none.

    Raises:
        InputError: If the file of all settings is damaged.
    """
    there, here = _recorded_settings(folder, sweep), _all_settings(sweep)
    return next(filter(None, (_first_change(name, there[name], here[name]) for name in here)), None)


def _first_change(cell: str, there: dict[str, str], here: dict[str, str]) -> str | None:
    for field in there | here:
        if there.get(field) != here.get(field):
            return f"{field} of cell {cell} is {there.get(field)} there and {here.get(field)} here"
    return None


def _recorded_settings(folder: Path, sweep: Sweep) -> dict[str, dict[str, str]]:
    """Return the settings of a sweep as they were when it was written: options come and go with releases."""
    recorded = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    return {
        cell: {field: recorded.get(cell, {}).get(field, value) for field, value in settings.items()}
        for cell, settings in _all_settings(sweep).items()
    }


def _all_settings(sweep: Sweep) -> dict[str, dict[str, str]]:
    return {
        cell.name: {field: repr(value) for field, value in flatten(asdict(cell.config)).items()} for cell in sweep.cells
    }
