"""Define the experiment on ways to hold the matrices of F at or below the ceiling c = 0.9."""

from __future__ import annotations

from typing import Any

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.paper import PAPER_TABLE_1, paper_accuracy
from imixer.experiments.scales import Scale

# What is done to W, how its norm is known, and fields of `ModelConfig`.
_CHANGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "exact": ("soft", "SVD, exact", {"sigma": "exact"}),
    "hard": ("hard", "SVD, exact", {"sigma": "exact", "scaling": "hard"}),
    "detached": ("soft, sigma detached", "power iteration, from below", {"detach_sigma": True}),
    "row_norm": ("soft", "row and column sums, from above", {"sigma": "row_norm"}),
    "orthogonal": ("orthogonal", "by construction, exact", {"norm": "orthogonal"}),
}


def _rows(scale: Scale) -> list[Row]:
    paper = paper_accuracy(PAPER_TABLE_1["imixer", "S"], scale.data, "imixer")
    default = Row(
        "imixer",
        {"normalised": "soft", "norm by": "power iteration, from below"},
        scale.imixer(),
        scale.data,
        paper=paper,
    )
    changed = [
        Row(name, {"normalised": words, "norm by": known}, scale.imixer(**change), scale.data, default.name)
        for name, (words, known, change) in _CHANGES.items()
    ]
    return [default, *changed]


NORMALISATIONS = Experiment(
    "normalisations",
    "Beyond the paper: ways to normalise the matrices of F",
    "the paper's iMixer-S (power iteration, soft)",
    _rows,
    notes=(
        "soft: W / max(1, sigma / c); hard: W c / sigma; detached: no gradient goes through sigma; orthogonal: c times "
        "a matrix with orthonormal rows or columns",
        "What certifies that sigma is at most c: an SVD, a bound from above, or orthonormality. Power "
        "iteration sees sigma from below and may let a matrix pass its ceiling",
        "With GELU, whose slope reaches 1.129, c = 0.9 bounds F by 1.03 only: no guarantee, however exact sigma is, "
        "unless the matrices end below the ceiling",
    ),
    show_contraction=True,
    show_time=True,
)
