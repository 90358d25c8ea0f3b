"""What has become of a sweep's trials, read from their directories."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from imixer.escaping import for_csv
from imixer.reading import read_rows
from imixer.sweep.plan import Cell, Sweep, Trial
from imixer.sweep.spec import RESULTS, SUMMARY, setting_text
from imixer.sweep.trial import failure_reason
from imixer.training.run.directory import RunDirectory
from imixer.writing import write_text

Status = Literal["waiting", "running", "unfinished", "failed", "finished"]


@dataclass(frozen=True)
class TrialOutcome:
    """How far a trial has come.

    Args:
        status: `unfinished` is begun, and not of this process: interrupted, or run by another.
        epoch: Its last complete epoch; the figures are of this epoch. 0 before the first.
        val_acc: Top-1 accuracy on the validation data, from 0 to 1.
        val_loss: Validation loss.
        best_epoch: The epoch of the highest accuracy, the first if there are several. 0 before the first.
        best_val_acc: That accuracy. It is chosen on the data that it is measured on: an optimistic figure.
        seconds: Training time, as in `metrics.csv`.
        error: Why it failed.
    """

    status: Status
    epoch: int = 0
    val_acc: float | None = None
    val_loss: float | None = None
    best_epoch: int = 0
    best_val_acc: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class CellSummary:
    """Mean of a figure over the finished trials of a cell.

    Args:
        trials: How many there are.
        planned: How many there will be.
        mean: None without trials.
        std: Standard deviation of the sample (n - 1); None below two trials.
    """

    trials: int
    planned: int
    mean: float | None = None
    std: float | None = None


class SweepResults:
    """The outcomes of a sweep's trials, as they are on disk at the moment.

    Args:
        sweep: The sweep.
        folder: Where it lies.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep = sweep
        self.folder = folder
        self._running: set[Trial] = set()
        self._finished: dict[Trial, TrialOutcome] = {}

    def __getitem__(self, trial: Trial) -> TrialOutcome:
        if trial not in self._finished:
            outcome = self._read(trial)
            if outcome.status != "finished":
                return outcome
            self._finished[trial] = outcome  # it stays so
        return self._finished[trial]

    def _read(self, trial: Trial) -> TrialOutcome:
        run = RunDirectory(self.folder / trial.name)
        rows, damaged = read_rows(run.metrics, ("epoch", "val_acc", "val_loss", "seconds"))
        figures: dict[str, Any] = {}
        if rows:
            figures = {name: float(rows[-1][name]) for name in ("val_acc", "val_loss", "seconds")}
            best = max(rows, key=lambda row: float(row["val_acc"]))
            figures |= {"best_val_acc": float(best["val_acc"]), "best_epoch": int(float(best["epoch"]))}
            figures["epoch"] = int(float(rows[-1]["epoch"]))
        if run.finished and rows and not damaged:
            return TrialOutcome("finished", **figures)
        if trial in self._running:
            return TrialOutcome("running", **figures)
        if (error := failure_reason(run.path)) is not None:
            return TrialOutcome("failed", **figures, error=error)
        return TrialOutcome("unfinished" if run.path.exists() else "waiting", **figures)

    def with_status(self, *statuses: Status) -> list[Trial]:
        """The trials of which one of the statuses is true."""
        return [trial for trial in self.sweep.trials if self[trial].status in statuses]

    def mean(self, cell: Cell, figure: str = "val_acc") -> CellSummary:
        """Mean of `val_acc`, `best_val_acc`, `val_loss` or `seconds` over the finished trials of a cell."""
        outcomes = [self[Trial(cell, seed)] for seed in cell.seeds]
        values = [getattr(outcome, figure) for outcome in outcomes if outcome.status == "finished"]
        return CellSummary(
            len(values),
            len(outcomes),
            fmean(values) if values else None,
            stdev(values) if len(values) > 1 else None,
        )

    def note(self, trial: Trial, running: bool) -> None:
        """A trial of this process begins or ends."""
        (self._running.add if running else self._running.discard)(trial)
        self.write()

    def stop(self) -> None:
        """Nothing runs any more."""
        self._running.clear()
        self.write()

    def write(self) -> None:
        """Write `results.csv`, a row per trial, and `summary.csv`, a row per cell, whole or not at all."""
        fields = list(dict.fromkeys(field for cell in self.sweep.cells for field in cell.settings))
        figures = list(TrialOutcome.__dataclass_fields__)
        rows: list[list[Any]] = [
            [trial.cell.name, *_values(trial.cell, fields), trial.seed, *vars(self[trial]).values()]
            for trial in self.sweep.trials
        ]
        _write_csv(self.folder / RESULTS, ["cell", *fields, "seed", *figures], rows)
        means = [(cell, self.mean(cell)) for cell in self.sweep.cells]
        rows = [
            [cell.name, *_values(cell, fields), found.trials, found.planned, found.mean, found.std]
            for cell, found in means
        ]
        _write_csv(self.folder / SUMMARY, ["cell", *fields, "trials", "planned", "val_acc_mean", "val_acc_std"], rows)


def _values(cell: Cell, fields: Iterable[str]) -> list[str]:
    return [setting_text(cell.settings[field]) if field in cell.settings else "" for field in fields]


def _write_csv(file: Path, header: list[str], rows: list[list[Any]]) -> None:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else for_csv(value) for value in row] for row in rows)
    write_text(file, content.getvalue())
