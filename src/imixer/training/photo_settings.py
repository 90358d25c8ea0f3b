"""Choose what is left open of a training, for its images and its device: model, image size, batch, steps, loading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any

import torch

from imixer.data.device.resident import free_memory
from imixer.data.image_data import ImageData, ImageSet
from imixer.data.kept import kept_bytes, sample_numbers
from imixer.data.sampler import steps_per_epoch
from imixer.errors import InputError
from imixer.progress import announce, clock
from imixer.training.budget import duration
from imixer.training.model import BuiltModel, build_model_for
from imixer.training.run.config import ModelConfig, TrainConfig
from imixer.training.tasks.losses import ClassificationLoss, Loss
from imixer.training.time_estimate import StepTime, computing_clock, measure_step, untouched_generators

_SAMPLE = 16  # images whose sizes are looked at
_FEWEST_IMAGES = 4  # to train on: fewer say nothing about any other
_MOST_WORKERS = 8
_KEPT_SHARE = 4  # decoded images may take one part in so many of the free memory
_BATCHES = ((0, 8), (32, 16), (96, 32), (512, 64), (4_096, 128))  # from so many images on, a batch of so many
# So many images are seen in all: of 100, and in proportion to a power of their number.
_SEEN_OF_100, _GROWTH, _MOST_PASSES = 20_000, 0.6, 200
_ENOUGH_STEPS = 300  # whatever time they take: fewer would learn nothing
_SIDES = (32, 48, 64, 96, 128)  # of what the model sees; each can be cut into a grid of patches that stages can halve
_GRID, _LARGEST_GRID, _GRID_STEP = 16, 32, 4  # patches along a side: as wanted, at most, and a divisor of
_NAME = "imixer_laptop_32"


@dataclass(frozen=True)
class _Rung:
    """A model to choose, by the largest side of its images, and from how many images on it may be chosen."""

    side: int
    embed_dim: tuple[int, ...]
    num_blocks: tuple[int, ...]
    fewest_images: int = 0


_LADDER = (  # by cost; each has the stem and the token mixing of the recipes `laptop`
    _Rung(32, (32, 64, 128), (1, 2, 1)),
    _Rung(64, (32, 64, 128), (1, 2, 1)),
    _Rung(64, (64, 128, 192), (2, 4, 2)),
    _Rung(128, (96, 192, 384), (2, 4, 2), fewest_images=4_000),
)


def choose_settings(
    config: TrainConfig,
    data: ImageSet,
    device: torch.device,
    build: Callable[[TrainConfig], BuiltModel] | None = None,
    loss: Loss | None = None,
) -> tuple[TrainConfig, tuple[str, ...]]:
    """Choose the settings that `config.choose` names. The states of all random generators stay as they are.

    The number of images gives batch and steps. The size of the images, and the time that a few steps take on this
    device, give image size and model: the largest that trains within `config.minutes`.

    Args:
        config: The configuration of the run.
        data: The data.
        device: The device that trains.
        build: Builds the model of a configuration. Default: one that classifies images.
        loss: The training loss. Default: that of classes of images.

    Returns:
        The configuration with everything chosen, and a sentence for each choice.

    Raises:
        InputError: If there are too few images to learn from, or no model fits the image size that is given.
    """
    count, wanted, said = len(data.train), set(config.choose), []
    if count < max(_FEWEST_IMAGES, len(data.class_names)):
        raise InputError(
            f"{data.name} has {count} training images of {len(data.class_names)} classes, too few to learn from; add "
            "images, a few dozen of each class"
        )
    if "batch_size" in wanted:
        size = _batch_size(count, config.devices * config.num_nodes * config.accumulate)
        config = replace(config, data=replace(config.data, batch_size=size))
        said.append(f"batch_size {size}, for {count:,} training images")
    each = max(1, steps_per_epoch(count, config.data.batch_size, config.data.last_batch == "fill"))
    passes = _passes(count) if "steps" in wanted else config.steps and -(-config.steps // each)
    length = _Length(each, passes or config.epochs, len(data.val))
    time, build, loss = None, build or (lambda given: build_model_for(given, data)), loss or ClassificationLoss()
    seen: int | Sequence[int] | None = config.data.image_size
    if "model" in wanted:
        with untouched_generators(device):
            config, time, words = _choose_model(config, data, device, length, build, loss)
        said += words
        seen = config.data.image_size
    elif "steps" in wanted or ("loading" in wanted and seen is None):
        with untouched_generators(device):
            built = build(config)
            seen = built.input_size[1:]
            if "steps" in wanted:
                announce(f"timing {built.title} on this device")
                time = measure_step(_on_one_device(config), built, loss, device, computing_clock(device))
                if time is None:
                    said.append(f"minutes {config.minutes:g} have no say, as the time of a step could not be measured")
    if "steps" in wanted:
        config, words = _choose_steps(config, length, time)
        said += words
    if "loading" in wanted:
        config, words = _choose_loading(config, data, device, seen)
        said += words
    return replace(config, choose=[]), tuple(said)


def _batch_size(images: int, parts: int) -> int:
    """Return the images of a step: no more than there are, and a multiple of the parts that a step has."""
    size = next(size for fewest, size in reversed(_BATCHES) if images >= fewest)
    return max(1, min(size, images) // parts) * parts


def _passes(images: int) -> int:
    """Return how often each image is seen: less often where there are many."""
    seen = _SEEN_OF_100 * (images / 100) ** _GROWTH
    return max(1, min(_MOST_PASSES, round(seen / images)))


@dataclass(frozen=True)
class _Length:
    """The length of a training: steps of each pass over the images, passes, and held-out images after each."""

    steps_per_pass: int
    passes: float
    held_out: int

    def of_budget(self, config: TrainConfig, built: BuiltModel) -> _Length:
        """Return the length that the budget of a run, if it has one, gives it with a model."""
        if config.budget is None:
            return self
        steps = duration(config, built, self.steps_per_pass).steps
        return replace(self, passes=steps / self.steps_per_pass)

    def seconds(self, config: TrainConfig, time: StepTime) -> float:
        """Estimate the seconds that each device computes, of those that share the images."""
        return self.passes * self.seconds_of_pass(config, time)

    def seconds_of_pass(self, config: TrainConfig, time: StepTime) -> float:
        sharing = config.devices * config.num_nodes
        step = time.of_step(config.data.batch_size // sharing)
        return self.steps_per_pass * step + time.of_validation(-(-self.held_out // sharing))


def _choose_steps(config: TrainConfig, length: _Length, time: StepTime | None) -> tuple[TrainConfig, list[str]]:
    passes, why = int(length.passes), ""
    if time is not None and (late := length.seconds(config, time) > config.minutes * 60):
        enough = -(-_ENOUGH_STEPS // length.steps_per_pass)
        allowed = max(enough, int(config.minutes * 60 / length.seconds_of_pass(config, time)))
        if allowed < passes:
            passes, why = allowed, f", instead of {passes:,}"
            late = replace(length, passes=passes).seconds(config, time) > config.minutes * 60
        why += f"; {'this will take longer than' if late else 'to stay within'} minutes {config.minutes:g}"
    steps = passes * length.steps_per_pass
    return replace(config, steps=steps), [f"steps {steps:,}, by which each image is seen {passes:,} times{why}"]


def _choose_model(
    config: TrainConfig,
    data: ImageSet,
    device: torch.device,
    length: _Length,
    build: Callable[[TrainConfig], BuiltModel],
    loss: Loss,
) -> tuple[TrainConfig, StepTime | None, list[str]]:
    """Choose image size and model: of those that train in time, the largest; else the smallest."""
    shorter = median_low([min(data.train[number][0].size) for number in sample_numbers(len(data.train), _SAMPLE)])
    best: tuple[TrainConfig, BuiltModel, StepTime | None, _Length] | None = None
    problem: InputError | None = None
    announce("timing models on this device")
    for candidate in _candidates(config, len(data.train), shorter):
        try:
            built = build(candidate)
            own = length.of_budget(candidate, built)
            time = measure_step(_on_one_device(candidate), built, loss, device, computing_clock(device))
        except InputError as error:  # of options that are given, and do not fit this one
            problem = problem or error
            continue
        late = time is not None and own.seconds(candidate, time) > config.minutes * 60
        if best is None or (time is not None and not late):
            best = candidate, built, time, own
        if late or time is None:
            break
    if best is None:
        raise problem or InputError(
            f"data.image_size is {config.data.image_size}, which no model here can cut into patches; give a multiple "
            "of 8 pixels, or model.name"
        )
    chosen, built, time, own = best
    took = (
        ": the smallest, as the time of a step could not be measured"
        if time is None
        else f": about {clock(own.seconds(chosen, time))} of computing on {_devices(chosen)}"
    )
    parts = [f"{name} {value}" for name, value in chosen.model.overrides().items() if name in _SHAPE]
    said = [f"model {built.title}, {', '.join(parts)}{took}"]
    if config.data.image_size is None:
        size = chosen.data.image_size
        said.insert(0, f"image_size {size}, of photos whose shorter side has {shorter:,} pixels in the middle")
    return chosen, time, said


def _on_one_device(config: TrainConfig) -> TrainConfig:
    """Return a configuration for as many images in a forward pass, which one process measures without compiling."""
    sharing = config.devices * config.num_nodes
    return replace(config, compile=False, devices=1, num_nodes=1, accumulate=config.accumulate * sharing)


def _devices(config: TrainConfig) -> str:
    sharing = config.devices * config.num_nodes
    return "this device" if sharing == 1 else f"{sharing} such devices"


_SHAPE = ("patch_size", "embed_dim", "num_blocks")


def _candidates(config: TrainConfig, images: int, shorter: int) -> Iterator[TrainConfig]:
    """List the configurations to choose from, by cost."""
    seen = []
    for rung in _LADDER:
        side = max((each for each in _SIDES if each <= min(rung.side, shorter)), default=_SIDES[0])
        size = config.data.image_size or side
        height, width = (size, size) if isinstance(size, int) else size
        patch = config.model.patch_size or _patch(height, width)
        if patch is None or (size, rung.embed_dim) in seen or images < rung.fewest_images:
            continue
        seen.append((size, rung.embed_dim))
        shape: dict[str, Any] = {
            "patch_size": patch,
            "embed_dim": list(rung.embed_dim),
            "num_blocks": list(rung.num_blocks),
        }
        open_fields = {name: value for name, value in shape.items() if getattr(config.model, name) is None}
        model: ModelConfig = replace(config.model, name=_NAME, **open_fields)
        yield replace(config, model=model, data=replace(config.data, image_size=size))


def _patch(height: int, width: int) -> int | None:
    """Find the patch that cuts an image into a grid that stages can halve twice, of about 16 patches a side."""
    fitting = [
        patch
        for patch in (2, 4, 8, 16, 32, 64)
        if height % (patch * _GRID_STEP) == width % (patch * _GRID_STEP) == 0
        and max(height, width) <= patch * _LARGEST_GRID
    ]
    return next((patch for patch in fitting if max(height, width) <= patch * _GRID), next(reversed(fitting), None))


def _choose_loading(
    config: TrainConfig, data: ImageSet, device: torch.device, size: int | Sequence[int] | None
) -> tuple[TrainConfig, list[str]]:
    """Choose whether decoded images are kept, of the size that the model sees, and how many processes load them."""
    said, settings = [], config.data
    if isinstance(data, ImageData) and settings.pipeline == "timm" and data.windows is None and size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        needed = kept_bytes(data, settings, (data.in_chans, height, width))
        if needed <= free_memory(torch.device("cpu")) / _KEPT_SHARE:
            settings = replace(settings, keep_decoded=True)
            said.append(f"keep_decoded true: the images are decoded once and take {needed / 1e6:,.0f} MB of memory")
    if settings.pipeline == "timm" and device.type != "cpu":
        workers = min(_MOST_WORKERS, max(0, (os.cpu_count() or 1) // (config.devices or 1) - 1))
        settings = replace(settings, workers=workers)
        said.append(f"workers {workers}, as the {device.type} device computes and processors load")
    return replace(config, data=settings), said
