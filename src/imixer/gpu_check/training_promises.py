"""Promise that training on a device does what it does on the CPU, and that a killed run goes on."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor, nn

from imixer.data.config import DataConfig
from imixer.data.device import build_resident
from imixer.data.device.rand_augment import OperationParams
from imixer.data.sampler import BatchShard
from imixer.gpu_check.model_promises import tiny_model
from imixer.gpu_check.noise import noise_data
from imixer.gpu_check.part_process import processes
from imixer.gpu_check.promise import Place, Promise, at_most, relative_distance
from imixer.reading import read_rows
from imixer.training.devices import build_fabric
from imixer.training.guard import Guard, gradient_norm
from imixer.training.optimizer import build_optimizer
from imixer.training.run.config import OptimConfig, TrainConfig
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import build_config, expand_config_flags, parse, train_parser
from imixer.training.train_state import TrainState

TINY = [
    *("--recipe", "digits_general", "--model.num_blocks", "2", "--model.embed_dim", "32"),
    *("--schedule.warmup_epochs", "1", "--logger", "csv", "--data.pipeline", "device", "--precision", "32"),
]
POLICY = "rand-m9-mstd0.5-inc1"
_CLASSES = 5
_BATCHES: tuple[dict[str, Any], ...] = (
    {},
    {"auto_augment": POLICY},
    {"mixup": 0.8, "cutmix": 1.0},
    {"crop": "pad"},
    {"interpolation": "random", "auto_augment": POLICY},
)
_LEARNED = 0.6  # of the digits, in six epochs
_STEPS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "averaged": {"ema": 0.99},
    "clipped": {"optim": OptimConfig(clip_grad=1.0)},
}
_KINDS: dict[str, list[str]] = {
    "float32": [],
    "bf16, averaged, mixed": ["--precision", "bf16", "--ema", "0.9", "--data.mixup", "0.4"],
    "compiled": ["--compile", "true"],
}


def train_config(*words: str) -> TrainConfig:
    """Build the configuration that the words after `imixer train` mean."""
    return build_config(parse(train_parser(), expand_config_flags(list(words))))


def _pipeline(device: torch.device, **config: Any) -> tuple[Any, Any]:
    return build_resident(
        noise_data(48, 10, (20, 24), _CLASSES),
        DataConfig(batch_size=16, **config),
        (3, 16, 16),
        num_classes=_CLASSES,
        smoothing=0.1,
        seed=0,
        device=device,
        shard=BatchShard(),
        held_out_batch=8,
    )


def _batches(place: Place, config: dict[str, Any]) -> float:
    """Compare batches: a byte here and there is rounded the other way."""
    (here, held), (there, held_there) = (_pipeline(device, **config) for device in (torch.device("cpu"), place.device))
    worst = 0.0
    for (images, targets), (images_there, targets_there) in zip(here.epoch(1), there.epoch(1), strict=True):
        worst = max(worst, float((images_there.cpu() - images).abs().mean()))
        at_most(relative_distance(targets_there, targets), 1e-6)
    for (images, _), (images_there, _) in zip(held, held_there, strict=True):
        at_most(float((images_there.cpu() - images).abs().max()), 0.05)
    return at_most(worst, 2e-3)


def _operations(place: Place) -> float:
    """Apply each operation of the policy to all images, here and there."""
    (here, _), (there, _) = (_pipeline(d, auto_augment=POLICY) for d in (torch.device("cpu"), place.device))
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    worst = 0.0
    for number in range(len(here.augment.operations)):
        params = OperationParams(np.full((16, 1), number), np.linspace(0.1, 1.2, 16)[:, None])
        done = []
        for pipeline, device in ((here, torch.device("cpu")), (there, place.device)):
            changed = images.clone().to(device)
            pipeline.augment(changed, params)
            done.append(changed.cpu().float())
        off = (done[0] - done[1]).abs().mean().item() / 255
        assert off < 2e-3, f"operation {number} is {off:.3g} off"
        worst = max(worst, off)
    return worst


def _erasing_repeats(place: Place) -> None:
    (first, _), (second, _) = (_pipeline(place.device, random_erasing=0.9) for _ in range(2))
    for (a, _), (b, _) in zip(first.epoch(0), second.epoch(0), strict=True):
        assert torch.equal(a, b), "two runs with one seed erase differently"


def _words(place: Place, out: Path, epochs: int, flags: Sequence[str]) -> list[str]:
    accelerator = ["--accelerator", "cuda" if place.device.type == "cuda" else "cpu"]
    return ["--out", str(out), "--epochs", str(epochs), *TINY, *accelerator, *flags]


def _command(words: Sequence[str]) -> int:
    from imixer.cli import main

    return main(list(words))


def _digits_are_learned(place: Place, flags: Sequence[str]) -> float:
    run = place.folder / "run"
    assert _command(["train", *_words(place, run, 6, ["--optim.lr", "5e-3", *flags])]) == 0, "training failed"
    accuracy = float(read_rows(RunDirectory(run).metrics, ("val_acc",))[0][-1]["val_acc"])
    assert accuracy > _LEARNED, f"{accuracy:.1%} of the digits are right, and {_LEARNED:.0%} are asked"
    assert _command(["evaluate", str(run), "--device", place.device.type]) == 0, "evaluation failed"
    return 1 - accuracy


def _in_process(words: Sequence[str], kill_after_epoch: int | None = None, run: Path | None = None) -> None:
    """Run a command in a process of its own, and kill that once so many epochs are written."""
    process = processes().Process(target=_command, args=(list(words),))
    process.start()
    while kill_after_epoch is not None and process.is_alive():
        assert run is not None
        metrics = RunDirectory(run).metrics
        if metrics.exists() and len(read_rows(metrics, ("epoch",))[0]) >= kill_after_epoch:
            os.kill(process.pid or 0, signal.SIGKILL)
            break
        time.sleep(0.01)
    process.join()
    assert kill_after_epoch is not None or process.exitcode == 0, f"it ended with exit code {process.exitcode}"


def _same_weights(trained: Path, expected: Path) -> None:
    files = [RunDirectory(run).model / "model.safetensors" for run in (trained, expected)]
    ours, theirs = map(load_file, files)
    for name, weight in theirs.items():
        off = (ours[name].double() - weight.double()).abs().max()
        assert torch.equal(ours[name], weight), f"{name} is {off:.3g} off"


def _resumes(place: Place, flags: Sequence[str]) -> None:
    """Train, train again, and train with a kill: all three end with the same weights."""
    whole, again, killed = (place.folder / name for name in ("whole", "again", "killed"))
    for run in (whole, again):
        _in_process(["train", *_words(place, run, 4, flags)])
    _same_weights(again, whole)
    by_steps = ["--checkpoints.every_steps", "7"]
    _in_process(["train", *_words(place, killed, 4, [*flags, *by_steps])], kill_after_epoch=2, run=killed)
    _in_process(["train", "--resume", str(killed)])
    _same_weights(killed, whole)


def _fused_optimizer(place: Place) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    there = copy.deepcopy(model).to(place.device)
    config, x = OptimConfig(lr=1e-2), torch.randn(32, 8)
    optimizers = build_optimizer(model, config), build_optimizer(there, config, fused=True)
    for _ in range(10):
        for net, optimizer in zip((model, there), optimizers, strict=True):
            optimizer.zero_grad()
            net(x.to(next(net.parameters()).device)).square().mean().backward()
            optimizer.step()
    return at_most(relative_distance(there.parameters(), model.parameters()), 1e-4)


def _guard(place: Place) -> None:
    """Give the fused optimizer a gradient that is not finite: the weights stay, and the next step is taken."""
    model = nn.Linear(4, 4).to(place.device)
    optimizer = build_optimizer(model, OptimConfig(), fused=True)
    guard = Guard(optimizer)
    before = copy.deepcopy(model.state_dict())

    def step(images: Tensor, factor: float) -> bool:
        optimizer.zero_grad()
        (model(images).sum() * factor).backward()
        skip = guard.should_skip(gradient_norm(model.parameters()))
        if not skip:
            optimizer.step()
        return guard.skipped() or skip

    assert step(torch.full((2, 4), float("inf"), device=place.device), 0.0), "it was not skipped"
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items()), "it reached the weights"
    assert not step(torch.ones(2, 4, device=place.device), 1.0), "a finite step was skipped"
    assert not torch.equal(model.weight, before["weight"]), "a finite step did not reach the weights"


def _train_state(
    place: Place, precision: Literal["bf16", "16"], **changes: Any
) -> tuple[TrainState, tuple[Tensor, Tensor]]:
    config = replace(TrainConfig(), accelerator=place.device.type, precision=precision, **changes)
    if precision == "16" and place.device.type == "cpu":  # which no training is given, but the scaler can be tried
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu")])
    else:
        fabric = build_fabric(config)
    fabric.launch()
    part = torch.randn(16, 3, 8, 8, device=place.device), torch.randint(0, 10, (16,), device=place.device)
    return TrainState(fabric, config, tiny_model(num_classes=10), 100), part


def _scaler(place: Place) -> None:
    """Let the scaled loss overflow: the scale is halved, no weight moves, and nothing is taken for divergence."""
    state, part = _train_state(place, "16")
    before = copy.deepcopy(dict(state.module.named_parameters()))
    scaler: Any = state.fabric.strategy.precision
    scale = scaler.scaler.get_scale()
    _, must_skip = state.gradient([(part[0] * float("inf"), part[1])], 0)
    assert not must_skip, "one overflow is taken for divergence"
    state.optimizer_step(0)
    assert scaler.scaler.get_scale() == scale / 2, "the scale was not halved"
    assert all(torch.equal(p, before[name]) for name, p in state.module.named_parameters()), "it reached the weights"
    state.gradient([part], 1)
    state.optimizer_step(1)
    assert not all(torch.equal(p, before[name]) for name, p in state.module.named_parameters()), "no weight moves"


@contextmanager
def _no_waits() -> Any:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _one_wait_per_step(place: Place, changes: dict[str, Any]) -> None:
    """Forbid every call that waits, but for the guard's look at the step before."""
    state, part = _train_state(place, "bf16", **changes)
    for step in range(6):
        state.guard.skipped()
        if step < 3:
            state.gradient([part], step)
            state.optimizer_step(step)
            continue
        with _no_waits():
            state.gradient([part], step)
            state.optimizer_step(step)


def _batches_do_not_wait(place: Place) -> None:
    (training, _) = _pipeline(place.device, auto_augment=POLICY, mixup=0.8, cutmix=1.0, random_erasing=0.5)
    batches = training.epoch(0)
    next(batches)
    with _no_waits():
        next(batches)


_REDUCE = """
import sys, torch, torch.distributed as dist
dist.init_process_group(sys.argv[1])
x = torch.ones(3, device=sys.argv[2]); dist.all_reduce(x)
y = torch.ones(3); dist.all_reduce(y)
assert x.sum() == y.sum() == 3
dist.destroy_process_group()
"""


def _nccl(place: Place) -> None:
    script = place.folder / "reduce.py"
    script.write_text(_REDUCE, encoding="utf-8")
    backend = "cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run([sys.executable, *launcher, str(script), backend, place.device.type], check=False)
    assert done.returncode == 0, f"it ended with exit code {done.returncode}"


def _promises() -> tuple[Promise, ...]:
    made = [
        Promise(
            f"batches made on the device are those made on the CPU ({config or 'as they are'})",
            partial(_batches, config=config),
        )
        for config in _BATCHES
    ]
    made += [
        Promise("each operation of RandAugment does there what it does on the CPU", _operations),
        Promise("erasing repeats", _erasing_repeats),
        Promise("the fused optimizer takes the CPU's steps", _fused_optimizer),
        Promise("a step that is not finite never reaches the weights", _guard),
        Promise("an overflow halves the scale and is not taken for divergence", _scaler),
        Promise("a batch is made without a wait", _batches_do_not_wait, only_cuda=True),
    ]
    made += [
        Promise(
            f"a step waits no more than once ({name})",
            partial(_one_wait_per_step, changes=changes),
            only_cuda=True,
        )
        for name, changes in _STEPS.items()
    ]
    made += [Promise("NCCL beside gloo reduces with one process", _nccl, slow=True)]
    made += [
        Promise(
            f"the digits are learned ({' '.join(flags) or 'float32'})",
            partial(_digits_are_learned, flags=flags),
            slow=True,
            only_cuda="16" in flags,
        )
        for flags in ([], ["--precision", "bf16"], ["--precision", "16"], ["--compile", "true", "--precision", "bf16"])
    ]
    made += [
        Promise(
            f"the same command repeats, and a killed run ends alike, bit for bit ({name})",
            partial(_resumes, flags=flags),
            slow=True,
        )
        for name, flags in _KINDS.items()
    ]
    return tuple(made)


TRAINING_PROMISES = _promises()
