"""Measure whole training steps: images per second, utilisation, memory."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imixer.gpu_check.hardware import TINY_WIDTH, WIDTH, product_flops
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.training_promises import train_config
from imixer.timing import milliseconds, peak_memory
from imixer.training.devices import build_fabric
from imixer.training.model import FORWARDS_PER_STEP, build_model, forward_cost
from imixer.training.run.config import TrainConfig
from imixer.training.train_state import TrainState

TABLE = "Training steps, forward to optimizer, in bf16"
CLASSES = 10
_WARM_UP = 3
_TIMED_S = 1.0


@dataclass(frozen=True)
class Case:
    """A training to time.

    Args:
        images: Size of its images, in words.
        model: Its model, in words.
        words: Words after `imixer train`.
        size: Height and width of its images.
    """

    images: str
    model: str
    words: tuple[str, ...]
    size: int


LAPTOP = ("--recipe", "laptop/imixer_cifar10")
_PAPER = ("--recipe", "paper/imixer_s16_cifar10", "--data.pipeline", "device")
CASES = (
    Case("32x32", "iMixer of the laptop recipe", LAPTOP, 32),
    Case("32x32", "Mixer of as many multiply-adds", ("--recipe", "laptop/mixer_cifar10"), 32),
    Case("32x32", "iMixer as published", (*LAPTOP, "--model.legacy", "true"), 32),
    Case("224x224", "iMixer S/16", _PAPER, 224),
    Case("224x224", "timm's Mixer S/16", ("--recipe", "paper/mixer_s16_cifar10"), 224),
    Case("224x224", "iMixer S/16 as published", (*_PAPER, "--model.legacy", "true"), 224),
)
BATCH = 512
_TINY = ("--model.name", "imixer_t2_8", "--model.num_blocks", "1", "--data.pipeline", "device")
TINY_CASES = (
    Case("8x8", "iMixer", _TINY, 8),
    Case("8x8", "iMixer as published", (*_TINY, "--model.legacy", "true"), 8),
)


def config_of(case: Case, bench: Bench, compiled: bool = False) -> TrainConfig:
    """Build the configuration of a case on the device of the check."""
    batch = 16 if bench.tiny else BATCH
    precision, accelerator = ("32", "cpu") if bench.device.type == "cpu" else ("bf16", "cuda")
    words = [*case.words, "--data.name", "cifar10", "--data.batch_size", str(batch), "--logger", "csv"]
    config = train_config(*words, "--precision", precision, "--accelerator", accelerator)
    return replace(config, accumulate=1, compile=compiled)


def step_of(config: TrainConfig, size: int) -> tuple[Callable[[Tensor, Tensor], None], int | None]:
    """Build a model with all that moves it, as `imixer train` does, in the memory that the last one has left.

    Args:
        config: The configuration.
        size: Height and width of the images.

    Returns:
        A function of images and targets that takes one optimizer step, and the multiply-adds of an image's forward.
    """
    gc.collect()
    torch._dynamo.reset()
    if config.accelerator == "cuda":
        torch.cuda.empty_cache()
    fabric = build_fabric(config)
    fabric.launch()
    data = replace(config.data, image_size=size)
    built = build_model(config.model, data, native_size=(size, size), in_chans=3, num_classes=CLASSES)
    cost = forward_cost(built)
    state = TrainState(fabric, config, built.model, 1000)
    number = 0

    def step(images: Tensor, targets: Tensor) -> None:
        nonlocal number
        state.guard.skipped()
        _, must_skip = state.gradient([(images, targets)], number)
        if must_skip:
            state.skip(number)
        else:
            state.optimizer_step(number)
        number += 1

    return step, cost.total if cost else None


def _time(bench: Bench, case: Case, peak: float, compiled: bool) -> None:
    config = config_of(case, bench, compiled)
    batch = config.data.batch_size
    images = torch.randn(batch, 3, case.size, case.size, device=bench.device)
    targets = torch.arange(batch, device=bench.device) % CLASSES
    step, macs = step_of(config, case.size)
    for _ in range(1 if bench.tiny else _WARM_UP):
        step(images, targets)
    memory = peak_memory(lambda: step(images, targets), bench.device)
    ms = milliseconds(lambda: step(images, targets), bench.device, 0.0 if bench.tiny else _TIMED_S)
    flops = None if macs is None else 2 * FORWARDS_PER_STEP * macs * batch / ms * 1e3
    bench.row(
        TABLE,
        images=case.images,
        model=case.model,
        compiled=compiled,
        batch=batch,
        images_per_s=batch / ms * 1e3,
        ms_a_step=ms,
        MFU_percent=None if flops is None else 100 * flops / peak,
        memory_MiB=None if memory is None else memory / 2**20,
        forward_MMACs=None if macs is None else macs / 1e6,
    )


def run(bench: Bench) -> None:
    """Time all steps eagerly, then compiled, which takes a minute each before there is anything to time."""
    dtype = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
    peak = product_flops(dtype, bench.device, TINY_WIDTH if bench.tiny else WIDTH)
    bench.note(
        "MFU counts 6 FLOP per multiply-add of the folded model's forward, against the product of two matrices in "
        f"this type, {peak / 1e12:.3g} TFLOP/s. Memory is the highest that torch holds in a step. One measurement each."
    )
    torch.set_float32_matmul_precision("high")
    cases = TINY_CASES if bench.tiny else CASES
    # compiled, the cheap ones and those of most interest first
    turns = [(case, False) for case in cases] + ([] if bench.tiny else [(case, True) for case in cases])
    for case, compiled in turns:
        what = f"{case.model} at {case.images}, {'compiled' if compiled else 'eager'}"
        if bench.skipped(what):
            continue
        try:
            _time(bench, case, peak, compiled)
        except Exception as error:  # one that does not fit spoils no other
            traceback.print_exc()
            bench.failed(what, f"{type(error).__name__}: {error}")
