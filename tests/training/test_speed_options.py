"""What saves memory or time leaves the numbers as they are."""

import csv
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from imixer.cli import main
from imixer.training.run.config import TrainConfig
from imixer.training.train import train
from imixer.training.train_state import TrainState


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


@pytest.fixture
def models(monkeypatch):
    """Look at the model in each step of a training."""

    def watch(look):
        seen = []

        def gradient(self, parts, step):
            seen.append(look(self.module))
            return compute(self, parts, step)

        monkeypatch.setattr(TrainState, "gradient", gradient)
        return seen

    compute = TrainState.gradient
    return watch


def test_gradient_checkpointing_reaches_the_model(models, train_quick, tmp_path):
    seen = models(lambda model: model.grad_checkpointing)
    train_quick(tmp_path / "run", "--grad_checkpointing", "true")
    assert seen and all(seen)


@pytest.mark.parametrize("wanted", [True, False])
def test_channels_last_reaches_the_convolutions(models, train_quick, tmp_path, wanted):
    def look(model):
        kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
        return [kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels]

    seen = models(look)
    pyramid = ["--model.num_blocks", "[1,1]", "--model.embed_dim", "[8,16]"]
    train_quick(tmp_path / "run", *pyramid, "--channels_last", str(wanted).lower())
    assert seen and all(each == [wanted] for each in seen)


@pytest.mark.parametrize(("tf32", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_allowed_on_a_gpu_unless_it_is_refused(monkeypatch, tf32, precision):
    class Begun(Exception):
        pass

    def begin(task):
        raise Begun

    said = []
    fabric = SimpleNamespace(device=torch.device("cuda"), launch=lambda: None)
    monkeypatch.setattr("imixer.training.train.build_fabric", lambda config: fabric)
    monkeypatch.setattr("imixer.training.train.keep_freed_memory", lambda: None)
    monkeypatch.setattr("imixer.training.train.find_task", begin)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    with pytest.raises(Begun):
        train(TrainConfig(accelerator="cpu", tf32=tf32))
    assert said == [precision] and torch.backends.cudnn.deterministic


@pytest.mark.parametrize("name", ["dla46_c", "unet_16"])
def test_a_model_that_cannot_recompute_is_refused_before_anything_is_written(name, tmp_path, capsys):
    words = ["--recipe", "digits_general", "--model.name", name, "--grad_checkpointing", "true"]
    assert main(["train", "--out", str(tmp_path / "run"), *words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == f"imixer: grad_checkpointing is true, and {name} cannot; leave it out"
    assert not list(tmp_path.iterdir())
