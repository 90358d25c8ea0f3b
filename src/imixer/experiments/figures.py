"""Figures 3, 5, 6 and 7: what the fixed point iterations of a trained iMixer-S do."""

from __future__ import annotations

import shutil
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, List

from rich.console import Console

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale

if TYPE_CHECKING:
    from imixer.experiments.outcome import Reproduced


def _present(what: str, found: Reproduced, console: Console) -> None:
    """Draw the figure of the first finished trial, as PNG and PDF, with its numbers as JSON.

    Args:
        what: The analysis that draws it, as `imixer analyze` calls it.
        found: The experiment.
        console: Where to print.
    """
    run = next((run for line in found.lines for run in line.finished), None)
    console.print(f"{found.experiment.title}, {found.scale.name}", style="bold")
    if run is None:
        missing = "; ".join(data.missing for data in found.data.values() if data.missing)
        console.print(f"not run: {missing or 'no trial is finished'}", markup=False)
        return
    analysis, report = import_module(f"imixer.analysis.{what}"), import_module(f"imixer.analysis.{what}_report")
    measured, folder = getattr(analysis, f"analyze_{what}")(str(run.path))
    getattr(report, f"report_{what}")(measured, console)
    files = [found.folder / f"{found.experiment.name}.{suffix}" for suffix in ("png", "pdf", "json")]
    for file in files:
        shutil.copyfile(folder / f"{what}{file.suffix}", file)
    console.print(f"of {run.path}, {run.outcome.epoch} epochs", markup=False, soft_wrap=True)
    console.print(f"written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)


def _figure(name: str, what: str, title: str, n: int) -> Experiment:
    def rows(scale: Scale) -> List[Row]:
        return [Row(f"n={n}", {"n": str(n)}, scale.imixer(n_iter=n), scale.data)]

    return Experiment(name, f"Figure {name[3:]}: {title}, trained with n = {n}", "", rows, partial(_present, what))


_CONVERGENCE = "Norm_a and cos_a of every iMLP over 16 random test images"
FIGURES = (
    _figure("fig3", "convergence", _CONVERGENCE, 1),
    _figure("fig5", "convergence", _CONVERGENCE, 2),
    _figure("fig6", "convergence", _CONVERGENCE, 4),
    _figure("fig7", "features", "feature maps of each iteration at the final layer", 4),
)
