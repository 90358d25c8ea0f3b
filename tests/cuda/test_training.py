"""A run on a GPU: it learns, it can be killed, and its parts do what they do on the CPU."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.device import build_resident
from imixer.data.image_data import ImageData
from imixer.data.sampler import BatchShard
from imixer.training.devices import build_fabric
from imixer.training.guard import Guard, gradient_norm
from imixer.training.optimizer import build_optimizer
from imixer.training.run.config import OptimConfig, TrainConfig
from imixer.training.train_state import TrainState

TINY = [
    *("--data.name", "digits", "--model.num_blocks", "2", "--model.embed_dim", "32"),
    *("--schedule.warmup_epochs", "1", "--logger", "csv"),
]
POLICY = "rand-m9-mstd0.5-inc1"


class Noise:
    """Random bytes as a data set."""

    def __init__(self, count):
        self.images = torch.randint(0, 256, (count, 20, 24, 3), dtype=torch.uint8, generator=torch.manual_seed(count))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        from PIL import Image

        return Image.fromarray(self.images[index].numpy()), index % 5


def resident(device, **config):
    data = ImageData("set", Noise(48), Noise(10), tuple("abcde"), 3, (20, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return build_resident(
        data,
        DataConfig(batch_size=16, **config),
        (3, 16, 16),
        num_classes=5,
        smoothing=0.1,
        seed=0,
        device=torch.device(device),
        shard=BatchShard(),
        held_out_batch=8,
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"auto_augment": POLICY},
        {"mixup": 0.8, "cutmix": 1.0},
        {"crop": "pad"},
        {"interpolation": "random", "auto_augment": POLICY},
    ],
    ids=str,
)
def test_batches_made_on_the_gpu_are_those_made_on_the_cpu(config):
    (here, held), (there, held_there) = resident("cpu", **config), resident("cuda", **config)
    for (images, targets), (images_there, targets_there) in zip(here.epoch(1), there.epoch(1), strict=True):
        difference = (images_there.cpu() - images).abs()
        assert difference.mean() < 2e-3  # a byte here and there is rounded the other way
        torch.testing.assert_close(targets_there.cpu(), targets)
    for (images, _), (images_there, _) in zip(held, held_there, strict=True):
        assert (images_there.cpu() - images).abs().max() < 0.03


def test_erasing_is_random_and_repeats():
    (first, _), (second, _) = (resident("cuda", random_erasing=0.9) for _ in range(2))
    for (a, _), (b, _) in zip(first.epoch(0), second.epoch(0), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("flags", ["", "--precision bf16", "--precision 16", "--compile true --precision bf16"])
def test_the_digits_are_learned(tmp_path, flags):
    run = tmp_path / "run"
    args = ["--epochs", "6", "--data.pipeline", "device", "--optim.lr", "5e-3", *TINY, *flags.split()]
    assert main(["train", "--accelerator", "cuda", "--out", str(run), *args]) == 0
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert float(last["val_acc"]) > 0.6
    assert main(["evaluate", str(run), "--device", "cuda"]) == 0


COMMAND = [sys.executable, "-c", "import sys; from imixer.cli import main; sys.exit(main(sys.argv[1:]))", "train"]
KINDS = {
    "float32": [],
    "bf16": ["--precision", "bf16", "--ema", "0.9", "--data.mixup", "0.4"],
    "compiled": ["--compile", "true"],
}


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def assert_same(weights, expected):
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), f"{name}: {(weights[name] - weight).abs().max()}"


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def uninterrupted(request, tmp_path_factory):
    """A run in a process of its own, and its flags."""
    run = tmp_path_factory.mktemp("whole") / "run"
    flags = [*TINY, "--epochs", "4", "--accelerator", "cuda", "--data.pipeline", "device", *request.param]
    assert subprocess.run([*COMMAND, "--out", str(run), *flags]).returncode == 0
    return run, flags


def test_the_same_command_gives_the_same_weights(tmp_path, uninterrupted):
    run, flags = uninterrupted
    assert subprocess.run([*COMMAND, "--out", str(tmp_path / "again"), *flags]).returncode == 0
    assert_same(weights(tmp_path / "again"), weights(run))


def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(tmp_path, uninterrupted):
    expected, flags = uninterrupted
    run = tmp_path / "run"
    training = subprocess.Popen(
        [*COMMAND, "--out", str(run), *flags, "--checkpoints.every_steps", "7"], stderr=subprocess.PIPE, text=True
    )
    for line in training.stderr:
        if "epoch  2/" in line:
            training.kill()
            break
    training.wait()
    assert subprocess.run([*COMMAND, "--resume", str(run)]).returncode == 0
    assert_same(weights(run), weights(expected))


def test_the_fused_optimizer_takes_the_cpus_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    there = copy.deepcopy(model).cuda()
    config = OptimConfig(lr=1e-2)
    optimizers = build_optimizer(model, config), build_optimizer(there, config, fused=True)
    x = torch.randn(32, 8)
    for _ in range(10):
        for net, optimizer in zip((model, there), optimizers, strict=True):
            optimizer.zero_grad()
            net(x.to(next(net.parameters()).device)).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-6)


def test_a_step_that_is_not_finite_never_reaches_the_weights():
    model = nn.Linear(4, 4).cuda()
    optimizer = build_optimizer(model, OptimConfig(), fused=True)
    guard = Guard(optimizer)
    before = copy.deepcopy(model.state_dict())
    (model(torch.full((2, 4), float("inf"), device="cuda")).sum() * 0).backward()
    assert not guard.should_skip(gradient_norm(model.parameters()))
    optimizer.step()
    assert guard.skipped()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    optimizer.zero_grad()
    model(torch.ones(2, 4, device="cuda")).sum().backward()
    guard.should_skip(gradient_norm(model.parameters()))
    optimizer.step()
    assert not guard.skipped()
    assert not torch.equal(model.weight, before["weight"])


def test_a_step_waits_for_the_gpu_no_more_than_once():
    """Of all calls that wait, the guard's look at the step before is the only one."""
    config = replace(TrainConfig(), accelerator="cuda", precision="bf16")
    import timm

    import imixer  # noqa: F401

    fabric = build_fabric(config)
    fabric.launch()
    train_state = TrainState(fabric, config, timm.create_model("imixer_t2_8"), 100)
    part = torch.randn(16, 3, 8, 8, device="cuda"), torch.randint(0, 10, (16,), device="cuda")
    for step in range(3):
        train_state.gradient([part], step)
        train_state.optimizer_step(step)
        train_state.guard.skipped()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 6):
            train_state.gradient([part], step)
            train_state.optimizer_step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nccl_trains_with_one_process(tmp_path):
    script = tmp_path / "one.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('cpu:gloo,cuda:nccl')\n"
        "x = torch.ones(3, device='cuda'); dist.all_reduce(x)\n"
        "y = torch.ones(3); dist.all_reduce(y)\n"
        "assert x.sum() == y.sum() == 3\n"
        "dist.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(script)]
    assert subprocess.run(command).returncode == 0
