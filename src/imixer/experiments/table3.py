"""Define Table 3: ways to keep the inner map F contractive, against the number n of iterations."""

from __future__ import annotations

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.paper import N_ITER, PAPER_TABLE_3, Normalisation, paper_accuracy
from imixer.experiments.scales import Scale

_NAMES: dict[Normalisation, str] = {"spectral": "SpecNorm", "none": "without", "batch": "BatchNorm"}


def _rows(scale: Scale) -> list[Row]:
    rows = []
    for (norm, n), published in PAPER_TABLE_3.items():
        baseline = None if norm == "spectral" else f"spectral-n={n}"
        paper = paper_accuracy(published, scale.data, "imixer" if (norm, n) == ("spectral", N_ITER) else None)
        settings = scale.imixer(norm=norm, n_iter=n)
        labels = {"normalisation": _NAMES[norm], "n": str(n)}
        rows.append(Row(f"{norm}-n={n}", labels, settings, scale.data, baseline, paper))
    return rows


TABLE_3 = Experiment(
    "table3",
    "Table 3: normalisation and iterations n",
    "SpecNorm with the same n",
    _rows,
    notes=(
        "The paper does not say where BatchNorm stood, nor over which axis; here it follows each linear layer of F, "
        "over the layer's features",
        "The paper trained BatchNorm with n = 4 at a smaller batch, of a size it does not say; here the batch is that "
        "of the other rows",
    ),
    show_contraction=True,
)
