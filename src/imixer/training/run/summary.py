"""Summarize runs, finished or not, damaged or not. Free of torch, so that a folder of them is listed at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from imixer.errors import InputError
from imixer.escaping import middle_cut, one_line
from imixer.reading import is_number, read_json, read_rows
from imixer.training.run.config import TrainConfig
from imixer.training.run.damage import damage
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import changed_settings, load_config
from imixer.training.run.result import best_row, read_result

RunState = Literal["finished", "training", "unfinished", "damaged"]
_RUN_FILES = frozenset(
    {"config.yaml", "environment.json", "metrics.csv", "checkpoints", "result.json", "model", "learning_curves.png"}
)
_OURS = frozenset({"environment.json", "metrics.csv", "result.json"})  # of these; a project may have the others
_METRICS = ("epoch", "val_acc", "val_loss", "seconds")


@dataclass(frozen=True)
class RunSummary:
    """The state of a run and its numbers, as far as they are there.

    Choose it for a run of which nobody knows whether it is whole; `read_result` is for one that must be.

    Args:
        run: The directory of the run.
        state: `finished`, `training` (a process has its lock), `unfinished` (`--resume` goes on), or `damaged`.
        problem: What is damaged, in words. Empty otherwise.
        data: The name of the data set.
        model: The name of the model.
        epochs: The number of epochs that were asked for.
        rows: The metrics of each epoch that is done.
        parameters: The number of trainable parameters. None before the end.
        device: The name of the device. None before the end.
        changed: When a file of the run was last written.
        settings: The settings that are not the default, by dotted name.
    """

    run: RunDirectory
    state: RunState
    problem: str
    data: str
    model: str
    epochs: int | None
    rows: tuple[Mapping[str, float], ...]
    parameters: int | None
    device: str | None
    changed: datetime
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Mapping[str, float] | None:
        """The metrics of the last epoch; None before the first."""
        return self.rows[-1] if self.rows else None

    @property
    def best(self) -> Mapping[str, float] | None:
        """The metrics of the best epoch; None before the first."""
        return best_row(self.rows) if self.rows else None


def find_run_directories(folder: Path) -> list[Path]:
    """List the directories of runs in a folder, as `runs_below` does, and refuse a folder without any.

    Args:
        folder: The folder.

    Raises:
        InputError: If there is no such folder, it cannot be listed, or it holds no run.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {middle_cut(str(folder), 80)}; give one that `imixer train` has written to")
    if not (runs := runs_below(folder)):
        raise InputError(f"{folder} holds no run; give a folder that `imixer train` or `imixer sweep` has written to")
    return runs


def runs_below(folder: Path) -> list[Path]:
    """List the directories of runs in a folder, at any depth, sorted. The folder may be a run itself.

    Runs that lost some of their files are among them. A link to a run, as `imixer reproduce` makes them, stands for it
    unless it is in the folder itself. Other links to folders are not followed.

    Args:
        folder: The folder.
    """
    runs, links, perhaps = list[Path](), list[Path](), list[Path]()
    for path, folders, files in os.walk(folder):
        present = _RUN_FILES.intersection(folders + files)
        if len(present) > 1 and present & _OURS:
            runs.append(Path(path))
            folders.clear()
            continue
        if len(present) > 1:
            perhaps.append(Path(path))
        for link in (os.path.join(path, name) for name in folders if os.path.islink(os.path.join(path, name))):
            with suppress(OSError):  # of what may not be listed
                if len(_RUN_FILES.intersection(os.listdir(link))) > 1:
                    links.append(Path(link))
    runs += [place for place in perhaps if not any(place in run.parents for run in runs)]
    places = {run.resolve(): run for run in (*sorted(links, reverse=True), *runs)}
    return sorted(places.values())


def summarize(path: Path) -> RunSummary:
    """Summarize a run. Whatever is wrong with its files becomes its state, and raises nothing.

    Args:
        path: The directory of the run.
    """
    run, problems = RunDirectory(path), list[str]()
    config: TrainConfig | None = None
    try:
        config = load_config(run.config)
    except (OSError, ValueError) as error:
        problems.append(one_line(error))
    rows = _rows(run, problems)
    if run.finished and not problems and (problem := damage(run)) is not None:
        problems.append(one_line(problem))
    result: dict[str, Any] = {}
    if run.result.is_file():
        try:
            result = asdict(read_result(run))
        except InputError as error:
            problems.append(one_line(error))
    state: RunState = "damaged" if problems else "finished" if run.finished else "unfinished"
    if state == "unfinished" and run.training:
        state = "training"
    return RunSummary(
        run=run,
        state=state,
        problem=problems[0] if problems else "",
        data=str(result.get("data") or (config.data.name if config else "")),
        model=str(result.get("model") or (config.model.name if config else "") or ""),
        epochs=config.all_epochs if config else None,
        rows=rows,
        parameters=result.get("parameters"),
        device=result.get("device"),
        changed=_changed(run),
        settings=changed_settings(config) if config else {},
    )


def _rows(run: RunDirectory, problems: list[str]) -> tuple[dict[str, float], ...]:
    try:
        rows, damaged = read_rows(run.metrics, _METRICS)
        if damaged and not run.finished:
            problems.append(f"{run.metrics} has {damaged} damaged lines")
        return tuple({name: float(row[name]) for name in row} for row in rows)
    except (OSError, ValueError) as error:
        problems.append(one_line(error))
        return ()


def _changed(run: RunDirectory) -> datetime:
    files = [run.result, run.metrics, run.config, run.path]
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in files if file.exists()))


def evaluations(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """Read the evaluations of a run that are there and whole, by where they stand: the scores of each.

    Args:
        run: The directory of the run.
    """
    there: dict[str, dict[str, Any]] = {}
    best = RunDirectory(run.best)
    for file in (run.evaluation, run.test_evaluation, best.evaluation, best.test_evaluation):
        try:
            scores = read_json(file, ["images", "data"])
        except (InputError, OSError):  # not evaluated, or damaged: `imixer evaluate` writes it again
            continue
        if is_number(scores.get("miou", scores.get("top1"))) and is_number(scores["images"]):
            there[file.relative_to(run.path).as_posix()] = scores
    return there
