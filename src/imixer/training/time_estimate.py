"""Estimate how long a training will take, by a moment's measurement before it starts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from imixer.data.batches import TrainingBatches
from imixer.timing import wait_for
from imixer.training.model import FORWARDS_PER_STEP, BuiltModel
from imixer.training.optimizer import build_optimizer
from imixer.training.precision import autocast
from imixer.training.run.config import TrainConfig
from imixer.training.tasks.losses import Loss

_FIRST_IMAGES = 8  # to load
_FEWEST = 2  # images of a pass: more would keep the user of a large model waiting
_LONG_ENOUGH_S = 0.3  # of one pass, to tell the cost of an image by


@dataclass(frozen=True)
class TimeEstimate:
    """The time that a training is expected to take.

    Args:
        step: Seconds of an optimizer step.
        total: Seconds of all steps, and of validation after each epoch.
    """

    step: float
    total: float


@dataclass(frozen=True)
class StepTime:
    """The time of an optimizer step in its parts, without the loading of images.

    Args:
        image: Seconds of forward and backward, per image.
        optimizer: Seconds of the optimizer, per step.
    """

    image: float
    optimizer: float

    def of_step(self, images: int) -> float:
        """Return the seconds of a step on so many images."""
        return images * self.image + self.optimizer

    def of_validation(self, images: int) -> float:
        """Return the seconds of a forward pass of so many images."""
        return images * self.image / FORWARDS_PER_STEP


def measure_step(
    config: TrainConfig,
    built: BuiltModel,
    loss: Loss,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> StepTime | None:
    """Measure a few passes and one optimizer step on a copy of the model.

    The model and the states of all random generators stay as they are.

    Args:
        config: The configuration of the run.
        built: The model.
        loss: The training loss.
        device: The device that trains.
        clock: Tells the seconds. Default: those of the wall.

    Returns:
        The times; None where a copy in one process does not tell: with several devices or `compile`, or where the model
        does not run on few images.
    """
    if config.compile or config.devices * config.num_nodes > 1:
        return None
    try:
        with untouched_generators(device):
            return _measure_model(config, built, loss, device, clock)
    except (RuntimeError, ValueError):  # which training will meet too, and tell better
        return None


def estimate_time(
    config: TrainConfig,
    built: BuiltModel,
    loss: Loss,
    training: Any,
    device: torch.device,
    *,
    steps: int,
    held_out: int,
) -> TimeEstimate | None:
    """Estimate the time of a training, by what `measure_step` measures and by the loading of a few images.

    The model and the states of all random generators stay as they are.

    Args:
        config: The configuration of the run, with as many epochs as it will have.
        built: The model.
        loss: The training loss.
        training: The training batches.
        device: The device that trains.
        steps: Optimizer steps of the run.
        held_out: Held-out images.

    Returns:
        The estimate; None where `measure_step` measures nothing.
    """
    measured = measure_step(config, built, loss, device)
    if measured is None:
        return None
    try:
        with untouched_generators(device):
            loading = _measure_loading(training)
    except (RuntimeError, ValueError):
        return None
    workers = config.data.workers

    def seconds(images: int, compute: float) -> float:
        return max(images * loading / workers, compute) if workers else images * loading + compute

    step = seconds(config.data.batch_size, measured.of_step(config.data.batch_size))
    epochs = config.all_epochs
    return TimeEstimate(step, steps * step + epochs * seconds(held_out, measured.of_validation(held_out)))


def computing_clock(device: torch.device) -> Callable[[], float]:
    """Return a clock of the seconds that a device computes; on a processor, other work does not count."""
    if device.type != "cpu":
        return time.perf_counter
    return lambda: time.process_time() / torch.get_num_threads()


def _measure_model(
    config: TrainConfig, built: BuiltModel, loss: Loss, device: torch.device, clock: Callable[[], float]
) -> StepTime:
    model = deepcopy(built.model).to(device).train()
    optimizer = build_optimizer(model, config.optim)
    images = min(_FEWEST, config.micro_batch)
    _pass(config, built, loss, model, images, device, clock)  # the first one is slow, and tells nothing
    while (
        taken := _pass(config, built, loss, model, images, device, clock)
    ) < _LONG_ENOUGH_S and images < config.micro_batch:
        images = min(4 * images, config.micro_batch)
    optimizer.step()
    began = clock()
    optimizer.step()
    wait_for(device)
    return StepTime(taken / images, clock() - began)


def _pass(
    config: TrainConfig,
    built: BuiltModel,
    loss: Loss,
    model: nn.Module,
    count: int,
    device: torch.device,
    clock: Callable[[], float],
) -> float:
    images = torch.randn(count, *built.input_size, device=device)
    targets = loss.example_targets(images, built.args["num_classes"])
    wait_for(device)
    began = clock()
    with autocast(config.precision, device):
        value = loss(model(images), targets)
    value.backward()
    wait_for(device)
    return clock() - began


def _measure_loading(training: Any) -> float:
    """Measure the seconds that one process takes to load and augment an image; 0 where the device does that."""
    if not isinstance(training, TrainingBatches):
        return 0.0
    began, count, taken = time.perf_counter(), 0, 0.0
    while count < min(_FIRST_IMAGES, len(training.images)) and taken < _LONG_ENOUGH_S:
        training.images[count, 0]
        count, taken = count + 1, time.perf_counter() - began
    return taken / count


@contextmanager
def untouched_generators(device: torch.device) -> Iterator[None]:
    """Restore the states of the generators of random, numpy and torch at the end."""
    ours, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
