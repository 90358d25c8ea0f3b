"""The figure of an experiment: drawn of one of its runs, and put beside the tables."""

from __future__ import annotations

import shutil
from importlib import import_module

from rich.console import Console

from imixer.analysis.analyze import analyze
from imixer.experiments.outcome import Reproduced


def draw_figure(found: Reproduced, console: Console) -> None:
    """Draw the figure of the first finished trial, as PNG and PDF, with its numbers as JSON.

    Args:
        found: An experiment that has a figure.
        console: Where to print.
    """
    run = next((run for line in found.lines for run in line.finished), None)
    console.print(f"{found.experiment.title}, {found.scale.name}", style="bold")
    if run is None:
        missing = "; ".join(data.missing for data in found.data.values() if data.missing)
        console.print(f"not run: {missing or 'no trial is finished'}", markup=False)
        return
    what = found.experiment.figure
    analysis = import_module(f"imixer.analysis.{what}_report").ANALYSIS
    measured, folder = analyze(analysis, str(run.path))
    analysis.show(measured, console)
    files = [found.folder / f"{found.experiment.name}.{suffix}" for suffix in ("png", "pdf", "json")]
    for file in files:
        shutil.copyfile(folder / f"{what}{file.suffix}", file)
    console.print(f"of {run.path}, {run.outcome.epoch} epochs", markup=False, soft_wrap=True)
    console.print(f"written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)
