"""What a training costs in multiply-adds, and how long it lasts for a given number of them."""

from __future__ import annotations

from dataclasses import dataclass

from timm.optim import get_optimizer_info
from timm.optim.muon import DEFAULT_NS_STEPS, Muon

from imixer.errors import InputError
from imixer.training.model import BuiltModel, forward_cost
from imixer.training.optimizing import muon_shapes
from imixer.training.run.config import TrainConfig, parse_budget

BACKWARD = 3  # forward and backward, in forwards


def optimizer_cost(built: BuiltModel, opt: str) -> int:
    """Count the multiply-adds in matrix products of one optimizer step: Muon's Newton-Schulz iterations, or 0.

    Each iteration multiplies X X^T, its square, and that with X, for X of (m, n), m <= n.
    """
    if get_optimizer_info(opt.lower()).opt_class is not Muon:
        return 0
    sides = (sorted(shape) for shape in muon_shapes(built.model))
    return DEFAULT_NS_STEPS * sum(2 * m * m * n + m**3 for m, n in sides)


@dataclass(frozen=True)
class Duration:
    """How long a training lasts.

    Args:
        steps: Optimizer steps.
        epochs: Epochs begun, the last of which may be a part of one.
        summary: One line that says so, and what a step costs.
    """

    steps: int
    epochs: int
    summary: str


def duration(config: TrainConfig, built: BuiltModel, steps_per_epoch: int) -> Duration:
    """Convert `config.budget` into steps.

    A step costs 3 forwards per image of the batch, and what the optimizer multiplies. Not counted: power iterations,
    validation, averaging.

    Args:
        config: The run, with a budget.
        built: Its model.
        steps_per_epoch: Optimizer steps per epoch.

    Raises:
        InputError: If the budget is below one epoch, or the cost depends on the images.
    """
    assert config.budget is not None
    forward, optimizer = forward_cost(built), optimizer_cost(built, config.optim.opt)
    if config.model.solver not in (None, "fixed"):
        raise InputError(
            f"budget is {config.budget}, and model.solver {config.model.solver} multiplies as often as its images "
            "need; give epochs instead, or model.solver fixed"
        )
    if forward is None:
        raise InputError(
            f"budget is {config.budget}, and the multiply-adds of {built.name} cannot be counted; give epochs instead"
        )
    images = BACKWARD * forward.total * config.data.batch_size
    steps = int(parse_budget(config.budget) // (images + optimizer))
    if steps < steps_per_epoch:
        raise InputError(
            f"budget is {config.budget}, and one epoch takes {_shown(steps_per_epoch * (images + optimizer))}; give "
            "at least that"
        )
    share = f", of which convolutions are {forward.convolutions / forward.total:.1%}"
    newton = f"; Newton-Schulz adds {optimizer / images:.1%}" if optimizer else ""
    return Duration(
        steps,
        -(-steps // steps_per_epoch),
        f"budget {config.budget}: {steps:,} steps, {steps / steps_per_epoch:.2f} epochs, at 3 x "
        f"{forward.total / 1e6:.1f} M multiply-adds per image{share}{newton}",
    )


def _shown(cost: float) -> str:
    return f"{cost / 1e15:.3g}P" if cost >= 1e14 else f"{cost / 1e12:.3g}T"
