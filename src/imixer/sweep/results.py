"""Read from the run directories what has become of a sweep's trials, and write it as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from imixer.errors import InputError
from imixer.reading import read_rows
from imixer.sweep.plan import Sweep, SweepCell, Trial
from imixer.sweep.spec import RESULTS, SUMMARY, setting_text
from imixer.sweep.trial import failure_reason
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import load_config
from imixer.training.run.result import METRIC_NAMES, best_row, metric_of
from imixer.writing import csv_text, write_text

Status = Literal["waiting", "running", "unfinished", "failed", "finished"]


@dataclass(frozen=True)
class TrialOutcome:
    """How far a trial has come.

    Args:
        status: Whether it waits, runs, failed or is finished. An `unfinished` trial has begun, but not in this process:
            it was interrupted, or another process trains it.
        epoch: Its last complete epoch, of which accuracy and loss are. 0 before the first.
        epochs: Epochs that it trains. None before it has begun, where steps, a budget or minutes decide.
        val_acc: Top-1 accuracy on the validation data, from 0 to 1.
        val_loss: Validation loss.
        best_epoch: Epoch of the highest score, the first if there are several. 0 before the first.
        best_val_acc: Accuracy of that epoch. It is optimistic: the epoch is chosen on the same data.
        seconds: Training time, as in `metrics.csv`.
        error: Reason of the failure; empty if there is none.
        score: What the trials of a task are compared by, from 0 to 1: `val_acc`, or the mean IoU of a segmentation.
        best_score: The same after the best epoch.
    """

    status: Status
    epoch: int = 0
    epochs: int | None = None
    val_acc: float | None = None
    val_loss: float | None = None
    best_epoch: int = 0
    best_val_acc: float | None = None
    seconds: float | None = None
    error: str = ""
    score: float | None = None
    best_score: float | None = None


@dataclass(frozen=True)
class CellSummary:
    """Mean and standard deviation of a metric over the finished trials of a cell.

    Args:
        trials: Number of finished trials.
        planned: Number of trials that the cell will have.
        mean: Mean. None without a finished trial.
        std: Standard deviation of the sample (n - 1 in the denominator). None below two trials, or where one is not
            finite.
    """

    trials: int
    planned: int
    mean: float | None = None
    std: float | None = None


class SweepResults:
    """The outcomes of a sweep's trials, as they are on disk at the moment.

    Choose it to look at a sweep that another process runs, or that is over. `results[trial]` is the outcome of a trial.

    Args:
        sweep: The sweep.
        folder: Its folder.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep = sweep
        self.folder = folder
        self._running: set[Trial] = set()
        self._finished: dict[Trial, TrialOutcome] = {}
        self._begun: dict[Trial, int] = {}  # epochs, where the run alone knows them

    def __getitem__(self, trial: Trial) -> TrialOutcome:
        if trial not in self._finished:
            outcome = self._read(trial)
            if outcome.status != "finished":
                return outcome
            self._finished[trial] = outcome  # it stays so
        return self._finished[trial]

    def _read(self, trial: Trial) -> TrialOutcome:
        run = RunDirectory(self.folder / trial.name)
        by = self.decisive
        rows, damaged = read_rows(run.metrics, tuple(dict.fromkeys(("epoch", "val_acc", "val_loss", "seconds", by))))
        metrics: dict[str, Any] = {"epochs": self._planned_epochs(trial)}
        if rows:
            metrics |= {name: float(rows[-1][name]) for name in ("val_acc", "val_loss", "seconds")}
            best = best_row([{name: float(row[name]) for name in ("epoch", "val_acc", "val_loss", by)} for row in rows])
            metrics |= {"best_val_acc": float(best["val_acc"]), "best_epoch": int(float(best["epoch"]))}
            metrics |= {"score": float(rows[-1][by]), "best_score": float(best[by])}
            metrics["epoch"] = int(float(rows[-1]["epoch"]))
        if run.finished and rows and not damaged:
            return TrialOutcome("finished", **metrics)
        if trial in self._running:
            return TrialOutcome("running", **metrics)
        if (error := failure_reason(run.path)) is not None:
            return TrialOutcome("failed", **metrics, error=error)
        return TrialOutcome("unfinished" if run.path.exists() else "waiting", **metrics)

    def _planned_epochs(self, trial: Trial) -> int | None:
        """Return the epochs that a trial trains; None where only a run can tell, and it has not begun."""
        if trial.cell.epochs is not None:
            return trial.cell.epochs
        if trial not in self._begun:
            try:
                self._begun[trial] = load_config(RunDirectory(self.folder / trial.name).config).all_epochs
            except InputError:  # not begun, or damaged
                return None
        return self._begun[trial]

    def with_status(self, *statuses: Status) -> list[Trial]:
        """List the trials that have one of some statuses, in the order of the sweep."""
        return [trial for trial in self.sweep.trials if self[trial].status in statuses]

    def mean(self, cell: SweepCell, metric: str = "val_acc") -> CellSummary:
        """Average a metric over the finished trials of a cell.

        Args:
            cell: The cell.
            metric: `score`, `best_score`, `val_acc`, `best_val_acc`, `val_loss` or `seconds`.
        """
        outcomes = [self[Trial(cell, seed)] for seed in cell.seeds]
        finished = [outcome for outcome in outcomes if outcome.status == "finished"]
        values = [value for outcome in finished if (value := getattr(outcome, metric)) is not None]
        finite = all(map(math.isfinite, values))  # of others `stdev` fails
        return CellSummary(
            len(finished),
            len(outcomes),
            fmean(values) if values else None,
            stdev(values) if len(values) > 1 and finite else None,
        )

    @cached_property
    def decisive(self) -> str:
        """The metric that trials are compared by: that of their task, and accuracy where tasks differ."""
        metrics = {metric_of(cell.config.task) for cell in self.sweep.cells}
        return metrics.pop() if len(metrics) == 1 else "val_acc"

    @property
    def metric(self) -> str:
        """The same in a word, for the head of a column."""
        return "acc" if self.decisive == "val_acc" else METRIC_NAMES[self.decisive]

    def note(self, trial: Trial, running: bool) -> None:
        """Take down that a trial of this process begins or ends, and write the tables.

        Args:
            trial: The trial.
            running: True if it begins, False if it ends.
        """
        (self._running.add if running else self._running.discard)(trial)
        self.write()

    def stop(self) -> None:
        """Take down that no trial of this process runs any more, and write the tables."""
        self._running.clear()
        self.write()

    def write(self) -> None:
        """Write `results.csv`, a row per trial, and `summary.csv`, a row per cell, each whole or not at all."""
        fields = list(dict.fromkeys(field for cell in self.sweep.cells for field in cell.settings))
        own = {} if self.decisive == "val_acc" else {"score": self.decisive, "best_score": f"best_{self.decisive}"}
        columns = {name: own.get(name, name) for name in TrialOutcome.__dataclass_fields__}
        if not own:
            del columns["score"], columns["best_score"]  # which are the accuracies
        rows: list[list[Any]] = [
            [
                trial.cell.name,
                *_values(trial.cell, fields),
                trial.seed,
                *(getattr(self[trial], name) for name in columns),
            ]
            for trial in self.sweep.trials
        ]
        _write_csv(self.folder / RESULTS, ["cell", *fields, "seed", *columns.values()], rows)
        metrics = {"val_acc": "val_acc"} | ({"score": self.decisive} if own else {})
        rows = []
        for cell in self.sweep.cells:
            means = [self.mean(cell, metric) for metric in metrics]
            numbers = [value for each in means for value in (each.mean, each.std)]
            rows.append([cell.name, *_values(cell, fields), means[0].trials, means[0].planned, *numbers])
        names = [f"{metric}_{kind}" for metric in metrics.values() for kind in ("mean", "std")]
        _write_csv(self.folder / SUMMARY, ["cell", *fields, "trials", "planned", *names], rows)


def _values(cell: SweepCell, fields: Iterable[str]) -> list[str]:
    return [setting_text(cell.settings[field]) if field in cell.settings else "" for field in fields]


def _write_csv(file: Path, header: list[str], rows: list[list[Any]]) -> None:
    shortened = ([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    write_text(file, csv_text(header, shortened))
