"""Ways to hold the matrices of F at or below the ceiling c = 0.9."""

from __future__ import annotations

from typing import Any

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.paper import TABLE1, reported
from imixer.experiments.scales import Scale

# In words, how the norm is known, and fields of `ModelConfig`.
_CHANGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "exact": ("W / max(1, sigma / c)", "exact, by SVD", {"sigma": "exact"}),
    "hard": ("W c / sigma", "exact, by SVD", {"sigma": "exact", "scaling": "hard"}),
    "detached": (
        "W / max(1, sigma / c), no gradient of sigma",
        "from below, by power iteration",
        {"detach_sigma": True},
    ),
    "row_norm": ("W / max(1, bound / c)", "from above, by row and column sums", {"sigma": "row_norm"}),
    "orthogonal": ("c Q, orthonormal", "exact, by construction", {"norm": "orthogonal"}),
}


def _rows(scale: Scale) -> list[Row]:
    paper = reported(TABLE1["imixer", "S"], scale.data, "imixer")
    default = Row(
        "imixer",
        {"normalised": "W / max(1, sigma / c)", "norm known": "from below, by power iteration"},
        scale.imixer(),
        scale.data,
        paper=paper,
    )
    changed = [
        Row(name, {"normalised": words, "norm known": known}, scale.imixer(**change), scale.data, default.name)
        for name, (words, known, change) in _CHANGES.items()
    ]
    return [default, *changed]


NORMALISATIONS = Experiment(
    "normalisations",
    "Beyond the paper: ways to normalise the matrices of F",
    "the paper's iMixer-S (power iteration, soft)",
    _rows,
    notes=(
        "What certifies: sigma by SVD, a bound from above, or a matrix that is orthonormal by construction. Power "
        "iteration sees sigma from below and may let a matrix pass its ceiling",
        "With GELU, whose slope reaches 1.129, c = 0.9 bounds F by 1.03 only: no guarantee, however exact sigma is, "
        "unless the matrices end below the ceiling",
    ),
    contraction=True,
    time=True,
)
