"""Define Table 2: inner width h_r against the number n of iterations."""

from __future__ import annotations

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.paper import HIDDEN_RATIO, N_ITER, PAPER_TABLE_2, paper_accuracy
from imixer.experiments.scales import Scale


def _rows(scale: Scale) -> list[Row]:
    rows = []
    for (ratio, n), published in PAPER_TABLE_2.items():
        default = (ratio, n) == (HIDDEN_RATIO, N_ITER)
        baseline = None if default else f"h_r={HIDDEN_RATIO:g}-n={N_ITER}"
        paper = paper_accuracy(published, scale.data, "imixer" if default else None)
        settings = scale.imixer(hidden_ratio=ratio, n_iter=n)
        name, labels = f"h_r={ratio:g}-n={n}", {"h_r": f"{ratio:g}", "n": str(n)}
        rows.append(Row(name, labels, settings, scale.data, baseline, paper))
    return rows


TABLE_2 = Experiment(
    "table2", "Table 2: inner width h_r and iterations n", f"h_r = {HIDDEN_RATIO:g}, n = {N_ITER}", _rows
)
