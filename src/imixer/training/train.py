"""Train a run, from its configuration to its directory: from the beginning, or from where it stopped."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from lightning.fabric import Fabric
from lightning.fabric.utilities.seed import seed_everything

from imixer.data.batches import worker_message
from imixer.data.config import DataConfig
from imixer.data.image_data import ImageSet
from imixer.data.names import BUILT_IN, is_named
from imixer.data.sources.group_cache import cache_dir
from imixer.data.sources.image_files import data_root
from imixer.errors import InputError, in_short
from imixer.escaping import shell_word
from imixer.models.probe import implicit_layers
from imixer.reading import read_json, read_rows
from imixer.training.allocator import keep_freed_memory
from imixer.training.budget import duration, for_steps
from imixer.training.devices import (
    batch_shard,
    build_fabric,
    check_devices,
    device_name,
    resolve_devices,
    resolve_precision,
    started_by_launcher,
)
from imixer.training.finetune import count_parameters, freeze, freeze_unused, trained_batch_norms
from imixer.training.launch import launch, report_run
from imixer.training.loop import Loop
from imixer.training.model import BuiltModel, enable_grad_checkpointing, require_memory_for_batch, require_trainable
from imixer.training.model_directory import save_model
from imixer.training.optimizer import build_optimizer
from imixer.training.photo_settings import choose_settings
from imixer.training.precision import set_float32_products
from imixer.training.preview import show_preview
from imixer.training.progress_bar import TrainingProgress
from imixer.training.run.checkpoints import Checkpoints, State
from imixer.training.run.config import Choosable, ModelConfig, TrainConfig
from imixer.training.run.damage import damage, set_aside_damaged_model
from imixer.training.run.directory import RunDirectory, check_out, create_run, open_begun
from imixer.training.run.environment import environment, environment_changes
from imixer.training.run.loggers import build_logger, check_logger
from imixer.training.run.metrics import MetricsWriter
from imixer.training.run.parsing import load_config, save_config
from imixer.training.run.result import TrainingResult, best_row, read_result
from imixer.training.run.resume_rules import check_changes, check_parts
from imixer.training.same_data import check_same_data, check_same_start, data_fingerprint, held_out_draw
from imixer.training.stop_signals import Interrupted
from imixer.training.tasks.registry import find_task
from imixer.training.tasks.task import Task
from imixer.training.third_party_warnings import silence
from imixer.training.time_estimate import estimate_time
from imixer.training.validation import require_held_out
from imixer.training.whitening import whiten_stem
from imixer.weights import packaged_models
from imixer.writing import check_output_folder, json_text, write_text

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def train(config: TrainConfig) -> TrainingResult:
    """Train a model as configured and write the run directory, as `imixer train` does.

    Nothing is written before all input has been checked. With several devices, one process is started for each, unless
    `torchrun` or `srun` has done so.

    Args:
        config: The run's configuration.

    Returns:
        The result in numbers. `imixer.training.finished_run.load_run` loads the model.

    Raises:
        InputError: If something in the configuration or the data is wrong, or training diverges.
        Interrupted: On SIGTERM or Ctrl-C, after the step at hand is finished and saved.
    """
    if config.task == "anomaly":
        raise InputError(
            "task is anomaly, which takes no steps; `imixer train` and "
            "imixer.analysis.anomaly.detector_run.train_detector take it"
        )
    config = resolve_devices(config)
    check_out(config.out)
    return _start(config, None)


def resume(path: str, config: TrainConfig | None = None) -> TrainingResult:
    """Continue a run from its latest checkpoint, as if it had never stopped. A finished run is left as it is.

    Args:
        path: The run's directory.
        config: The run's configuration, with changes to how and where it is computed. Default: no changes.

    Returns:
        The result in numbers.

    Raises:
        InputError: If there is no such run, another process trains it, its checkpoints are damaged, its data are gone
            or others, the configuration changes what is computed, or training diverges.
        Interrupted: On SIGTERM or Ctrl-C, after the step at hand is finished and saved.
    """
    run = open_begun(path)
    stored = load_config(run.config)
    config = resolve_devices(stored if config is None else config)
    check_changes(stored, config, path)
    if run.finished:
        if (problem := damage(run)) is None:
            return read_result(run)
        _log.warning(f"{problem}; written again from the checkpoints")
    check_output_folder(run.path, "resume")
    _require_start(config, run)
    return _start(config, run)


def _require_start(config: TrainConfig, run: RunDirectory) -> None:
    """Check that the weights are there that a run began with, which say what model it is."""
    for name in ("checkpoint", "from_mixer"):
        place = getattr(config.model, name)
        if place and os.path.isabs(place) and not os.path.exists(place):
            raise InputError(
                f"{place}, which {run.path} began with, is gone; say with --model.{name} where it lies now"
            )


def resolve_defaults(
    config: TrainConfig,
    built: BuiltModel,
    value_range: tuple[float, float] | None = None,
    streaming: Literal["always", "never"] | None = None,
) -> TrainConfig:
    """Spell out every default of a configuration that depends on data or model, and make its paths absolute.

    Args:
        config: The run's configuration.
        built: Its model.
        value_range: The range of pixel values that was found in the data. Default: as the configuration says.
        streaming: Whether the data are streamed. Default: as the configuration says.

    Returns:
        The configuration, from which the same run can be trained anywhere. `out` is left open.
    """
    absolute: dict[str, Any] = {
        field: str(Path(value).absolute())
        for field in ("name", "root")
        if (value := getattr(config.data, field))
        and os.path.isdir(value)
        and not (field == "name" and is_named(value, config.task))
    }
    if is_named(config.data.name, config.task) and config.data.name not in BUILT_IN:
        absolute["root"] = str(data_root(config.data.root).absolute())
    if config.data.cache_dir is not None:
        absolute["cache_dir"] = str(cache_dir(config.data.cache_dir).absolute())
    _, height, width = built.input_size
    size = height if height == width else (height, width)
    data: DataConfig = replace(
        config.data,
        image_size=size,
        value_range=value_range or config.data.value_range,
        streaming=streaming or config.data.streaming,
        **absolute,
    )
    model = replace(_with_absolute_starts(config.model), name=built.title)
    return replace(config, data=data, model=model, out=None)


def _with_absolute_starts(model: ModelConfig) -> ModelConfig:
    """Make the paths of the weights to start from absolute."""
    starts: dict[str, Any] = {
        field: str(Path(value).absolute())
        for field in ("checkpoint", "from_mixer")
        if (value := getattr(model, field)) and value not in packaged_models() and os.path.exists(value)
    }
    return replace(model, **starts)


def _start(config: TrainConfig, run: RunDirectory | None) -> TrainingResult:
    """Train in this process, or in one per device."""
    silence()
    check_logger(config.logger)
    check_devices(config)
    config = resolve_precision(config)
    if config.devices == 1 or started_by_launcher():
        return _train(build_fabric(config), config, run)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "config.yaml"
        save_config(config, settings)
        resumed = [] if run is None else [str(run.path)]
        saved = {} if run is None else {"saved": _what_is_saved(run)}
        path = launch("imixer.training.worker", str(settings), *resumed, devices=config.devices, **saved)
    return read_result(RunDirectory(path))


def _train(fabric: Fabric, config: TrainConfig, begun: RunDirectory | None) -> TrainingResult:
    """Train in this process, one of the run's."""
    keep_freed_memory()
    fabric.launch()
    set_float32_products(fabric.device, config.tf32)
    if fabric.device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # of a convolution's gradient; all else repeats by itself
    task = find_task(config.task)
    data = task.open(config)
    choices: tuple[str, ...] = ()
    chosen: list[Choosable] = []
    if config.choose and not begun:
        opened, given, chosen = data, config, config.choose
        config, choices = _by_first(
            fabric,
            lambda: choose_settings(
                given, opened, fabric.device, lambda each: task.build_model(each, opened), task.loss(opened, given)
            ),
        )
    seed_everything(config.seed, workers=True, verbose=False)
    built = task.build_model(config, data)
    data = _prepared_alike(data, built, config)
    freeze_unused(built.model)
    if config.finetune is not None:
        freeze(built.model, config.finetune, built.title)
    if config.finetune in (None, "all"):  # a batch norm that is frozen takes any batch
        require_trainable(built, min(config.micro_batch, len(data.train)))
    if begun and trained_batch_norms(built.model):
        why = "a batch norm takes the statistics of each of these parts of a batch"
        check_parts(load_config(begun.config), config, str(begun.path), why)
    # a batch larger than the data is refused below
    require_memory_for_batch(built.input_size, min(config.micro_batch, len(data.train)))
    build_optimizer(built.model, config.optim)  # refuses what is wrong, before anything is written
    if config.grad_checkpointing:
        enable_grad_checkpointing(built)
    require_held_out(data, fabric.world_size)
    training, held_out = task.build_batches(
        data, config, built.input_size, device=fabric.device, shard=batch_shard(fabric, config)
    )
    loss = task.loss(data, config)
    steps, steps_per_epoch = config.steps, len(training) // config.accumulate
    if config.budget is not None:
        lasts = duration(config, built, steps_per_epoch, begun=begun is not None)
        steps = lasts.steps
        if fabric.is_global_zero:
            _log.info(lasts.summary)
    if steps is not None:
        whole = config.schedule.warmup_epochs
        config = for_steps(config, steps, steps_per_epoch)
        if config.schedule.warmup_epochs != whole and fabric.is_global_zero:
            _log.info(
                f"schedule.warmup_epochs is {whole}, and the run has {config.epochs}, the last without warm-up: "
                f"{config.schedule.warmup_epochs} warm up; schedule.warmup_share is a share of any run"
            )
    if fabric.is_global_zero:
        all_steps = steps or config.all_epochs * steps_per_epoch
        estimate = estimate_time(config, built, loss, training, fabric.device, steps=all_steps, held_out=len(data.val))
        show_preview(data, config, built, steps=steps, estimate=estimate, choices=choices, chosen=chosen)
    if not begun:
        whiten_stem(built.model, config, data, built.input_size)
    run = begun or _by_first(fabric, lambda: create_run(config.out, data.name, built.title))
    report_run(run.path)
    with _locked(fabric, run), _removed_if_empty(fabric, run, new=not begun):
        state = _latest(fabric, run) if begun else None
        before = load_config(run.config) if begun else config
        if state is not None:
            check_same_data(state, data, run)
            start, start_before = (each.model.checkpoint or each.model.from_mixer for each in (config, before))
            if start != start_before:
                check_same_start(state, built.identity, str(start), run)
            config, steps = _as_begun(config, steps, state, steps_per_epoch)
        elif begun:
            whiten_stem(built.model, config, data, built.input_size)
        if fabric.is_global_zero and not begun:
            streaming: Literal["always", "never"] = "never" if data.windows is None else "always"
            save_config(resolve_defaults(config, built, data.value_range, streaming), run.config)
            write_text(run.environment, json_text(_begun_with(config)))
        if fabric.is_global_zero and begun:
            _note_changes(run, config, state["step"] if state else 0)
            _remember_model(run, before, config)
        logger = build_logger(
            config.logger if fabric.is_global_zero else "csv", run, asdict(config), state["step"] if state else 0
        )
        metrics = MetricsWriter(run, logger)
        loop = Loop(
            fabric,
            config,
            run,
            built,
            training,
            held_out,
            loss,
            task.validation(data, config, built.input_size),
            metrics,
            TrainingProgress(fabric.is_global_zero),
            data_fingerprint=data_fingerprint(data),
            steps=steps,
        )
        if state is not None:
            _load(loop, state)
        if begun and fabric.is_global_zero:
            metrics.restart(loop.rows, measured=bool(implicit_layers(built.model)) and config.strategy != "fsdp")
        _fit(loop)
        return _finish(loop, task, config, data, device_name(fabric.device))


def _prepared_alike(data: ImageSet, built: BuiltModel, config: TrainConfig) -> ImageSet:
    """Normalise images as they were for the weights that the model starts from, if these say how."""
    mean, std = (built.preparation.get(name) for name in ("mean", "std"))
    if mean and std and data.in_chans == 1 and len(set(mean)) == len(set(std)) == 1:
        mean, std = mean[:1], std[:1]  # of colours alike, as of gray
    if not mean or not std or not len(mean) == len(std) == data.in_chans:
        if not config.model.sources:
            return data
        said = f"say it for {len(mean)} channels" if mean and std else "do not say how theirs were"
        note = f"normalised by their own mean and deviation, as the weights to start from {said}"
        return replace(data, notes=(*data.notes, note))
    numbers = [", ".join(f"{value:.3g}" for value in values) for values in (mean, std)]
    note = f"normalised as for the weights to start from: mean {numbers[0]}, std {numbers[1]}"
    return replace(data, mean=tuple(mean), std=tuple(std), notes=(*data.notes, note))


def _latest(fabric: Fabric, run: RunDirectory) -> State | None:
    """Read the state to go on from; None if the run was stopped before its first checkpoint.

    Raises:
        InputError: If no checkpoint is left of a run that had some.
    """
    # The first process mends the list, before the others read it.
    _by_first(fabric, lambda: len(Checkpoints(run.checkpoints).entries()))
    state = Checkpoints(run.checkpoints).latest(loud=fabric.is_global_zero)
    if state is not None and (type(state.get("step")) is not int or not isinstance(state.get("rows"), list)):
        file = run.checkpoints / Checkpoints(run.checkpoints).entries()[-1].file
        raise InputError(f"{file} is whole but no checkpoint of a run; move it away to go on from the one before")
    if state is not None:
        return state
    epochs = len(read_rows(run.metrics, ("epoch",))[0])
    if run.finished or epochs > 1:  # the first may have been written down just before its checkpoint
        there = "a model" if run.finished else f"{epochs} epochs in {run.metrics.name}"
        raise InputError(
            f"{run.path} has {there}, but no checkpoint in {run.checkpoints}; put them back, or start a new run: "
            "nothing is overwritten"
        )
    if fabric.is_global_zero:
        _log.warning(f"{run.path} has no checkpoint yet; it starts from the beginning")
    return None


def _load(loop: Loop, state: State) -> None:
    """Restore a checkpoint.

    Raises:
        InputError: If it is not of this run.
    """
    try:
        loop.load(state)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        file = loop.checkpoints.file(state["step"])
        raise InputError(
            f"{file} is whole but does not fit {loop.run.config.name} ({in_short(error, 120)}); move it "
            "away to go on from the one before"
        ) from error


def _as_begun(
    config: TrainConfig, steps: int | None, state: State, steps_per_epoch: int
) -> tuple[TrainConfig, int | None]:
    """Keep to the number of steps that a run with a budget was begun with, should they be counted otherwise by now."""
    before = state.get("steps")
    if config.budget is None or before == steps or type(before) is not int or before < 1:
        return config, steps
    _log.warning(
        f"budget {config.budget} is {steps:,} steps as they are counted here, and was {before:,} when the run was "
        f"begun; it goes on to {before:,}"
    )
    return for_steps(config, before, steps_per_epoch), before


def _fit(loop: Loop) -> None:
    """Train, and say what is saved where that is interrupted in the middle of a step."""
    try:
        loop.fit()
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        raise Interrupted(_what_is_saved(loop.run)) from error
    except InputError as error:
        raise InputError(worker_message(error)) from error
    finally:
        loop.metrics.close()


def _finish(loop: Loop, task: Task, config: TrainConfig, data: ImageSet, device: str) -> TrainingResult:
    """Write the result, the model and the figures of a run that is trained."""
    run, built = loop.run, loop.built
    result = TrainingResult(
        run=run,
        last=loop.rows[-1],
        best=best_row(loop.rows),
        seconds=round(loop.seconds, 2),
        epochs=len(loop.rows),
        parameters=count_parameters(built.model, config.finetune),
        model=built.title,
        data=data.name,
        held_out=len(data.val),
        skipped=data.skipped,
        device=device if loop.fabric.world_size == 1 else f"{loop.fabric.world_size} x {device}",
        held_out_draw=held_out_draw(data),
    )
    weights = loop.train_state.eval_state_dict()
    if loop.fabric.is_global_zero:
        result.write()
        assert loop.scores.confusion is not None  # set by the last validation
        counts = loop.scores.confusion
        task.write_numbers(run, counts, data)
        set_aside_damaged_model(run)
        save_model(  # after all numbers: it is what makes a run finished
            built,
            weights,
            run.model,
            class_names=data.class_names,
            mean=data.mean,
            std=data.std,
            crop_pct=config.data.crop_pct,
            interpolation="bicubic" if config.data.interpolation == "random" else config.data.interpolation,
        )
        task.draw(run, loop.rows, counts, data)
    loop.fabric.barrier()
    return result


def _begun_with(config: TrainConfig) -> dict[str, Any]:
    """Describe what a run is begun with: a name for it, versions and hardware, and the precision that was decided."""
    return {"run": uuid4().hex} | environment() | {"precision": config.precision}


def _note_changes(run: RunDirectory, config: TrainConfig, step: int) -> None:
    """Log and write down what may make the numbers of a resumed run differ from those of one that never stopped."""
    try:
        begun = read_json(run.environment, ["run"])
    except InputError as error:
        _log.warning(f"{error}; what the run was begun with is lost, written is what it goes on with")
        write_text(run.environment, json_text(_begun_with(config) | {"resumed": [{"step": step}]}))
        return
    if changes := environment_changes(begun, environment()):
        shown = ", ".join(f"{name} {value} instead of {begun[name]}" for name, value in changes.items())
        _log.warning(f"resumed with {shown}: numbers may differ in their last digits")
        begun.setdefault("resumed", []).append({"step": step} | changes)
        write_text(run.environment, json_text(begun))


def _remember_model(run: RunDirectory, before: TrainConfig, config: TrainConfig) -> None:
    """Write down what a resumed run says anew of its model, so that the next one needs not be told."""
    now = replace(before, model=_with_absolute_starts(config.model))
    if now != before:
        save_config(now, run.config)


@contextmanager
def _locked(fabric: Fabric, run: RunDirectory) -> Iterator[None]:
    """Keep other processes from training the same run."""
    lock = FileLock(run.lock)

    def take() -> None:
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if isinstance(error, Timeout):
                raise InputError(f"{run.path} is being trained by another process; wait for it or stop it") from None
            remedy = "; remove it" if isinstance(error, IsADirectoryError) else ""
            raise InputError(f"{run.lock} cannot be locked, {error.strerror}{remedy}") from error

    _by_first(fabric, take)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _removed_if_empty(fabric: Fabric, run: RunDirectory, *, new: bool) -> Iterator[None]:
    """Leave no new directory behind that holds nothing to go on from, whatever ends the work in it."""
    try:
        yield
    except BaseException:
        if new and fabric.is_global_zero and not Checkpoints(run.checkpoints).files:
            shutil.rmtree(run.path, ignore_errors=True)  # the directory is ours
        raise


def _by_first(fabric: Fabric, work: Callable[[], _T]) -> _T:
    """Call a function in the first process, and return its result, or raise its InputError, in all."""
    result: Any = None
    if fabric.is_global_zero:
        try:
            result = work()
        except InputError as error:
            result = error
    result = fabric.broadcast(result)
    if isinstance(result, InputError):
        raise result
    return result


def _what_is_saved(run: RunDirectory) -> str:
    entries = Checkpoints(run.checkpoints).entries() if run.path.exists() else []
    if not entries:
        return "before the first checkpoint, nothing is saved"
    goes_on = f"`imixer train --resume {shell_word(run.path)}` continues from step {entries[-1].step}"
    return f"in the middle of a step; {goes_on}"
