"""List all experiments by name, in the order of `imixer reproduce all`. Free of torch."""

from __future__ import annotations

from imixer.experiments.ablations import ACTIVATIONS, DEPTH, GUARANTEE, LEGACY, SOLVER, TIED
from imixer.experiments.anomalies import ANOMALY
from imixer.experiments.ceilings import CEILING
from imixer.experiments.experiment import Experiment
from imixer.experiments.laptop import LAPTOP, LAPTOP_PIECES
from imixer.experiments.normalisations import NORMALISATIONS
from imixer.experiments.paper_figures import FIGURES
from imixer.experiments.robustness import ROBUSTNESS
from imixer.experiments.scales import SCALES
from imixer.experiments.segmentation_study import SEGMENTATION, SEGMENTATION_INVERSE
from imixer.experiments.table1 import TABLE_1
from imixer.experiments.table2 import TABLE_2
from imixer.experiments.table3 import TABLE_3
from imixer.experiments.table4 import TABLE_4

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        TABLE_1,
        TABLE_2,
        TABLE_3,
        TABLE_4,
        *FIGURES,
        DEPTH,
        ACTIVATIONS,
        TIED,
        SOLVER,
        GUARANTEE,
        CEILING,
        NORMALISATIONS,
        LEGACY,
        ROBUSTNESS,
        ANOMALY,
        LAPTOP,
        LAPTOP_PIECES,
        SEGMENTATION,
        SEGMENTATION_INVERSE,
    )
}


def experiments_at(scale: str) -> list[Experiment]:
    """List the experiments that a scale has, in order.

    Args:
        scale: Name of the scale.
    """
    scales = (scale,) if SCALES[scale].only_own else (None, scale)
    return [experiment for experiment in EXPERIMENTS.values() if experiment.scale in scales]
