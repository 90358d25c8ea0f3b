"""Define the experiment on robustness: an iMixer beside a Mixer of as many multiply-adds, on images made harder."""

from __future__ import annotations

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale


def _rows(scale: Scale) -> list[Row]:
    settings = scale.mixer(mlp_ratio=scale.matching_ratio("S"))
    mixer = Row("mixer", {"model": "Mixer of as many multiply-adds"}, settings, scale.data)
    return [mixer, Row("imixer", {"model": "iMixer"}, scale.imixer(), scale.data, mixer.name)]


ROBUSTNESS = Experiment(
    "robustness",
    "Beyond the paper: robustness, beside a Mixer of as many multiply-adds",
    "the Mixer of as many multiply-adds",
    _rows,
    measured="robustness",
    margin=1.0,
)
