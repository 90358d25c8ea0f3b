"""Define the experiment on anomalies: the memory's energy beside other scores. Nothing is trained for it."""

from __future__ import annotations

from imixer.experiments.experiment import Experiment

MARGIN = 1.0  # points of AUROC that count as no difference, chosen before the trials

ANOMALY = Experiment(
    "anomaly",
    "Finding anomalies by a memory, beside other scores",
    "the memory's energy",
    lambda scale: [],
    measured="anomalies",
    margin=MARGIN,
    scale="digits",
)
