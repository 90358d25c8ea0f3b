"""Several processes train as one does."""

import csv
import errno
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing import SignalException

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.sources.digits import open_digits
from imixer.errors import InputError
from imixer.training import worker
from imixer.training.devices import resolve_devices, started_by_launcher
from imixer.training.launch import _death, launch
from imixer.training.run.config import TrainConfig
from imixer.training.run.parsing import save_config
from imixer.training.stop_signals import Interrupted
from imixer.training.validation import require_held_out

SCRIPT = Path(__file__).with_name("two_processes.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TINY = [
    *("--recipe", "digits_general", "--schedule.warmup_epochs", "1"),
    *("--model.num_blocks", "1", "--model.embed_dim", "16"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    runpy.run_path(str(SCRIPT))["main"](folder, "auto")
    return torch.load(folder / "auto-0.pt", weights_only=True)


@pytest.fixture(scope="module")
def both_strategies(tmp_path_factory):
    """What two processes give, which train by one strategy after the other: starting them costs the most."""
    folder = tmp_path_factory.mktemp("two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), "ddp", "fsdp"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two(request, both_strategies):
    return [torch.load(both_strategies / f"{request.param}-{rank}.pt", weights_only=True) for rank in range(2)]


def test_gradients_are_those_of_one_process_with_the_same_batch(alone, two):
    for step, expected in enumerate(alone["gradients"]):
        assert len(expected) > 20
        for each in two:
            for name, gradient in expected.items():
                torch.testing.assert_close(each["gradients"][step][name], gradient, rtol=1e-6, atol=1e-9)


def test_power_iterations_are_identical_on_every_process(alone, two):
    assert alone["v"]
    for name, v in alone["v"].items():
        assert torch.equal(two[0]["v"][name], two[1]["v"][name]), name
        torch.testing.assert_close(two[0]["v"][name], v, rtol=1e-4, atol=1e-5)


def test_no_image_is_lost_or_seen_twice(alone, two):
    seen = torch.cat([each["seen"] for each in two]).tolist()
    assert sorted(seen) == sorted(alone["seen"].tolist())
    assert len(seen) == len(set(seen)) == 1437 // 48 * 48
    assert sorted(two[0]["held_out"] + two[1]["held_out"]) == list(range(359))


def test_scores_are_those_of_all_processes_images(alone, two):
    assert two[0]["scores"] == two[1]["scores"]
    assert two[0]["scores"] == pytest.approx(alone["scores"], rel=1e-5)
    mean = sum(each["loss"] for each in two) / 2
    torch.testing.assert_close(mean, alone["loss"], rtol=1e-6, atol=0)


def numbers(run):
    with (run / "metrics.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if name not in ("images_per_s", "seconds")}
            for row in csv.DictReader(file)
        ]


def workers():
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(child) for child in children if b"waiting_worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


@contextmanager
def sent(number, whom, once):
    """Send a signal to a process, once something is so, while what is within waits for its own processes."""
    ended = threading.Event()

    def watch():
        while not ended.wait(0.005):
            if once():
                os.kill(whom(), number)
                return

    sender = threading.Thread(target=watch)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")
def test_a_killed_process_ends_the_run_and_one_device_finishes_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent), prepend=os.pathsep)
    monkeypatch.setattr(
        "imixer.training.train.launch", lambda _, *words, **options: launch("waiting_worker", *words, **options)
    )
    run = tmp_path / "run"
    flags = [*TINY, "--epochs", "6", "--checkpoints.every_steps", "5", "--checkpoints.keep", "3"]
    index = run / "checkpoints" / "index.json"
    with sent(signal.SIGKILL, lambda: workers()[1], once=index.exists):
        assert main(["train", "--accelerator", "cpu", "--out", str(run), "--devices", "2", *flags]) == 2
    said = capfd.readouterr().err
    assert "process 1 of the run was killed by SIGKILL, and the others were stopped" in said
    assert f"`imixer train --resume {run}` continues" in said
    assert "Traceback" not in said

    # the same run, stopped by SIGTERM
    before = index.read_bytes()
    with sent(signal.SIGTERM, os.getpid, once=lambda: index.read_bytes() != before):
        assert main(["train", "--resume", str(run)]) == 143
    assert re.search(r"interrupted after step \d+ .*which is saved", capfd.readouterr().err)

    # finished by one device, it is what one device alone makes of it, up to rounding
    assert main(["train", "--resume", str(run), "--devices", "1"]) == 0
    assert main(["train", "--out", str(tmp_path / "alone"), "--accelerator", "cpu", *flags]) == 0
    for row, expected in zip(numbers(run), numbers(tmp_path / "alone"), strict=True):
        assert row == pytest.approx(expected, rel=0.02, abs=0.02)
    weights, alone = (load_file(each / "model" / "model.safetensors") for each in (run, tmp_path / "alone"))
    for name, weight in alone.items():
        torch.testing.assert_close(weights[name], weight, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--devices 3", ["data.batch_size is 128", "devices x num_nodes x accumulate = 3"]),
        ("--accumulate 5", ["data.batch_size is 128", "= 5 equal parts"]),
        ("--devices 0", ["devices is 0"]),
        ("--num_nodes 2", ["num_nodes is 2", "torchrun or srun"]),
        ("--data.batch_size 2000", ["data.batch_size is 2000", "1437"]),
        ("--strategy fsdp --ema 0.9", ["ema is 0.9", "fsdp"]),
        ("--strategy fsdp --compile true", ["compile is true", "fsdp"]),
        ("--strategy deepspeed", ["strategy", "deepspeed", "auto, ddp, fsdp"]),
        ("--ema 1", ["ema is 1.0"]),
        ("--checkpoints.keep 0", ["checkpoints.keep is 0"]),
        ("--checkpoints.every_minutes 0", ["checkpoints.every_minutes is 0"]),
        ("--optim.lr_batch 0", ["optim.lr_batch is 0"]),
        ("--non_finite ignore", ["non_finite", "ignore", "stop, skip"]),
        ("--logger wandb2", ["logger", "wandb2", "tensorboard"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, flags, parts):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--out", "run", *flags.split()]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in parts:
        assert part in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("accelerator", "count"),
    [
        ("cpu", os.cpu_count()),
        pytest.param(
            "cuda",
            torch.cuda.device_count(),
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
        ),
    ],
)
def test_more_devices_than_there_are_are_refused(capsys, accelerator, count):
    flags = ["--accelerator", accelerator, "--devices", str(count + 1), "--data.batch_size", str(count + 1)]
    assert main(["train", *flags]) == 2
    assert f"devices is {count + 1}, but there are {count}" in capsys.readouterr().err


def test_the_devices_are_those_that_torchrun_has_started_processes_for(monkeypatch):
    variables = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = resolve_devices(TrainConfig())
    assert (config.devices, config.num_nodes, config.micro_batch) == (4, 2, 8)


@pytest.mark.parametrize(("tasks", "devices"), [("1", 4), ("2", 2)])
def test_one_task_of_slurm_starts_its_own_processes_and_several_are_those(tasks, devices, monkeypatch):
    for name, value in {"SLURM_NTASKS": tasks, "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1"}.items():
        monkeypatch.setenv(name, value)
    assert resolve_devices(TrainConfig(devices=4)).devices == devices
    assert started_by_launcher() == (devices == 2)


def test_the_learning_rate_scales_with_the_batch_if_it_is_said_what_it_is_for():
    config = TrainConfig()
    assert config.peak_lr == config.optim.lr
    config.optim.lr_batch = 256
    assert config.peak_lr == config.optim.lr / 4


def test_fewer_held_out_images_than_processes_are_refused_in_one_line():
    data = open_digits(DataConfig())
    few = replace(data, val=[data.val[0]])
    with pytest.raises(InputError, match=r"digits has 1 held-out image for 2 processes; use fewer devices$"):
        require_held_out(few, 2)
    require_held_out(few, 1)


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "there is not enough memory (CUDA out of memory)", 2),
        (OSError(errno.ENOSPC, "No space left on device", "model"), "model: the disk is full", 2),
        (RuntimeError("Connection closed by peer"), None, 1),
    ],
    ids=["memory", "disk", "peer"],
)
def test_a_worker_says_what_its_user_can_mend_in_a_line(tmp_path, monkeypatch, error, said, code):
    monkeypatch.setenv("IMIXER_REPORTS", str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    save_config(TrainConfig(), tmp_path / "config.yaml")

    def fail(config):
        raise error

    monkeypatch.setattr(worker, "train", fail)
    assert worker.main(str(tmp_path / "config.yaml")) == code
    reported = tmp_path / "error-0"
    assert reported.read_text().startswith(said) if said else not reported.exists()


@pytest.mark.parametrize("saved", [{}, {"saved": "`imixer train --resume run` continues from step 8"}])
def test_what_is_saved_is_said_where_processes_are_stopped_before_they_can_say_it(monkeypatch, saved):
    def stopped(period):
        raise SignalException("stopped", signal.SIGTERM)

    processes = SimpleNamespace(wait=stopped, close=lambda **options: None)
    monkeypatch.setattr("imixer.training.launch.start_processes", lambda **options: processes)
    with pytest.raises(Interrupted) as said:
        launch("imixer.training.worker", "config.yaml", devices=2, **saved)
    assert str(said.value).startswith(saved.get("saved", "before the first checkpoint, nothing is saved"))


@pytest.mark.parametrize("there", [True, False])
def test_a_run_that_is_there_is_continued_and_one_that_is_not_is_not_named(tmp_path, there):
    run = tmp_path / "run"
    if there:
        run.mkdir()
    failure = SimpleNamespace(exitcode=-9, timestamp=0, local_rank=1)
    said = _death({1: failure}, run)
    assert "process 1 of the run was killed by SIGKILL" in said and ("--resume" in said) == there
