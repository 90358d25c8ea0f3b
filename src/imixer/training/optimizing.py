"""Optimizer and schedule, by timm's factories."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from imixer.errors import InputError
from imixer.training.config import OptimConfig, ScheduleConfig
from imixer.training.suggest import nearest

_FUSED = ("adam", "adamw", "sgd", "momentum")  # timm's names of torch's own


def build_optimizer(
    model: nn.Module, config: OptimConfig, lr: Optional[float] = None, *, fused: bool = False
) -> Optimizer:
    """timm's optimizer of that name; biases and norms are exempt from weight decay.

    Args:
        model: What to optimize.
        config: How.
        lr: Learning rate at its highest. Default: `config.lr`.
        fused: Take torch's fused kernels where the optimizer has some.

    Raises:
        InputError: If there is no such optimizer, or it does not take `eps` or `betas`.
    """
    known = [str(name) for name in list_optimizers()]
    if config.opt.lower() not in known:
        raise InputError(f"no optimizer {config.opt!r}{nearest(config.opt, known)}")
    info = get_optimizer_info(config.opt.lower())
    for name, taken in (("eps", info.has_eps), ("betas", info.has_betas)):
        if getattr(config, name) is not None and not taken:  # timm would drop it silently
            raise InputError(f"{config.opt} has no option optim.{name}; leave it out")
    given: Dict[str, Any] = {"eps": config.eps, "betas": config.betas}
    options = {name: value for name, value in given.items() if value is not None}
    if fused and config.opt.lower() in _FUSED:
        options["fused"] = True
    try:
        return create_optimizer_v2(
            model, config.opt, lr=config.lr if lr is None else lr, weight_decay=config.weight_decay, **options
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"optim: {config.opt} cannot be built: {error}") from error


def build_scheduler(
    optimizer: Optimizer, config: ScheduleConfig, epochs: int, updates_per_epoch: int
) -> Tuple[Any, int]:
    """Build timm's schedule, counted in updates or in epochs.

    Args:
        optimizer: Whose learning rate moves.
        config: How it moves.
        epochs: Epochs without cool-down.
        updates_per_epoch: Optimizer steps per epoch.

    Returns:
        The schedule, which `move_schedule` moves, and the number of epochs including cool-down.
    """
    return create_scheduler_v2(
        optimizer,
        config.sched,
        num_epochs=epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        cooldown_epochs=config.cooldown_epochs,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        step_on_epochs=not config.sched_on_updates,
        updates_per_epoch=updates_per_epoch,
    )


def move_schedule(scheduler: Any, updates: int, updates_per_epoch: int) -> None:
    """Set the learning rate for the step that follows `updates` optimizer steps.

    Args:
        scheduler: One of `build_scheduler`.
        updates: Optimizer steps done.
        updates_per_epoch: Optimizer steps per epoch.
    """
    scheduler.step_update(updates)  # each of the two does nothing to a schedule that counts the other
    if updates % updates_per_epoch == 0:
        scheduler.step(updates // updates_per_epoch)
