"""A run that was stopped ends as one that was not, bit for bit."""

import csv
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from imixer.cli import main
from imixer.training import loop as loop_module
from imixer.training.budget import duration
from imixer.training.loop import Loop
from imixer.training.progress_bar import TrainingProgress
from imixer.training.run.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("undrawn")

# everything that has a state: an average, mixing, dropout, stochastic depth, augmentation, momentum, a part of a batch
EVERYTHING = [
    *(
        "--model.name",
        "imixer_t2_8",
        "--ema",
        "0.98",
        "--data.mixup",
        "0.8",
        "--data.cutmix",
        "1",
        "--data.random_erasing",
        "0.3",
    ),
    *("--model.drop_rate", "0.1", "--model.drop_path_rate", "0.1", "--model.num_blocks", "2"),
    *("--model.embed_dim", "16", "--data.batch_size", "8", "--data.image_size", "8"),
    *("--accumulate", "2", "--schedule.warmup_epochs", "1", "--optim.clip_grad", "1"),
]
STEPS = 8  # of an epoch: 64 images in batches of 8, and 16 held out
TIMES = {"images_per_s", "seconds"}


def folder(root, images):
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            pixels = draw.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def rows(run):
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def equal(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left if k not in TIMES)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def assert_same(run, other):
    assert rows(run) == rows(other)
    for name in ("model/model.safetensors", "convergence.csv", "config.yaml"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert equal(*(Checkpoints(each / "checkpoints").latest() for each in (run, other)))


def beside(flags, more):
    """Leave out the warm-up in epochs where more flags give a share, since both are refused."""
    at = flags.index("--schedule.warmup_epochs")
    return [*flags[:at], *flags[at + 2 :]] if "--schedule.warmup_share" in more else flags


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Everything with a state, on a few images."""
    return [*EVERYTHING, "--data.name", str(folder(tmp_path_factory.mktemp("images") / "pets", 40))]


@pytest.fixture(scope="module")
def train(flags):
    def train(out, *more):
        assert main(["train", "--out", str(out), *beside(flags, more), *more]) == 0
        return out

    return train


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("resume") / "run", "--epochs", "2")


@pytest.fixture
def stop_at(monkeypatch, flags):
    """Stop a training by SIGTERM after a step, and leave its directory."""

    def stop(out, step, *more):
        def interrupt(self, done, loss):
            if done == step:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingProgress, "step", interrupt)
            length = [] if "--budget" in more else ["--epochs", "2"]
            assert main(["train", "--out", str(out), *beside(flags, more), *length, *more]) == 143
        return out

    return stop


@pytest.mark.parametrize("step", [1, STEPS, STEPS + 1, 2 * STEPS])
def test_a_run_stopped_at_any_step_ends_the_same(uninterrupted, stop_at, tmp_path, step):
    run = stop_at(tmp_path / "run", step)
    assert not (run / "model").exists()
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, uninterrupted)
    with (run / "metrics.csv").open() as file:
        assert all(float(row["images_per_s"]) > 0 for row in csv.DictReader(file))


def test_loader_processes_change_nothing(uninterrupted, stop_at, tmp_path):
    run = stop_at(tmp_path / "run", STEPS + 3, "--data.workers", "1")
    assert main(["train", "--resume", str(run), "--data.workers", "2"]) == 0
    assert rows(run) == rows(uninterrupted)
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (uninterrupted / weights).read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        ["--data.pipeline", "device", "--data.auto_augment", "rand-m9-mstd0.5-inc1"],
        ["--data.erase", "after_mixing", "--schedule.sched_on_updates", "false"],
        ["--model.n_iter", "0"],  # F has no gradient, and so no moments
        ["--optim.opt", "momentum", "--optim.momentum", "0", "--optim.betas", "null"],  # nothing has
    ],
)
def test_other_augmentations_and_schedules_are_resumed_too(train, stop_at, tmp_path, more):
    whole = train(tmp_path / "whole", "--epochs", "2", *more)
    run = stop_at(tmp_path / "run", STEPS + 3, *more)
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, whole)


@pytest.mark.parametrize(("pipeline", "step"), [("timm", STEPS + 3), ("device", 5)])
def test_muon_within_a_budget_is_resumed_too(train, stop_at, tmp_path, pipeline, step):
    """With all that such a recipe has: a whitened pyramid, a linear schedule, alternating flips."""
    more = [
        *(
            "--budget",
            "0.00008T",
            "--optim.opt",
            "muon",
            "--schedule.sched",
            "linear",
            "--schedule.warmup_share",
            "0.2",
        ),
        *("--model.stem", "whitened", "--model.num_blocks", "[1,1]", "--model.embed_dim", "[16,24]"),
        *("--data.pipeline", pipeline, "--data.crop", "reflect", "--data.shift", "1"),
        *("--data.hflip", "0.5", "--data.flip", "alternating"),
    ]
    whole = train(tmp_path / "whole", *more)
    assert STEPS + 3 < int(rows(whole)[-1]["step"]) < 2 * STEPS
    run = stop_at(tmp_path / "run", step, *more)
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, whole)
    assert_its_model_is_made_again(run, whole)


def assert_its_model_is_made_again(run, whole):
    shutil.rmtree(run / "model")
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, whole)


def test_a_run_of_steps_whose_last_epoch_is_a_part_of_one_is_resumed_even_once_that_is_saved(
    train, flags, tmp_path, monkeypatch
):
    steps = ["--steps", str(STEPS + 3)]
    whole = train(tmp_path / "whole", *steps)
    shutil.copytree(whole, tmp_path / "copy")
    assert_its_model_is_made_again(tmp_path / "copy", whole)

    validated = []

    def interrupt(self, batches):
        validated.append(batches)
        if len(validated) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "validate", interrupt)
        assert main(["train", "--out", str(tmp_path / "run"), *flags, *steps]) == 143
    assert not (tmp_path / "run" / "model").exists()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("kills", "epochs"), [(4, 3), pytest.param(25, 16, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_run_killed_at_random_moments_ends_the_same(flags, tmp_path, kills, epochs):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script = Path(__file__).with_name("kill_and_resume.py")
    longest = epochs * STEPS // kills  # so that it is not done before the last kill
    command = [sys.executable, str(script), str(whole), str(killed), str(kills), str(longest), "7", *flags]
    command += ["--epochs", str(epochs), "--checkpoints.every_steps", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == kills
    assert_same(killed, whole)
    assert not list(tmp_path.rglob("*.writing"))


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        ({3: 59}, [(STEPS, 1), (2 * STEPS, 2)]),
        ({3: 119}, [(STEPS, 0), (STEPS, 1), (2 * STEPS, 2)]),  # before a validation, which may be long
        ({3: 121}, [(3, 0), (STEPS, 1), (2 * STEPS, 2)]),
    ],
)
def test_a_checkpoint_is_saved_when_the_last_is_too_old(ages, expected, train, tmp_path, monkeypatch):
    """`ages` has the seconds since the last one, by step."""
    seconds, saved = [0.0], []
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    take, save = Loop._take_step, Loop._save

    def step(self, micro_batches):
        take(self, micro_batches)
        seconds[0] += ages.get(self.step, 0)

    def count(self, **options):
        saved.append((self.step, len(self.rows)))
        save(self, **options)

    monkeypatch.setattr(Loop, "_take_step", step)
    monkeypatch.setattr(Loop, "_save", count)
    train(tmp_path / "run", "--epochs", "2", "--checkpoints.every_minutes", "2")
    assert saved == expected


def damaged(run):
    latest = Checkpoints(run / "checkpoints").entries()[-1]
    path = run / "checkpoints" / latest.file
    path.write_bytes(path.read_bytes()[:-100])
    return path


def test_a_damaged_checkpoint_is_named_and_costs_only_time(uninterrupted, stop_at, tmp_path, capsys):
    run = stop_at(tmp_path / "run", STEPS + 3, "--checkpoints.every_steps", "5")
    path = damaged(run)
    assert main(["train", "--resume", str(run)]) == 0
    assert f"{path} is damaged" in capsys.readouterr().err
    assert rows(run) == rows(uninterrupted)
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (uninterrupted / weights).read_bytes()


def test_metrics_written_after_the_checkpoint_are_dropped(uninterrupted, stop_at, tmp_path):
    run = stop_at(tmp_path / "run", STEPS + 3)
    with (run / "metrics.csv").open("a") as file:  # as a process leaves it that is killed before its checkpoint
        file.write(f"2,{2 * STEPS},9,9,9,9,9,9\n")
    with (run / "convergence.csv").open("a") as file:
        file.write("2,0,9,9,9\n")
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, uninterrupted)


def refused(capsys, words, *parts):
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imixer: ")
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ("--optim.lr 1", ["optim.lr is 1.0", "was begun with 0.002"]),
        ("--model.checkpoint imixer_n2_8.digits", ["model.checkpoint is imixer_n2_8.digits", "was begun with None"]),
        ("--epochs 9", ["epochs is 9", "begun with 2"]),
        ("--out other", ["out is other, and resume writes into", "leave one of them out"]),
        ("--model.n_iter 3", ["model.n_iter is 3"]),
        ("--data.mixup 0", ["data.mixup is 0.0", "begun with 0.8"]),
        ("--recipe cifar10/imixer_quick", ["data.batch_size is 128", "begun with 8"]),
        ("--accumulate 4", ["accumulate is 4", "begun with 2", "mixed with each other", "make the product 2 again"]),
    ],
)
def test_a_changed_configuration_is_named(uninterrupted, capsys, changes, parts):
    before = (uninterrupted / "config.yaml").read_bytes()
    refused(capsys, ["train", "--resume", str(uninterrupted), *changes.split()], *parts)
    assert (uninterrupted / "config.yaml").read_bytes() == before


def test_what_a_refused_change_advises_can_be_done(uninterrupted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", str(uninterrupted), "--epochs", "9"]) == 2
    advice = re.search(r"these weights with (--model\.checkpoint \S+)$", capsys.readouterr().err.strip())[1]
    assert main(["train", "--out", "new", "--epochs", "1", "--schedule.warmup_epochs", "0", *advice.split()]) == 0


def test_a_finished_run_is_left_as_it_is(uninterrupted, capsys):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    assert main(["train", "--resume", str(uninterrupted), "--devices", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before
    assert "held-out images" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "part"), [("nowhere", "no run at nowhere"), (".", "it has no config.yaml")])
def test_what_is_no_run_is_refused(tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", "--resume", words], part)


def test_a_run_that_is_being_trained_is_refused(stop_at, tmp_path, capsys):
    run = stop_at(tmp_path / "run", 3)
    with FileLock(run / ".lock"):
        refused(capsys, ["train", "--resume", str(run)], "is being trained by another process")
    assert main(["train", "--resume", str(run)]) == 0


def test_other_data_or_none_are_refused_and_moved_data_found(stop_at, tmp_path, capsys):
    folder(tmp_path / "pets", 20)
    run = stop_at(tmp_path / "run", 3, "--data.name", str(tmp_path / "pets"))
    saved = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    (tmp_path / "pets").rename(tmp_path / "moved")
    refused(capsys, ["train", "--resume", str(run)], "no such folder", "pets")
    folder(tmp_path / "other", 30)
    other = ["train", "--resume", str(run), "--data.name", str(tmp_path / "other")]
    refused(capsys, other, "other training images (32; now 48)", "--data.name")
    (tmp_path / "moved" / "cat" / "3.png").write_bytes(b"")
    moved = ["train", "--resume", str(run), "--data.name", str(tmp_path / "moved")]
    refused(capsys, moved, "3.png", "empty")
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == saved
    folder(tmp_path / "moved", 20)
    assert main(moved) == 0


def test_as_many_other_images_are_refused(stop_at, tmp_path, capsys):
    run = stop_at(tmp_path / "run", 3, "--data.name", str(folder(tmp_path / "pets", 20)))
    for file in folder(tmp_path / "other", 20).rglob("*.png"):
        Image.open(file).point(lambda value: value // 2).save(file)
    other = ["train", "--resume", str(run), "--data.name", str(tmp_path / "other")]
    refused(capsys, other, "trained on as many other images, or in another order", "--data.name")


def test_checkpoints_that_do_not_say_how_their_images_looked_go_on(stop_at, tmp_path):
    run = stop_at(tmp_path / "run", 3)
    file = run / "checkpoints" / Checkpoints(run / "checkpoints").entries()[-1].file
    state = torch.load(file, weights_only=True)
    del state["data_fingerprint"]["images that were looked at"], state["steps"]
    (run / "checkpoints/index.json").unlink()
    torch.save(state, file)
    assert main(["train", "--resume", str(run)]) == 0


def test_batch_norms_go_on_with_as_many_images_at_once(stop_at, tmp_path, capsys):
    unmixed = ["--data.mixup", "0", "--data.cutmix", "0", "--model.norm", "batch"]
    run = stop_at(tmp_path / "run", 3, *unmixed)
    words = ["train", "--resume", str(run), "--accumulate"]
    refused(capsys, [*words, "1"], "accumulate is 1", "begun with 2", "a batch norm takes the statistics")
    assert main([*words, "2"]) == 0


def test_a_budget_goes_on_to_the_steps_it_was_begun_with(train, stop_at, tmp_path, monkeypatch, capsys):
    budget = ["--budget", "0.0003T"]
    whole = train(tmp_path / "whole", *budget)
    run = stop_at(tmp_path / "run", 3, *budget)

    def counted_otherwise(*args, **kwargs):
        found = duration(*args, **kwargs)
        return replace(found, steps=2 * found.steps, epochs=2 * found.epochs)

    monkeypatch.setattr("imixer.training.train.duration", counted_otherwise)
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    assert "when the run was begun; it goes on to" in capsys.readouterr().err
    assert_same(run, whole)


@pytest.mark.parametrize("broken", ["whiten_stem", "build_logger", "Loop"])
def test_what_ends_before_training_leaves_no_folder_behind(flags, tmp_path, monkeypatch, broken):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"imixer.training.train.{broken}", interrupt)
        assert main(["train", "--out", str(tmp_path / "run"), *flags, "--epochs", "2"]) == 130
    assert not (tmp_path / "run").exists()


@contextmanager
def largest_file(size):
    """The system's own limit on the size of a file, which writing meets as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_ends_training_in_one_line_and_what_is_saved_serves(
    uninterrupted, flags, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    words = ["train", "--out", str(run), *flags, "--epochs", "2", "--checkpoints.every_steps", "5"]
    with largest_file(20_000) as fill, monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", lambda self, done, loss: fill() if done == STEPS + 1 else None)
        assert main(words) == 2
    said = capsys.readouterr().err
    assert "step-00000010.pt could not be written (File too large); that of step 8 is whole" in said
    assert "Traceback" not in said
    assert main(["train", "--resume", str(run)]) == 0
    assert rows(run) == rows(uninterrupted)


def test_a_disk_that_fills_up_before_the_first_checkpoint_advises_nothing_that_cannot_be_done(flags, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "--out", str(run), *flags, "--epochs", "2", "--checkpoints.every_steps", "2"]
    with largest_file(20_000) as fill, pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingProgress, "step", lambda self, done, loss: fill())
        assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "there is none before it; make room, and start again" in line and "--resume" not in line
    assert not run.exists()


def test_a_model_that_cannot_be_written_is_one_line(uninterrupted, tmp_path, capsys):
    with largest_file(20_000) as fill:
        fill()
        assert main(["export", str(uninterrupted), "--format", "hub", "--out", str(tmp_path / "hub")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imixer: ") and "File too large" in line
    assert not (tmp_path / "hub").exists()


def test_a_run_that_may_not_be_written_to_is_refused_before_anything_is_opened(stop_at, tmp_path, monkeypatch, capsys):
    run = stop_at(tmp_path / "run", 3)
    monkeypatch.setattr("imixer.writing.os.access", lambda path, mode: False)
    refused(capsys, ["train", "--resume", str(run)], "resume: nothing can be written to")
