"""Figures 3, 5, 6 and 7: what the fixed point iterations of a trained iMixer-S do."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, List

from rich.console import Console

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale
from imixer.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from imixer.experiments.outcome import Reproduced

_TRAINED_N = {"fig3": 1, "fig5": 2, "fig6": 4, "fig7": 4}


def _present(found: Reproduced, console: Console) -> None:
    """Draw the figure of the first finished trial, as PNG and PDF, with its numbers as JSON."""
    from imixer.analysis.convergence import analyze_convergence
    from imixer.analysis.convergence_report import report_convergence
    from imixer.analysis.features import analyze_features
    from imixer.analysis.features_report import report_features

    name = found.experiment.name
    run = next((run for line in found.lines for run in line.finished), None)
    console.print(f"{found.experiment.title}, {found.scale.name}", style="bold")
    if run is None:
        missing = "; ".join(data.missing for data in found.data.values() if data.missing)
        console.print(f"not run: {missing or 'no trial is finished'}", markup=False)
        return
    if name == "fig7":
        features, folder = analyze_features(str(run.path))
        report_features(features, console)
    else:
        convergence, folder = analyze_convergence(str(run.path))
        report_convergence(convergence, console)
    stem = "features" if name == "fig7" else "convergence"
    files = [found.folder / f"{name}.{suffix}" for suffix in ("png", "pdf", "json")]
    for file in files:
        shutil.copyfile(folder / f"{stem}{file.suffix}", file)
    epochs = len(RunDirectory(run.path).metrics.read_text(encoding="utf-8").splitlines()) - 1
    console.print(f"of {run.path}, {epochs} epochs", markup=False, soft_wrap=True)
    console.print(f"written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)


def _figure(name: str, title: str) -> Experiment:
    n = _TRAINED_N[name]

    def rows(scale: Scale) -> List[Row]:
        return [Row(f"n={n}", {"n": str(n)}, scale.imixer(n_iter=n), scale.data)]

    return Experiment(name, f"Figure {name[3:]}: {title}, trained with n = {n}", "", rows, _present)


_CONVERGENCE = "Norm_a and cos_a of every iMLP over 16 random test images"
FIGURES = (
    _figure("fig3", _CONVERGENCE),
    _figure("fig5", _CONVERGENCE),
    _figure("fig6", _CONVERGENCE),
    _figure("fig7", "feature maps of each iteration at the final layer"),
)
