"""Convert a budget of multiply-adds into optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from timm.optim import get_optimizer_info
from timm.optim.muon import DEFAULT_NS_STEPS, Muon

from imixer.errors import InputError
from imixer.inverse_options import PENALTIES
from imixer.training.model import FORWARDS_PER_STEP, BuiltModel, forward_cost
from imixer.training.optimizer import muon_shapes
from imixer.training.run.config import TrainConfig, parse_budget


def optimizer_cost(built: BuiltModel, opt: str) -> int:
    """Count the multiply-adds in matrix products of one optimizer step: Muon's Newton-Schulz iterations.

    Each iteration multiplies X X^T, its square, and that with X, for X of (m, n), m <= n.

    Args:
        built: The model.
        opt: The name of the optimizer in timm.

    Returns:
        The multiply-adds; 0 for other optimizers than Muon.
    """
    if get_optimizer_info(opt.lower()).opt_class is not Muon:
        return 0
    sides = (sorted(shape) for shape in muon_shapes(built.model))
    return DEFAULT_NS_STEPS * sum(2 * m * m * n + m**3 for m, n in sides)


@dataclass(frozen=True)
class Duration:
    """The duration of a training with a budget.

    Args:
        steps: Optimizer steps.
        epochs: Epochs, the last of which need not be whole.
        summary: A line for the user, with the duration and the cost of a step.
    """

    steps: int
    epochs: int
    summary: str


def for_steps(config: TrainConfig, steps: int, steps_per_epoch: int) -> TrainConfig:
    """Return the configuration with as many epochs as a number of steps takes, and a warm-up that ends within them.

    Args:
        config: The configuration of the run.
        steps: Optimizer steps of the run.
        steps_per_epoch: Optimizer steps per epoch.
    """
    epochs = -(-steps // steps_per_epoch)
    warmup = config.schedule.warmup_epochs
    if config.schedule.warmup_share is None and warmup >= epochs:
        warmup = epochs - 1
    return replace(config, epochs=epochs, schedule=replace(config.schedule, warmup_epochs=warmup))


def duration(config: TrainConfig, built: BuiltModel, steps_per_epoch: int, *, begun: bool = False) -> Duration:
    """Convert the budget of a run into optimizer steps.

    A step costs 3 forward passes for each image of the batch, and the matrix products of the optimizer. Power
    iterations, validation and averaging are not counted, nor what is computed again or beside the forward pass for
    penalties and gradients, which the summary names.

    Args:
        config: The configuration of the run, with a budget.
        built: The model.
        steps_per_epoch: Optimizer steps per epoch.
        begun: Whether the run goes on with the steps that it was begun for, at whatever cost.

    Raises:
        InputError: If the budget is less than one epoch, or the cost depends on the images and the run is new.
    """
    assert config.budget is not None
    forward, optimizer = forward_cost(built), optimizer_cost(built, config.optim.opt)
    options = built.model_args | config.model.overrides()
    for option, value, remedy in (
        ("solver", options.get("solver"), "fixed"),
        ("gradient", "implicit" if options.get("gradient") == "implicit" else None, "unroll"),
    ):
        if value not in (None, remedy) and not begun:
            name = f"model.kwargs.{option}" if option in config.model.kwargs else f"model.{option}"
            raise InputError(
                f"budget is {config.budget}, and {name} {value} multiplies as often as its images need; give epochs "
                f"instead, or {name} {remedy}"
            )
    if forward is None:
        raise InputError(
            f"budget is {config.budget}, and the multiply-adds of {built.name} cannot be counted; give epochs instead"
        )
    images = FORWARDS_PER_STEP * forward.total * config.data.batch_size
    steps = int(parse_budget(config.budget) // (images + optimizer))
    if steps < steps_per_epoch:
        raise InputError(
            f"budget is {config.budget}, and one epoch takes {_rounded_up(steps_per_epoch * (images + optimizer))}; "
            "give at least that"
        )
    share = f", of which convolutions are {forward.convolutions / forward.total:.1%}"
    newton = f"; Newton-Schulz adds {optimizer / images:.1%}" if optimizer else ""
    uncounted = ", ".join(_uncounted(config, options))
    return Duration(
        steps,
        -(-steps // steps_per_epoch),
        f"budget {config.budget}: {steps:,} steps, {steps / steps_per_epoch:.2f} epochs, at 3 x "
        f"{forward.total / 1e6:.1f} M multiply-adds per image{share}{newton}"
        + (f"; not counted is what {uncounted} adds" if uncounted else ""),
    )


def _uncounted(config: TrainConfig, options: Mapping[str, Any]) -> list[str]:
    """Name the settings by which a step multiplies more than 3 forward passes do."""
    penalties = [f"model.{name}" for name in PENALTIES if options.get(name)]
    gradient = options.get("gradient")
    again = [f"model.gradient {gradient}"] if gradient in ("recompute", "neumann") else []
    return [*penalties, *again, *(["grad_checkpointing"] if config.grad_checkpointing else [])]


def _rounded_up(cost: int) -> str:
    """Write a cost with three digits, as a budget that pays for it."""
    unit, zeros = ("P", 15) if cost >= 1e14 else ("T", 12)
    last = 10 ** max(0, len(str(cost)) - 3)
    rounded = -(-cost // last) * last
    text = f"{rounded / 10**zeros:.3g}{unit}"
    return text if parse_budget(text) >= cost else _rounded_up(rounded + 1)  # a float may fall short
