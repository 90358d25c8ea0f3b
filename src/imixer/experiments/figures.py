"""Figures 3, 5, 6 and 7: what the fixed point iterations of a trained iMixer-S do."""

from __future__ import annotations

from typing import List, Literal

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale


def _figure(name: str, figure: Literal["convergence", "features"], title: str, n: int) -> Experiment:
    def rows(scale: Scale) -> List[Row]:
        return [Row(f"n={n}", {"n": str(n)}, scale.imixer(n_iter=n), scale.data)]

    return Experiment(name, f"Figure {name[3:]}: {title}, trained with n = {n}", "", rows, figure)


_CONVERGENCE = "Norm_a and cos_a of every iMLP over 16 random test images"
FIGURES = (
    _figure("fig3", "convergence", _CONVERGENCE, 1),
    _figure("fig5", "convergence", _CONVERGENCE, 2),
    _figure("fig6", "convergence", _CONVERGENCE, 4),
    _figure("fig7", "features", "feature maps of each iteration at the final layer", 4),
)
