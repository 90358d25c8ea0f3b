"""Define Table 1: iMixer against MLP-Mixer in three sizes, and against a Mixer of as many multiply-adds.

The latter has a wider token mixing, which is where the iMixer's additional multiply-adds are. Nothing else changes.
"""

from __future__ import annotations

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.paper import PAPER_TABLE_1, Model, ModelSize, PaperAccuracy, paper_accuracy
from imixer.experiments.scales import SIZES, Scale


def _rows(scale: Scale) -> list[Row]:
    rows = []
    for size in SIZES:
        imixer, mixer = f"imixer-{size.lower()}", f"mixer-{size.lower()}"
        ratio = scale.matching_ratio(size)
        for name, model, settings, paper in (
            (imixer, "iMixer", scale.imixer(size), _reported("imixer", size, scale)),
            (mixer, "Mixer", scale.mixer(size), _reported("mixer", size, scale)),
            (f"{mixer}-matched", f"Mixer, tokens_dim {ratio:.3g} C", scale.mixer(size, mlp_ratio=ratio), None),
        ):
            baseline = None if name == imixer else imixer
            rows.append(Row(name, {"size": size, "model": model}, settings, scale.data, baseline, paper))
    return rows


def _reported(model: Model, size: ModelSize, scale: Scale) -> PaperAccuracy | None:
    return paper_accuracy(PAPER_TABLE_1[model, size], scale.data, model if size == "S" else None)


TABLE_1 = Experiment(
    "table1",
    "Table 1: iMixer, Mixer, and a Mixer of as many multiply-adds",
    "the iMixer of the same size",
    _rows,
    notes=("A Mixer of as many multiply-adds as the iMixer is not in the paper",),
)
