"""Train the iMixer of the laptop recipe beside the Mixer of as many multiply-adds, at full budget."""

from __future__ import annotations

from imixer.experiments.experiment import Row
from imixer.experiments.laptop import LAPTOP
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.trainings import scale_here, train_rows

_SEEDS = 10
_AT_ONCE = 2


def run(bench: Bench) -> None:
    """Train pair after pair, as many as fit."""
    scale = scale_here(bench, "laptop")
    if scale.name == LAPTOP.scale:
        rows = [row for row in LAPTOP.rows(scale) if row.name in ("imixer", "mixer")]
    else:
        wide = scale.mixer(mlp_ratio=scale.matching_ratio("S"))
        rows = [
            Row("imixer", {"model": "iMixer"}, scale.imixer(), scale.data),
            Row("mixer", {"model": "Mixer of as many multiply-adds"}, wide, scale.data, "imixer"),
        ]
    train_rows(bench, "iMixer and Mixer", rows, scale, seeds=1 if bench.tiny else _SEEDS, at_once=_AT_ONCE)
