"""Show a sweep on the screen: while it runs, and its summary at the end."""

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

from imixer.console import PlainConsole
from imixer.escaping import one_line
from imixer.sweep.plan import Trial
from imixer.sweep.results import CellSummary, Status, SweepResults, TrialOutcome
from imixer.sweep.spec import RESULTS, SUMMARY
from imixer.sweep.trial import is_training, log_file
from imixer.tables import plus_minus

_URGENCY: tuple[Status, ...] = ("running", "failed", "unfinished", "waiting", "finished")
_OTHER_LINES = 5  # of the screen, which are not a trial's


class SweepDisplay(Protocol):
    """Shows how a running sweep goes."""

    def note(self, trial: Trial) -> None:
        """Show what has become of a trial."""


@contextmanager
def live_display(results: SweepResults) -> Iterator[SweepDisplay]:
    """Show on stderr how a sweep goes.

    A terminal gets a live table. Elsewhere a line is printed when a trial begins or ends.

    Args:
        results: The outcomes of the sweep's trials.
    """
    console = PlainConsole(file=sys.stderr)  # this stderr, also while a trial's goes to its log
    if not console.is_terminal:
        yield _TrialLines(results, sys.stderr)
        return
    table = _LiveTable(results, console)
    with Live(console=console, get_renderable=table.render, refresh_per_second=1) as table.live:
        yield table


def report_sweep(results: SweepResults, console: Console) -> None:
    """Print a row per cell, the trials that failed or are missing, and where the files are.

    Args:
        results: The outcomes of the sweep's trials.
        console: Where to print.
    """
    table = Table("cell", "trials", f"val {results.metric}", "val loss", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for cell in results.sweep.cells:
        score, loss = results.mean(cell, "score"), results.mean(cell, "val_loss")
        all_of_them = score.trials == score.planned
        count = f"{score.trials}" if all_of_them else f"{score.trials} of {score.planned}"
        table.add_row(Text(cell.name), count, _mean_and_std(score, 100, 2, " %"), _mean_and_std(loss, 1, 4, ""))
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
        table = Table(
            "cell", "seed", "status", "epoch", f"val {self.results.metric}", "time", box=None, caption=caption
        )
        for column in (table.columns[1], *table.columns[3:]):
            column.justify = "right"
        urgent = sorted(outcomes, key=lambda trial: _URGENCY.index(outcomes[trial].status))
        fitting = set(urgent[: max(1, self.console.height - _OTHER_LINES)])
        for trial, outcome in outcomes.items():
            if trial in fitting:
                table.add_row(
                    Text(trial.cell.name),
                    str(trial.seed),
                    outcome.status,
                    _progress(outcome),
                    "" if outcome.score is None else f"{outcome.score:.2%}",
                    _clock(outcome),
                )
        return table


class _TrialLines:
    def __init__(self, results: SweepResults, file: TextIO) -> None:
        self.results = results
        self.file = file
        self.before = {trial.name: results[trial].epoch for trial in results.sweep.trials}

    def note(self, trial: Trial) -> None:
        outcome = self.results[trial]
        before = self.before[trial.name]
        beginning = f"goes on after epoch {before}" if before else "begins"
        elsewhere = "another process trains it" if is_training(self.results.folder / trial.name) else ""
        words = {
            "running": f"{beginning}, see {log_file(self.results.folder / trial.name)}",
            "finished": f"finished, val {self.results.metric} {outcome.score or 0:.2%}, {_clock(outcome)}",
            "failed": f"failed, {outcome.error}",
            "unfinished": f"{elsewhere or 'not finished'}, epoch {_progress(outcome)}",
            "waiting": elsewhere or "not begun",
        }
        print(one_line(f"{trial.name}: {words[outcome.status]}"), file=self.file, flush=True)


def _mean_and_std(summary: CellSummary, scale: float, digits: int, unit: str) -> str:
    if summary.mean is None:
        return "-"
    return plus_minus(summary.mean * scale, None if summary.std is None else summary.std * scale, digits) + unit


def _progress(outcome: TrialOutcome) -> str:
    return f"{outcome.epoch}/{outcome.epochs or '?'}"


def _clock(outcome: TrialOutcome) -> str:
    return "" if outcome.seconds is None else str(timedelta(seconds=round(outcome.seconds)))
