"""Nobody waits in silence: every command says what it does, also where stderr is no terminal."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imixer import progress
from imixer.analysis.ood import measure
from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.sources.decoding import find_unreadable
from imixer.data.sources.statistics import dataset_statistics
from imixer.training import progress_bar
from imixer.training.progress_bar import TrainingProgress


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_bar, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return clock


def steps(show, clock, seconds, numbers):
    """Go through some steps."""
    for number in numbers:
        clock.now += seconds
        show.step(number, torch.tensor(2.0))


@pytest.mark.parametrize("seconds", [0.0625, 0.5, 1.0, 3.0, 40.0])
def test_training_shows_an_estimate_of_the_whole_run_after_two_seconds_of_steps(clock, capsys, seconds):
    show = TrainingProgress()
    show.start(epochs=40, steps_per_epoch=1000, batch_size=64, done=0)
    assert capsys.readouterr().err == "training for 40,000 steps, 1,000 per epoch ...\n"
    first = math.ceil(2 / seconds)
    steps(show, clock, seconds, range(1, first + 1))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"epoch 1/40, step {first:,}  train loss 2.000  {1 / seconds:.3g} steps/s, ")
    assert f"about {progress.clock(seconds * (40_000 - first))} left for the whole run" in line


def test_a_long_epoch_says_something_every_half_minute_and_a_short_one_at_its_end(clock, capsys):
    show = TrainingProgress()
    show.start(epochs=2, steps_per_epoch=100, batch_size=8, done=0)
    steps(show, clock, 1.0, range(1, 100))
    assert len(capsys.readouterr().err.splitlines()) == 1 + 4  # at 2, 33, 64 and 95 seconds
    show.epoch({"epoch": 1, "step": 100, "val_acc": 0.5, "train_loss": 1.0, "images_per_s": 8.0})
    assert capsys.readouterr().err.startswith("epoch 1/2  train loss 1.000  val acc 50.0%  8 images/s  1:3")


def test_resumed_runs_are_estimated_by_their_own_steps(clock, capsys):
    show = TrainingProgress()
    show.start(epochs=10, steps_per_epoch=100, batch_size=8, done=500)
    steps(show, clock, 1.0, (501, 502, 503))
    assert "1 steps/s, 8 images/s  about 8:1" in capsys.readouterr().err.splitlines()[-1]


def test_a_long_validation_is_announced(clock, capsys):
    show = TrainingProgress()
    show.start(epochs=1, steps_per_epoch=2, batch_size=8, done=0)
    show.validate(7)
    assert "validating" not in capsys.readouterr().err
    clock.now = 3.0
    show.validate(7)
    assert "validating on 7 batches ..." in capsys.readouterr().err


def test_only_one_of_several_processes_talks(clock, capsys):
    show = TrainingProgress(shown=False)
    show.start(epochs=1, steps_per_epoch=9, batch_size=8, done=0)
    steps(show, clock, 9.0, range(1, 9))
    show.validate(3)
    assert capsys.readouterr().err == ""


def test_reading_images_says_how_far_it_is(clock, capsys):
    def chunks():
        for number in range(10):
            clock.now += 20.0
            yield [number]

    assert list(progress.with_progress(chunks(), 10, "checking images")) == list(range(10))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "checking images: 1 of 10, 3:00 left"
    assert len(said) == 5  # every half minute or more
    assert list(progress.with_progress(([n] for n in range(9)), 9, "quick")) == list(range(9))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("count", [10, 100, 5000])
def test_checking_few_slow_files_says_how_far_it_is_as_checking_many_does(clock, capsys, count):
    def slow(item):
        clock.now += 2.0

    assert find_unreadable(range(count), slow, str, skip_bad=False) == {}
    said = capsys.readouterr().err.splitlines()
    assert said and said[0].startswith("checking images: ") and f" of {count:,}, " in said[0]
    assert int(said[0].split()[2].replace(",", "")) <= max(1, count / 8)


@pytest.mark.parametrize("value_range", [None, (0.0, 4095.0)])
def test_measuring_slow_images_says_how_far_it_is(clock, capsys, value_range):
    def slow(number):
        clock.now += 2.0
        return Image.fromarray(np.full((4, 4), number, np.uint8 if value_range is None else np.uint16))

    dataset_statistics(slow, 10, config=DataConfig(value_range=value_range))
    said = capsys.readouterr().err.splitlines()
    assert "measuring images: 1 of 10, 0:18 left" in said
    assert len(said) == (1 if value_range is None else 2)  # the range first, then the pixels


def test_comparing_scores_says_how_far_it_is(clock, capsys, monkeypatch):
    def slow(in_dist, out_dist):
        clock.now += 2.0
        return len(out_dist)

    monkeypatch.setattr(measure, "detection", slow)
    own = {name: torch.rand(3) for name in ("knn", "energy")}
    others = {name: {score: torch.rand(5) for score in own} for name in ("noise", "rotated")}
    found = measure.compare_ood(own, others)
    assert found.detections == {name: dict.fromkeys(own, 5) for name in others}
    assert capsys.readouterr().err.splitlines() == ["comparing scores: 1 of 4, 0:06 left"]


COMMANDS = {
    "evaluate RUN": ["loading PyTorch", "evaluating 360 images ..."],
    "evaluate RUN --adversarial --images 4 --steps 1": ["loading", "evaluating 360"],
    "predict RUN": ["loading PyTorch", "predicting 8 images ..."],
    "analyze contraction RUN --images 4": ["loading", "measuring contraction of", "drawing contraction ..."],
    "analyze convergence RUN --images 4": ["loading", "measuring convergence of", "drawing convergence ..."],
    "analyze weights RUN": ["loading", "measuring weights of", "drawing weights ..."],
    "analyze energy RUN --images 4": ["loading", "measuring energy of", "drawing"],
    "analyze features RUN": ["loading", "measuring features of", "drawing"],
    "report RUN": ["loading Plotly", "drawing tables and figures of 1 run"],
    "export RUN --format torch --out OUT": ["loading PyTorch", "exporting the model as torch"],
    "recall --patterns 3 --queries 1 --out OUT": ["loading PyTorch", "retrieving 1 of 3 images"],
}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_says_what_it_does(run, tmp_path, capsys, words):
    assert main([word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in words.split()]) == 0
    said = capsys.readouterr().err
    (run / "report.html").unlink(missing_ok=True)
    places = [said.find(part) for part in COMMANDS[words]]
    assert -1 not in places and places == sorted(places), said


def test_a_sweep_says_where_the_epochs_of_a_trial_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(
        "set: {epochs: 1, schedule.warmup_epochs: 0, model.num_blocks: 1, model.embed_dim: 8}\nname: s\n"
    )
    assert main(["sweep", "s.yaml"]) == 0
    said = capsys.readouterr().err
    assert "base/seed-0: begins, see sweeps/s/base/seed-0.log" in said
    log = Path("sweeps/s/base/seed-0.log").read_text()
    assert "training for 11 steps" in log and "epoch 1/1" in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_at_once(tmp_path, capfd, monkeypatch, number):
    answered = []

    def interrupt(self, done, loss):
        if done == 3:
            os.kill(os.getpid(), number)
            answered.append(capfd.readouterr().err)

    monkeypatch.setattr(TrainingProgress, "step", interrupt)
    assert main(["train", "--epochs", "4", "--model.num_blocks", "1", "--out", str(tmp_path / "run")]) == 128 + number
    assert f"{number.name}: stopping after this step, which is saved first ..." in answered[0]
