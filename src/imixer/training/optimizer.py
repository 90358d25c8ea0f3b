"""Build optimizer and learning rate schedule by timm's factories."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.optim.muon import Muon, _is_suitable_for_muon
from timm.scheduler import PolyLRScheduler, create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from imixer.errors import InputError, did_you_mean
from imixer.implicit import Contraction
from imixer.training.run.config import OptimConfig, ScheduleConfig

_FUSED = ("adam", "adamw", "sgd", "momentum")  # timm's names of torch's own
_MUON_MOMENTUM = 0.95  # of its author; timm takes 0.9 for every optimizer


def build_optimizer(
    model: nn.Module, config: OptimConfig, lr: float | None = None, *, fused: bool = False
) -> Optimizer:
    """Build the optimizer of timm that a configuration names, with biases and norms exempt from weight decay.

    Muon moves the matrices inside the model; it leaves stem, classifier and whatever is no matrix to AdamW. Of a
    `Segmenter` it leaves the last map to AdamW, and moves the backbone's stem and the maps of the levels.

    Args:
        model: The model to optimize.
        config: The configuration of the optimizer.
        lr: The peak learning rate. Default: `config.lr`.
        fused: Whether to take torch's fused kernels, where the optimizer has some.

    Raises:
        InputError: If there is no such optimizer, it does not take `eps`, `betas` or `momentum`, it needs second
            derivatives, no checkpoint could hold its settings, or it is Muon and the model has no matrix for it.
    """
    known = [str(name) for name in list_optimizers()]
    if config.opt.lower() not in known:
        meant = did_you_mean(config.opt, known) or "; give one that timm.optim.list_optimizers() names, such as adamw"
        raise InputError(f"no optimizer {config.opt!r}{meant}")
    info = get_optimizer_info(config.opt.lower())
    if info.second_order:
        raise InputError(f"{config.opt} needs second derivatives, which training does not compute; use adamw")
    for name, taken in (("eps", info.has_eps), ("betas", info.has_betas), ("momentum", info.has_momentum)):
        if getattr(config, name) is not None and not taken:  # timm would drop it silently
            raise InputError(f"{config.opt} has no option optim.{name}; leave it out")
    given: dict[str, Any] = {"eps": config.eps, "betas": config.betas, "momentum": config.momentum}
    options = {name: value for name, value in given.items() if value is not None}
    if info.opt_class is Muon:
        options = {"momentum": _MUON_MOMENTUM, "fallback_list": _not_for_muon(model)} | options
        if not muon_shapes(model):
            raise InputError(f"{config.opt} moves matrices, and none but stem and classifier is trained; use adamw")
    if fused and config.opt.lower() in _FUSED:
        options["fused"] = True
    if config.layer_decay is not None or config.contraction_lr_scale != 1.0:
        options["param_group_fn"] = partial(
            _scaled_groups, config=config, fallback_list=options.get("fallback_list", ())
        )
    try:
        optimizer = create_optimizer_v2(
            model, config.opt, lr=config.lr if lr is None else lr, weight_decay=config.weight_decay, **options
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"optim: {config.opt} cannot be built: {error}") from error
    for name, value in optimizer.param_groups[0].items():
        if name != "params" and not _fits_checkpoint(value):
            raise InputError(
                f"{config.opt} has {name} {value}, which is no number that a checkpoint could hold; use adamw"
            )
    return optimizer


def _fits_checkpoint(value: Any) -> bool:
    """Return whether a checkpoint can hold a setting of an optimizer."""
    if isinstance(value, (list, tuple, dict)):
        return all(map(_fits_checkpoint, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (int, float, str, Tensor))


def _scaled_groups(model: nn.Module, config: OptimConfig, fallback_list: Sequence[str]) -> list[dict[str, Any]]:
    """Group parameters by weight decay, as timm does, and by the factor of their learning rate."""
    no_weight_decay: set[str] = getattr(model, "no_weight_decay", set)()
    common: dict[str, Any] = dict(
        weight_decay=config.weight_decay, no_weight_decay_list=no_weight_decay, fallback_list=fallback_list
    )
    if config.layer_decay is not None:
        groups = param_groups_layer_decay(model, layer_decay=config.layer_decay, **common)
    else:
        groups = param_groups_weight_decay(model, **common)
    inside = {id(p) for module in model.modules() if isinstance(module, Contraction) for p in module.parameters()}
    scaled = []
    for group in groups:
        for here, factor in ((False, 1.0), (True, config.contraction_lr_scale)):
            own = [parameter for parameter in group["params"] if (id(parameter) in inside) == here]
            if own:
                scaled.append(group | {"params": own, "lr_scale": group.get("lr_scale", 1.0) * factor})
    return scaled


def build_scheduler(
    optimizer: Optimizer, config: ScheduleConfig, epochs: int, updates_per_epoch: int, updates: int | None = None
) -> tuple[Scheduler, int]:
    """Build the learning rate schedule of timm, counted in optimizer steps or in epochs.

    Args:
        optimizer: The optimizer whose learning rate it sets.
        config: The configuration of the schedule.
        epochs: Epochs without cool-down.
        updates_per_epoch: Optimizer steps of each epoch.
        updates: Optimizer steps of all epochs, if the last one is not whole.

    Returns:
        The schedule, for `step_scheduler`; and the number of epochs including cool-down.
    """
    if not config.sched_on_updates:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            config.sched,
            num_epochs=epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            cooldown_epochs=config.cooldown_epochs,
            decay_epochs=config.decay_epochs,
            decay_rate=config.decay_rate,
            step_on_epochs=True,
        )
        return scheduler, epochs + config.cooldown_epochs
    updates = updates or epochs * updates_per_epoch
    warmup = config.warmup_epochs * updates_per_epoch
    if config.warmup_share is not None:
        warmup = round(config.warmup_share * updates)
    if config.sched == "linear":
        # of timm's schedules the one whose power 1 is a line; its factory cannot begin it where the warm-up ends
        line = PolyLRScheduler(
            optimizer,
            t_initial=max(1, updates - warmup),
            power=1.0,
            lr_min=config.min_lr,
            warmup_t=warmup,
            warmup_lr_init=config.warmup_lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        return line, epochs + config.cooldown_epochs
    scheduler, _ = create_scheduler_v2(
        optimizer,
        config.sched,
        num_epochs=updates,  # timm's epochs are updates here, since neither warm-up nor run need be whole epochs
        warmup_epochs=warmup,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        decay_epochs=config.decay_epochs * updates_per_epoch,
        decay_rate=config.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return scheduler, epochs + config.cooldown_epochs


def step_scheduler(scheduler: Scheduler, updates: int, updates_per_epoch: int) -> None:
    """Set the learning rate for the step that follows `updates` optimizer steps.

    Args:
        scheduler: The schedule, from `build_scheduler`.
        updates: Optimizer steps done.
        updates_per_epoch: Optimizer steps per epoch.
    """
    scheduler.step_update(updates)  # each of the two does nothing to a schedule that counts the other
    if updates % updates_per_epoch == 0:
        scheduler.step(updates // updates_per_epoch)


def muon_shapes(model: nn.Module) -> list[tuple[int, int]]:
    """List the shapes (out, in) of the matrices that Muon moves; a convolution's has in x height x width columns."""
    aside = _not_for_muon(model)
    return [
        (parameter.shape[0], parameter[0].numel())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and not any(fnmatch(name, pattern) for pattern in aside)
        and _is_suitable_for_muon(parameter)
    ]


def _not_for_muon(model: nn.Module) -> list[str]:
    """Return patterns of the names of stem and classifier, where timm knows them. Stems of backbones are not among."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    known: list[str] = []
    for name in (cfg.get("first_conv"), cfg.get("classifier")):
        known += [name] if isinstance(name, str) else list(name or ())
    return [f"{name}.*" for name in ("stem", *known)]
