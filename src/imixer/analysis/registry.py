"""List all analyses of a run. Free of torch.

To add one, write the module that measures and one in `imixer.analysis.views`, and list its `ANALYSIS` here. The command
line with its options and help, reports and the tests of the documentation read these tables.
"""

from __future__ import annotations

from typing import Any

from imixer.analysis.analyze import Analysis
from imixer.analysis.views import (
    adversarial,
    attribution,
    contraction,
    convergence,
    corruptions,
    energy,
    features,
    inverse,
    iterations,
    ood,
    weights,
)


def _by_name(*analyses: Analysis[Any]) -> dict[str, Analysis[Any]]:
    return {analysis.name: analysis for analysis in analyses}


# What `imixer analyze` offers.
ANALYSES = _by_name(
    energy.ANALYSIS,
    contraction.ANALYSIS,
    inverse.ANALYSIS,
    iterations.ANALYSIS,
    convergence.ANALYSIS,
    features.ANALYSIS,
    attribution.ANALYSIS,
    weights.ANALYSIS,
    ood.ANALYSIS,
)

# What `imixer evaluate` offers beyond the accuracy on the run's own images.
ROBUSTNESS_EVALUATIONS = _by_name(corruptions.ANALYSIS, adversarial.ANALYSIS)


def figure_titles() -> dict[str, str]:
    """Return the titles of all figures, by the names of their files without a suffix."""
    alone = [*ANALYSES.values(), *ROBUSTNESS_EVALUATIONS.values()]
    every = [*alone, *(analysis.compare for analysis in alone if analysis.compare is not None)]
    return {drawing.name: drawing.title for analysis in every for drawing in analysis.drawings}
