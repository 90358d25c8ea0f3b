"""What saves memory or time leaves the numbers as they are."""

import csv

import pytest
import torch
from safetensors.torch import load_file

from imixer.cli import main


def scores(run):
    with (run / "metrics.csv").open() as file:
        return [[float(row[name]) for name in ("train_loss", "val_loss")] for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        (["--grad_checkpointing", "true"], 1e-6),
        (["--channels_last", "true"], 1e-4),
        (["--accumulate", "4"], 1e-4),
        (["--tf32", "false"], 0.0),
        (["--logger", "csv"], 0.0),
        (["--precision", "bf16"], 2e-2),
        pytest.param(["--compile", "true"], 1e-3, marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_training_comes_to_the_same(run, train_quick, tmp_path, flags, tolerance):
    other = train_quick(tmp_path / "other", *flags)
    for score, expected in zip(scores(other), scores(run), strict=True):
        assert score == pytest.approx(expected, rel=tolerance)
    weights, expected = (load_file(each / "model" / "model.safetensors") for each in (other, run))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=tolerance * 10, atol=tolerance)


def test_gradient_checkpointing_reaches_the_model(monkeypatch, train_quick, tmp_path):
    from imixer.training.train_state import TrainState

    seen = []
    gradient = TrainState.gradient

    def watch(self, parts, step):
        seen.append(self.module.grad_checkpointing)
        return gradient(self, parts, step)

    monkeypatch.setattr(TrainState, "gradient", watch)
    train_quick(tmp_path / "run", "--grad_checkpointing", "true")
    assert all(seen)


@pytest.mark.parametrize("name", ["dla46_c", "unet_16"])
def test_a_model_that_cannot_recompute_is_refused_before_anything_is_written(name, tmp_path, capsys):
    words = ["--recipe", "digits_general", "--model.name", name, "--grad_checkpointing", "true"]
    assert main(["train", "--out", str(tmp_path / "run"), *words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == f"imixer: grad_checkpointing is true, and {name} cannot; leave it out"
    assert not list(tmp_path.iterdir())
