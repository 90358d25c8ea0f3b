"""Find settings that were chosen and have no effect beside the others. Free of torch.

They are shown and not refused: a recipe, or other cells of a sweep, may need them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from imixer.data.names import TORCHVISION, is_named, timm_prefix
from imixer.training.run.config import Choosable, TrainConfig

_SHAPES_THE_NORM = ("coeff", "n_power_iterations", "sigma", "scaling", "detach_sigma")
_INVERTS = (
    *("n_iter", "hidden_ratio", "norm", *_SHAPES_THE_NORM, "inner_drop_rate", "legacy"),
    *("jacobian_penalty", "trajectory_penalty", "correction_penalty"),
    *("solver", "gradient", "tolerance", "max_steps", "gradient_terms", "on_failure"),
)


def unused_settings(
    config: TrainConfig,
    chosen: Collection[Choosable] = (),
    *,
    args: Mapping[str, Any] | None = None,
    trains_inverses: bool = True,
    own_split: bool = False,
    streamed: bool = True,
) -> list[str]:
    """Find the settings that were chosen and have no effect, given the rest of a configuration.

    A setting counts as chosen if it is not what it would be by default.

    Args:
        config: The run's configuration.
        chosen: What was chosen for the images and the device before, as `config.choose` names it.
        args: The keyword arguments that the model was built with, some of which come with the weights that it starts
            from. Default: what the configuration says.
        trains_inverses: Whether the model has an F, whose inverse mixes the tokens, that is trained.
        own_split: Whether the data say themselves which images are held out.
        streamed: Whether the data are streamed, or may be.

    Returns:
        A clause for each, such as `model.tolerance 0.001: solver is fixed`.
    """
    clauses: dict[str, str] = {}
    several = [*_of_model(config, args or {}), *_of_data(config), *_of_schedule(config), *_of_task(config)]
    if not {"model", "steps"} & {*config.choose, *chosen}:
        several.append(("minutes", "neither model nor steps are chosen"))
    if not trains_inverses:
        several.append(("optim.contraction_lr_scale", "no F is trained"))
    if own_split:
        several += [
            (f"data.{name}", "the data say which images are held out") for name in ("val_fraction", "split_seed")
        ]
    if not streamed:
        settings = ("cache_gb", "cache_dir", *(["streaming"] if config.data.streaming == "always" else []))
        several += [(f"data.{name}", "these data are not streamed") for name in settings]
    for name, why in several:
        group, _, field = name.rpartition(".")
        owner: Any = getattr(config, group) if group else config
        value = owner.overrides().get(field) if group == "model" else getattr(owner, field)
        default = None if group == "model" else {each.name: each.default for each in fields(owner)}[field]
        if value is not None and value != default:
            clauses.setdefault(name, f"{name} {_shown(value)}: {why}")
    return list(clauses.values())


def _of_model(config: TrainConfig, args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    options = {**args, **config.model.overrides()}
    layers, norm, sigma = (options.get(name) for name in ("num_layers", "norm", "sigma"))
    solver, gradient = options.get("solver", "fixed"), options.get("gradient", "unroll")
    if layers == 2:
        yield from ((f"model.{name}", "num_layers is 2, which has no inverse") for name in _INVERTS)
    if norm in ("none", "batch"):
        yield from ((f"model.{name}", f"norm is {norm}") for name in _SHAPES_THE_NORM)
    if norm == "orthogonal":
        yield "model.n_power_iterations", "norm is orthogonal, which takes no power iterations"
    if sigma in ("exact", "row_norm"):
        yield "model.n_power_iterations", f"sigma is {sigma}, which takes no power iterations"
    if solver == "fixed" and gradient != "implicit":
        yield from ((f"model.{name}", "solver is fixed") for name in ("tolerance", "max_steps"))
    if solver != "fixed" and layers in (None, 3):
        yield "model.n_iter", f"solver is {solver}, which goes to a tolerance"
    if config.compile and (solver, gradient) == ("fixed", "unroll"):
        yield "model.on_failure", "compile is true, which does not look at fixed iterations"
    if gradient != "neumann":
        yield "model.gradient_terms", f"gradient is {gradient}"


def _of_data(config: TrainConfig) -> Iterator[tuple[str, str]]:
    data = config.data
    if data.crop != "resized":
        yield from ((f"data.{name}", f"crop is {data.crop}") for name in ("scale", "ratio"))
    if data.name == "digits":
        built_in = ("root", "download", "skip_bad", "check", "value_range", "background", "cache_gb", "cache_dir")
        yield from ((f"data.{name}", "the digits are built in") for name in built_in)
    elif data.name in TORCHVISION or timm_prefix(data.name):
        library = "torchvision" if data.name in TORCHVISION else "timm"
        yield from ((f"data.{name}", f"{library} reads {data.name}") for name in ("skip_bad", "check"))
    if data.name in TORCHVISION:
        yield "data.background", f"torchvision reads {data.name}"
    if not is_named(data.name, config.task):
        yield from ((f"data.{name}", "data.name is the place of the data itself") for name in ("root", "download"))
    if data.streaming == "never":
        yield from ((f"data.{name}", "streaming is never") for name in ("cache_gb", "cache_dir"))
    if data.pipeline == "device":
        for name in ("workers", "keep_decoded"):
            yield f"data.{name}", "pipeline is device, which keeps all images in memory"
    if not data.random_erasing or not (data.mixup or data.cutmix):
        yield "data.erase", "nothing is erased" if not data.random_erasing else "nothing is mixed"
    if config.task == "segment":
        yield from _of_masks(config)


def _of_masks(config: TrainConfig) -> Iterator[tuple[str, str]]:
    yield "data.check", "task is segment, which decodes all images first"
    yield from ((f"data.{name}", "task is segment, which streams nothing") for name in ("cache_gb", "cache_dir"))
    if config.masks.fit == "window":
        why = "masks.fit is window, which trains on random pieces of the images as they are"
        yield from ((f"data.{name}", why) for name in ("crop", "shift", "scale", "ratio", "interpolation"))
    elif config.data.interpolation == "random":
        yield "data.interpolation", "task is segment, which takes bicubic for it"


def _of_schedule(config: TrainConfig) -> Iterator[tuple[str, str]]:
    schedule = config.schedule
    if schedule.sched != "step":
        yield from ((f"schedule.{name}", f"sched is {schedule.sched}") for name in ("decay_epochs", "decay_rate"))
    if schedule.warmup_share is not None:
        yield "schedule.warmup_epochs", f"warmup_share is {schedule.warmup_share:g}"
    for name in ("warmup_epochs",) if schedule.warmup_share is None else ("warmup_share",):
        if getattr(schedule, name) == 0:
            yield "schedule.warmup_lr", f"{name} is 0"
    if schedule.sched == "step":
        yield "schedule.min_lr", "sched is step, which falls by decay_rate"


def _of_task(config: TrainConfig) -> Iterator[tuple[str, str]]:
    for group, task in (("segment", "segment"), ("masks", "segment"), ("anomaly", "anomaly")):
        if config.task != task:
            for field in fields(getattr(config, group)):
                yield f"{group}.{field.name}", f"task is {config.task}"
    if config.task == "segment":
        if config.segment.head == "linear":
            yield "segment.head_dim", "head is linear, which adds no levels"
        if config.masks.fit == "resize":
            yield "masks.overlap", "fit is resize, which sees an image at once"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
