"""Show runs on the screen: a folder of them, or one. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from imixer.escaping import middle_cut, shell_word
from imixer.tables import Grid, on_screen
from imixer.training.run.directory import short_names
from imixer.training.run.result import METRIC_NAMES, best_by
from imixer.training.run.summary import RunSummary, evaluations

_FRAME = 6  # characters of a line beside the title of a panel
_HEADER = ("run", "state", "data", "model", "accuracy", "best epoch", "epochs", "date")


def runs_grid(runs: Sequence[RunSummary]) -> Grid:
    """Build the table of some runs, a row each."""
    names = short_names([run.run.path for run in runs])
    rows = tuple(
        (
            name,
            run.state,
            run.data or "-",
            run.model or "-",
            _accuracy(run.last),
            f"{_accuracy(run.best)} ({run.best['epoch']:.0f})" if run.best else "-",
            _epochs(run),
            f"{run.changed:%Y-%m-%d %H:%M}",
        )
        for name, run in zip(names, runs, strict=True)
    )
    return Grid(_HEADER, rows, text=4)


def show_runs(runs: Sequence[RunSummary], console: Console) -> None:
    """Show a table of runs, what is damaged of them, and what to type for the unfinished ones.

    Args:
        runs: The runs.
        console: The console to print on.
    """
    states = [run.state for run in runs]
    counted = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    console.print(on_screen(runs_grid(runs), f"{len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(counted)}"))
    for run in runs:
        if run.problem:
            console.print(f"{run.run.path} is damaged: {run.problem}", soft_wrap=True)
    if unfinished := [run for run in runs if run.state == "unfinished"]:
        console.print(f"imixer train --resume {shell_word(unfinished[0].run.path)} goes on with it", soft_wrap=True)


def show_run(run: RunSummary, console: Console) -> None:
    """Show all that is known of a run: state, accuracy, evaluations, settings and files.

    Args:
        run: The run.
        console: The console to print on.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_row("state", run.state + (f": {run.problem}" if run.problem else ""))
    if run.last:
        metric, at = best_by(run.last), f"after epoch {run.last['epoch']:.0f}"
        of = "of" if metric == "val_acc" else "on"
        pixels = f", {run.last['val_acc']:.2%} of their pixels," if metric == "val_miou" else ""
        grid.add_row(
            METRIC_NAMES[metric],
            Text.assemble((f"{run.last[metric]:.2%}", "bold"), f" {of} the held-out images{pixels} {at}"),
        )
        grid.add_row("loss", f"{run.last['val_loss']:.4f}")
    if run.best:
        grid.add_row("best epoch", f"{_accuracy(run.best)} after epoch {run.best['epoch']:.0f}")
    for file, scores in evaluations(run.run).items():
        of = f"{scores['images']:,} images of {scores['data']} ({file})"
        score = f"mIoU {scores['miou']:.2%} on" if "miou" in scores else f"{scores['top1']:.2%} of"
        grid.add_row("evaluated", f"{score} {of}")
    parameters = f", {run.parameters:,} parameters" if run.parameters is not None else ""
    grid.add_row("model", f"{run.model or '-'}{parameters}")
    grid.add_row("data", run.data or "-")
    grid.add_row("epochs", _epochs(run))
    if run.last:
        grid.add_row("time", f"{run.last['seconds']:,.0f} s" + (f", {run.device}" if run.device else ""))
    grid.add_row("date", f"{run.changed:%Y-%m-%d %H:%M}")
    for place, (name, value) in enumerate(run.settings.items()):
        grid.add_row("" if place else "settings", f"{name} {value}")
    files = sorted(file.name + "/" * file.is_dir() for file in run.run.path.iterdir() if not file.name.startswith("."))
    grid.add_row("files", ", ".join(files))
    if run.state == "unfinished":
        grid.add_row("next", f"imixer train --resume {shell_word(run.run.path)}")
    title = middle_cut(str(run.run.path), max(1, console.width - _FRAME))
    console.print(Panel(grid, title=Text(title), title_align="left", expand=False))


def _accuracy(row: Mapping[str, float] | None) -> str:
    """Write what decides which epoch is the best, and its name if it is no accuracy."""
    if not row:
        return "-"
    metric = best_by(row)
    return f"{row[metric]:.2%}" + (f" {METRIC_NAMES[metric]}" if metric != "val_acc" else "")


def _epochs(run: RunSummary) -> str:
    return f"{len(run.rows)} of {run.epochs}" if run.epochs is not None else str(len(run.rows))
