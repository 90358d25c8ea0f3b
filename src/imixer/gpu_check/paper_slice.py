"""Train the beginning of the paper's recipe for the iMixer S/16, and write down its learning curve."""

from __future__ import annotations

from imixer.experiments.experiment import Row
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.trainings import scale_here, train_rows


def run(bench: Bench) -> None:
    """Train until the time is over, with the paper's own schedule: what is measured is how the curve begins."""
    scale = scale_here(bench, "paper")
    settings = scale.imixer() | {"logger": "csv"}
    if not bench.tiny:
        settings |= {"data.pipeline": "device", "precision": "bf16"}
    rows = [Row("imixer", {"model": "iMixer S"}, settings, scale.data)]
    train_rows(bench, "iMixer S", rows, scale, seeds=1, at_once=1)
