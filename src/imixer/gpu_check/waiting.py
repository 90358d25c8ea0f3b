"""Measure the share of training steps that goes into waiting for data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from imixer.data.batches import build_batches
from imixer.data.sampler import BatchShard
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.noise import noise_data
from imixer.gpu_check.speed import CASES, CLASSES, TINY_CASES, Case, config_of, step_of
from imixer.timing import milliseconds

_IMAGES = 4096
_TURNS = 3
_TIMED_S = 0.5


def _share(bench: Bench, case: Case) -> None:
    config = config_of(case, bench)
    side = 8 if bench.tiny else 32
    data = noise_data(64 if bench.tiny else _IMAGES, 16, (side, side), CLASSES)
    training, _ = build_batches(
        data,
        replace(config.data, pipeline="device"),
        (3, case.size, case.size),
        smoothing=config.smoothing,
        seed=0,
        device=bench.device,
        shard=BatchShard(),
        held_out_batch=16,
    )

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            yield from training.epoch(epoch)
            epoch += 1

    batches = endless()
    kept = next(batches)
    least_s = 0.0 if bench.tiny else _TIMED_S
    step, _ = step_of(config, case.size)

    def timed(source: Callable[[], tuple[Tensor, Tensor]]) -> float:
        return milliseconds(lambda: step(*source()), bench.device, least_s)

    timed(lambda: next(batches))
    turns = [(timed(lambda: kept), timed(lambda: next(batches))) for _ in range(1 if bench.tiny else _TURNS)]
    alone = milliseconds(lambda: next(batches), bench.device, least_s)
    bench.row(
        f"Steps on fresh batches of {len(kept[0])} from {side}x{side}, against steps on one batch that stays",
        images=case.images,
        augmentation=config.data.auto_augment or "flips and shifts",
        ms_fresh=median(fresh for _, fresh in turns),
        ms_kept=median(same for same, _ in turns),
        share_waiting=median(1 - same / fresh for same, fresh in turns),
        ms_a_batch_alone=alone,
    )


def run(bench: Bench) -> None:
    """Write down the share for each image size."""
    torch.set_float32_matmul_precision("high")
    for case in TINY_CASES[:1] if bench.tiny else (CASES[0], CASES[3]):
        if not bench.skipped(case.images):
            _share(bench, case)
