"""A sweep on the screen."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from imixer.escaping import PlainConsole, one_line
from imixer.sweep.plan import Trial
from imixer.sweep.results import CellSummary, Status, SweepResults, TrialOutcome
from imixer.sweep.spec import RESULTS, SUMMARY
from imixer.sweep.trial import log_file

_URGENCY: tuple[Status, ...] = ("running", "failed", "unfinished", "waiting", "finished")
_AROUND = 5  # lines of the screen that are not a trial's


class SweepDisplay(Protocol):
    def note(self, trial: Trial) -> None:
        """Something became of a trial."""


@contextmanager
def live_display(results: SweepResults) -> Iterator[SweepDisplay]:
    """Show on stderr how a sweep goes: a live table, or, where there is no terminal, a line when a trial turns."""
    console = PlainConsole(file=sys.stderr)  # this stderr, also while a trial's goes to its log
    if not console.is_terminal:
        yield _Lines(results, sys.stderr)
        return
    table = _LiveTable(results, console)
    with Live(console=console, get_renderable=table.render, refresh_per_second=1) as table.live:
        yield table


def report_sweep(results: SweepResults, console: Console) -> None:
    """A row per cell, what is missing and why, and where the files are."""
    table = Table("cell", "trials", "val acc", "val loss", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for cell in results.sweep.cells:
        accuracy, loss = results.mean(cell), results.mean(cell, "val_loss")
        all_of_them = accuracy.trials == accuracy.planned
        count = f"{accuracy.trials}" if all_of_them else f"{accuracy.trials} of {accuracy.planned}"
        table.add_row(Text(cell.name), count, _spread(accuracy, 100, 2, " %"), _spread(loss, 1, 4, ""))
    console.print(table)
    console.print("mean +- standard deviation of the sample, over the finished trials")
    for trial in results.with_status("failed"):
        where = log_file(results.folder / trial.name)
        console.print(f"failed: {trial.name}: {results[trial].error} ({where})", markup=False, soft_wrap=True)
    if left := len(results.with_status("unfinished", "running", "waiting")):
        console.print(f"not finished: {left} of {len(results.sweep.trials)} trials")
    files = f"{results.folder / RESULTS}, {results.folder / SUMMARY}, and a run directory per trial"
    console.print(f"written: {files}", markup=False, soft_wrap=True)


class _LiveTable:
    def __init__(self, results: SweepResults, console: Console) -> None:
        self.results = results
        self.console = console
        self.live: Live | None = None

    def note(self, trial: Trial) -> None:
        if self.live:
            self.live.refresh()

    def render(self) -> Table:
        outcomes = {trial: self.results[trial] for trial in self.results.sweep.trials}
        counts = Counter(outcome.status for outcome in outcomes.values())
        caption = ", ".join(f"{counts[status]} {status}" for status in _URGENCY if counts[status])
        table = Table("cell", "seed", "status", "epoch", "val acc", "time", box=None, caption=caption)
        for column in (table.columns[1], *table.columns[3:]):
            column.justify = "right"
        urgent = sorted(outcomes, key=lambda trial: _URGENCY.index(outcomes[trial].status))
        fitting = set(urgent[: max(1, self.console.height - _AROUND)])
        for trial, outcome in outcomes.items():
            if trial in fitting:
                table.add_row(
                    Text(trial.cell.name),
                    str(trial.seed),
                    outcome.status,
                    f"{outcome.epoch}/{trial.cell.epochs}",
                    "" if outcome.val_acc is None else f"{outcome.val_acc:.2%}",
                    _clock(outcome),
                )
        return table


class _Lines:
    def __init__(self, results: SweepResults, file: TextIO) -> None:
        self.results = results
        self.file = file
        self.before = {trial.name: results[trial].epoch for trial in results.sweep.trials}

    def note(self, trial: Trial) -> None:
        outcome = self.results[trial]
        before = self.before[trial.name]
        beginning = f"goes on after epoch {before}" if before else "begins"
        words = {
            "running": f"{beginning}, see {log_file(self.results.folder / trial.name)}",
            "finished": f"finished, val acc {outcome.val_acc or 0:.2%}, {_clock(outcome)}",
            "failed": f"failed, {outcome.error}",
            "unfinished": f"not finished, epoch {outcome.epoch}/{trial.cell.epochs}",
        }
        print(one_line(f"{trial.name}: {words[outcome.status]}"), file=self.file, flush=True)


def _spread(found: CellSummary, scale: float, digits: int, unit: str) -> str:
    if found.mean is None:
        return "-"
    spread = "" if found.std is None else f" +- {found.std * scale:.{digits}f}"
    return f"{found.mean * scale:.{digits}f}{spread}{unit}"


def _clock(outcome: TrialOutcome) -> str:
    return "" if outcome.seconds is None else str(timedelta(seconds=round(outcome.seconds)))
