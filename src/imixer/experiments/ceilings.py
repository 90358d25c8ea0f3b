"""Define the experiment on the ceiling c of the spectral norms and the number n_p of power iterations.

Source: the paper fixes them in section 5, "n_p = 8 and c = 0.9"; section 5.2 leaves their optimum to others.
"""

from __future__ import annotations

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.paper import PAPER_TABLE_1, paper_accuracy
from imixer.experiments.scales import Scale

COEFF, N_POWER_ITERATIONS = 0.9, 8  # the paper's
_COEFFS = (0.3, 0.5, 0.7, 0.99, 2.0)
_N_POWER_ITERATIONS = (1, 2, 4, 16)


def _rows(scale: Scale) -> list[Row]:
    paper = paper_accuracy(PAPER_TABLE_1["imixer", "S"], scale.data, "imixer")
    default = Row("imixer", _labels(), scale.imixer(), scale.data, paper=paper)
    return [
        default,
        *(Row(f"c={c:g}", _labels(c=c), scale.imixer(coeff=c), scale.data, default.name) for c in _COEFFS),
        *(
            Row(f"n_p={n}", _labels(n_p=n), scale.imixer(n_power_iterations=n), scale.data, default.name)
            for n in _N_POWER_ITERATIONS
        ),
    ]


def _labels(c: float = COEFF, n_p: int = N_POWER_ITERATIONS) -> dict[str, str]:
    return {"c": f"{c:g}", "n_p": f"{n_p}"}


CEILING = Experiment(
    "ceiling",
    "Beyond the paper: ceiling c of the spectral norms, and power iterations n_p per training step",
    f"the paper's iMixer-S (c = {COEFF:g}, n_p = {N_POWER_ITERATIONS})",
    _rows,
    notes=("c = 2 is above what the paper allows, c < 1: the matrices may then expand, and the bound says nothing",),
    show_contraction=True,
    show_time=True,
)
