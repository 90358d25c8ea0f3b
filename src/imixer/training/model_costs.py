"""Count and measure what models cost: parameters, multiply-adds, time per image on this device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import timm
import torch
from rich.console import Console
from torch import nn

from imixer.data.config import DataConfig
from imixer.errors import InputError, did_you_mean
from imixer.progress import with_progress
from imixer.tables import Grid, on_screen
from imixer.timing import wait_for
from imixer.training.devices import device_name
from imixer.training.finished_run import choose_device
from imixer.training.model import build_model, forward_cost
from imixer.training.run.config import ModelConfig
from imixer.weights import packaged_config, packaged_models

_CLASSES = 1000
_FORWARDS, _LEAST_S, _MOST_S = 3, 0.2, 2.0


@dataclass(frozen=True)
class ModelCost:
    """The cost of a model at its own image size, with 1,000 classes or, of a packaged one, with its own.

    Args:
        name: The name of the model in timm.
        input_size: The size (in_chans, height, width) of its input.
        parameters: The number of parameters.
        multiply_adds: Multiply-adds of one image's forward pass. None if they depend on the image.
        seconds: Seconds per image of a forward pass, the median of several. None if it was not measured.
        batch_size: Images of one forward pass.
        device: The name of the device.
        trained_classes: The number of classes that its packaged weights know. None without weights.
    """

    name: str
    input_size: tuple[int, int, int]
    parameters: int
    multiply_adds: int | None
    seconds: float | None
    batch_size: int
    device: str
    trained_classes: int | None = None


def model_costs(
    names: Sequence[str] = (), *, device: str = "auto", batch_size: int = 1, timed: bool = True
) -> list[ModelCost]:
    """Count and measure what models cost.

    Args:
        names: Names of timm models, or patterns with `*`. Default: the models of this package,
            and those that ship with weights.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.
        batch_size: Images of one forward pass.
        timed: Whether to measure the time.

    Raises:
        InputError: If timm knows no such model, a model takes no images, it does not fit into memory, or there is no
            such device.
    """
    known = _model_names(names)
    chosen = choose_device(device)
    costs = ([_cost(name, chosen, batch_size, timed)] for name in known)
    return list(with_progress(costs, len(known), "measuring models" if timed else "counting models"))


def _model_names(patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return sorted([*timm.list_models(module="variants"), *packaged_models()])  # of imixer.models, and with weights
    names: dict[str, None] = {}
    for pattern in patterns:
        matching = timm.list_models(pattern) or [pattern] * timm.is_model(pattern.partition(".")[0])
        if not matching:
            meant = did_you_mean(pattern, timm.list_models()) or "; `imixer models` lists those of this package"
            raise InputError(f"no model {pattern!r}{meant}")
        names.update(dict.fromkeys(matching))
    return list(names)


def _cost(name: str, device: torch.device, batch_size: int, timed: bool) -> ModelCost:
    in_chans, classes = 3, None
    if name in packaged_models():
        config = packaged_config(packaged_models()[name])
        in_chans, classes = config["pretrained_cfg"]["input_size"][0], len(config["label_names"])
    built = build_model(
        ModelConfig(name=name), DataConfig(), native_size=None, in_chans=in_chans, num_classes=classes or _CLASSES
    )
    cost = forward_cost(built)
    return ModelCost(
        name=name,
        input_size=built.input_size,
        parameters=sum(p.numel() for p in built.model.parameters()),
        multiply_adds=cost.total if cost else None,
        seconds=_seconds_per_image(built.model, built.input_size, device, batch_size) if timed else None,
        batch_size=batch_size,
        device=device_name(device),
        trained_classes=classes,
    )


@torch.inference_mode()
def _seconds_per_image(
    model: nn.Module, input_size: tuple[int, int, int], device: torch.device, batch_size: int
) -> float:
    model = model.eval().to(device)
    images = torch.zeros(batch_size, *input_size, device=device)
    model(images)  # the first takes memory, and chooses kernels
    times: list[float] = []
    for seconds in _timed_forwards(model, images):
        times.append(seconds)
        if sum(times) > _MOST_S or (len(times) >= _FORWARDS and sum(times) > _LEAST_S):
            break
    return median(times) / batch_size


def _timed_forwards(model: nn.Module, images: torch.Tensor) -> Iterator[float]:
    while True:
        began = time.perf_counter()
        model(images)
        wait_for(images.device)
        yield time.perf_counter() - began


def model_grid(costs: Sequence[ModelCost]) -> Grid:
    """Build the table of the costs of some models, a row each. A column that nothing is known of is left out."""
    columns: dict[str, Any] = {
        "model": [cost.name for cost in costs],
        "image": ["x".join(map(str, cost.input_size[1:])) for cost in costs],
        "parameters": [f"{cost.parameters / 1e6:.2f} M" for cost in costs],
        "multiply-adds": ["-" if c.multiply_adds is None else f"{c.multiply_adds / 1e9:.3f} G" for c in costs],
    }
    if any(cost.seconds is not None for cost in costs):
        columns["ms per image"] = ["-" if c.seconds is None else f"{1e3 * c.seconds:.2f}" for c in costs]
    if any(cost.trained_classes is not None for cost in costs):
        columns["weights"] = ["-" if c.trained_classes is None else f"of {c.trained_classes} classes" for c in costs]
    rows = zip(*columns.values(), strict=True)
    return Grid(tuple(columns), tuple(rows), text=2)


def show_model_costs(costs: Sequence[ModelCost], console: Console) -> None:
    """Show the costs of some models.

    Args:
        costs: The costs, at least one.
        console: The console to print on.
    """
    first = costs[0]
    packaged = any(cost.trained_classes is not None for cost in costs)
    classes = f"{_CLASSES:,} classes" + " where they have no weights" * packaged
    console.print(on_screen(model_grid(costs), f"{len(costs)} model{'s' * (len(costs) > 1)} with {classes}"))
    if packaged:
        console.print(
            "--model NAME of predict, evaluate, compare, analyze, explore and export takes one that has weights"
        )
    if first.seconds is not None:
        console.print(f"time in batches of {first.batch_size}, on {first.device}")
