"""A training run, from configuration to run directory."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.loading import build_loaders, worker_message
from imixer.data.mixup import build_mixup
from imixer.data.source import open_data
from imixer.errors import InputError
from imixer.training.config import TrainConfig
from imixer.training.environment import environment
from imixer.training.figures import draw_confusion_matrix, draw_learning_curves
from imixer.training.model import BuiltModel, build_model
from imixer.training.model_directory import save_model
from imixer.training.module import Classifier, build_optimizer
from imixer.training.parsing import save_config
from imixer.training.progress import ShowProgress
from imixer.training.quiet import silence
from imixer.training.record import Record
from imixer.training.run_directory import RunDirectory, check_out, create_run

_PRECISION: Dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class Interrupted(KeyboardInterrupt):
    """Training was interrupted; the message says what is saved."""


@dataclass(frozen=True)
class Trained:
    """What came out of a run.

    Args:
        run: Its directory.
        last: The row of its last epoch.
        seconds: From the first to the last step, validation included.
        epochs: Epochs run.
        parameters: Trainable numbers of the model.
        model_name: Name of the model.
        data: What it was trained on.
        device: Where.
    """

    run: RunDirectory
    last: Dict[str, Any]
    seconds: float
    epochs: int
    parameters: int
    model_name: str
    data: ImageData
    device: str


def train(config: TrainConfig) -> Trained:
    """Train as configured and write the run directory. Nothing is written before all input is found good.

    Args:
        config: The run.

    Raises:
        InputError: If something in the configuration or the data is wrong, or training diverges.
        Interrupted: On Ctrl-C.
    """
    silence()
    check_out(config.out)
    _check_hardware(config)
    data = open_data(config.data)
    seed_everything(config.seed, workers=True, verbose=False)
    num_classes = len(data.class_names)
    built = build_model(
        config.model, config.data, native_size=data.native_size, in_chans=data.in_chans, num_classes=num_classes
    )
    build_optimizer(built.model, config.optim)  # refuses what is wrong, before anything is written
    loaders = build_loaders(data, config.data, built.input_size, seed=config.seed)
    if not len(loaders[0]):
        raise InputError(
            f"data.batch_size is {config.data.batch_size}, more than the training images; give at most "
            f"{len(data.train)}"  # type: ignore[arg-type]
        )
    mixup = build_mixup(config.data, num_classes, config.smoothing)
    module = Classifier(built.model, config, num_classes=num_classes, updates_per_epoch=len(loaders[0]), mixup=mixup)
    run = create_run(config.out, data.name, built.name)
    began = time.perf_counter()
    record = _fit(config, run, built, module, loaders)
    seconds = time.perf_counter() - began
    _write_results(config, run, built, module, record, data)
    parameters = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    device = _device_name(config.accelerator)
    return Trained(run, record.rows[-1], seconds, len(record.rows), parameters, built.name, data, device)


def resolved(config: TrainConfig, built: BuiltModel) -> TrainConfig:
    """The configuration with every default spelled out, and paths that hold from anywhere. `out` is left open."""
    absolute: Dict[str, Any] = {
        field: str(Path(value).absolute())
        for field in ("name", "root")
        if (value := getattr(config.data, field)) and Path(value).is_dir()
    }
    _, height, width = built.input_size
    size = height if height == width else (height, width)
    data: DataConfig = replace(config.data, image_size=size, **absolute)
    checkpoint = config.model.checkpoint and str(Path(config.model.checkpoint).absolute())
    return replace(config, data=data, model=replace(config.model, name=built.name, checkpoint=checkpoint), out=None)


def _fit(
    config: TrainConfig,
    run: RunDirectory,
    built: BuiltModel,
    module: Classifier,
    loaders: Tuple[DataLoader[Any], DataLoader[Any]],
) -> Record:
    record = Record(run)
    checkpoints = ModelCheckpoint(run.checkpoint.parent, run.checkpoint.stem, enable_version_counter=False)
    try:
        save_config(resolved(config, built), run.config)
        run.environment.write_text(json.dumps(environment(), indent=2), encoding="utf-8")
        trainer = _trainer(config, [record, ShowProgress(record), checkpoints])
        if config.compile:
            built.model.compile()  # in place: names of the weights stay
        try:
            trainer.fit(module, *loaders)
        except SystemExit as error:  # Lightning's way to end after Ctrl-C
            raise Interrupted from error
    except KeyboardInterrupt as error:
        raise Interrupted(_saved(run, record)) from error
    except InputError as error:
        _remove_if_empty(run, record)
        raise InputError(worker_message(error)) from error
    except BaseException:
        _remove_if_empty(run, record)
        raise
    return record


def _trainer(config: TrainConfig, callbacks: Any) -> Trainer:
    cooled = config.epochs + config.schedule.cooldown_epochs
    return Trainer(
        max_epochs=cooled,
        accelerator=config.accelerator,
        devices=config.devices,
        precision=_PRECISION[config.precision],
        gradient_clip_val=config.optim.clip_grad,
        deterministic="warn",
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _check_hardware(config: TrainConfig) -> None:
    if config.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise InputError(f"accelerator is {config.accelerator!r}, but torch sees no CUDA device here; use auto or cpu")
    if config.precision == "16" and (config.accelerator == "cpu" or not torch.cuda.is_available()):
        raise InputError("precision is '16', which needs CUDA; use bf16 or 32")
    try:
        _trainer(config, [])
    except Exception as error:  # Lightning's own complaints about accelerators and devices, of many kinds
        raise InputError(
            f"accelerator {config.accelerator!r} with {config.devices} devices: {' '.join(str(error).split())[:200]}"
        ) from error


def _write_results(
    config: TrainConfig, run: RunDirectory, built: BuiltModel, module: Classifier, record: Record, data: ImageData
) -> None:
    save_model(
        built,
        run.model,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        crop_pct=config.data.crop_pct,
        interpolation="bicubic" if config.data.interpolation == "random" else config.data.interpolation,
    )
    draw_learning_curves(record.rows, run.learning_curves)
    assert module.confusion is not None  # set by the last validation
    draw_confusion_matrix(module.confusion.numpy(), data.class_names, run.confusion_matrix)


def _saved(run: RunDirectory, record: Record) -> str:
    if not run.checkpoint.is_file():
        _remove_if_empty(run, record)
        return "before the first epoch ended, nothing is saved"
    return (
        f"after epoch {len(record.rows)}; {run.metrics} and {run.checkpoint} are saved, "
        "and --model.checkpoint starts from the latter's weights"
    )


def _remove_if_empty(run: RunDirectory, record: Record) -> None:
    if not record.rows:  # the directory is ours and holds no result
        shutil.rmtree(run.path, ignore_errors=True)


def _device_name(accelerator: str) -> str:
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
