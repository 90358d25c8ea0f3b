"""Train the rows of Table 3: three ways to keep F contractive, with one, two and four iterations."""

from __future__ import annotations

from dataclasses import replace

from imixer.experiments.table3 import TABLE_3
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.trainings import scale_here, train_rows

_SEEDS = 10
_AT_ONCE = 3
_WHOLE_S = 600.0  # that the schedule of the scale takes, for all rows of a seed


def run(bench: Bench) -> None:
    """Train all rows, seed after seed; one epoch each where the time is short."""
    scale = scale_here(bench, "laptop")
    rows = TABLE_3.rows(scale)
    if bench.tiny:
        rows = rows[:1]
    elif bench.left < _WHOLE_S:
        rows = [replace(row, settings=row.settings | {"epochs": 1, "schedule.warmup_epochs": 0}) for row in rows]
        bench.note("One epoch each, as the time is short.")
    train_rows(bench, "Table 3", rows, scale, seeds=1 if bench.tiny else _SEEDS, at_once=_AT_ONCE)
