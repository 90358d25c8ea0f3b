"""Solvers and gradients are set from the command line, and survive in the run."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml

from imixer.cli import main
from imixer.errors import InputError
from imixer.implicit import NotConvergedError
from imixer.training.evaluate import score
from imixer.training.finished_run import load_run
from imixer.training.loop import Loop
from imixer.training.run.directory import RunDirectory

OPTIONS = {"solver": "anderson", "gradient": "implicit", "tolerance": 1e-3, "max_steps": 60, "on_failure": "warn"}


def test_a_model_trains_and_evaluates_with_the_solver_of_the_command_line(train_quick, tmp_path):
    flags = [word for name, value in OPTIONS.items() for word in (f"--model.{name}", str(value))]
    run = train_quick(tmp_path / "solved", *flags, "--model.act_layer", "[gelu_1lip, gelu_1lip]")
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert OPTIONS.items() <= saved.items()
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True)
    assert {name: getattr(model, name) for name in OPTIONS} == OPTIONS
    assert main(["evaluate", str(run)]) == 0


def test_impossible_combinations_are_one_line(tmp_path, capsys):
    flags = ["--model.solver", "picard", "--model.gradient", "recompute"]
    assert main(["train", *flags, "--out", str(tmp_path / "x")]) == 2
    assert "gradient is recompute" in capsys.readouterr().err
    assert main(["train", "--model.solver", "newton", "--out", str(tmp_path / "x")]) == 2
    assert "model.solver is 'newton'; give one of fixed, picard" in capsys.readouterr().err


def test_a_run_whose_inverse_is_not_found_is_saved_and_can_go_on_with_what_it_finds(train_quick, tmp_path, capsys):
    options = {"solver": "picard", "gradient": "implicit", "tolerance": "1e-7", "max_steps": "1"}
    flags = [word for name, value in options.items() for word in (f"--model.{name}", value)]
    run = tmp_path / "run"
    assert main(["train", "--epochs", "1", "--out", str(run), *flags, "--data.batch_size", "256"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "step 1 (epoch 1): " in line and f"imixer train --resume {run} --model.max_steps N" in line
    assert any((run / "checkpoints").iterdir())
    with pytest.warns(UserWarning, match="did not converge in 1 steps"):
        assert main(["train", "--resume", str(run), "--model.on_failure", "warn"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["on_failure"] == "warn"


def test_an_image_whose_inverse_is_not_found_costs_no_other_its_result(train_quick, tmp_path, capsys):
    flags = ["--model.solver", "picard", "--model.gradient", "implicit", "--model.act_layer", "[gelu_1lip, gelu_1lip]"]
    run = train_quick(tmp_path / "solved", *flags)
    finished = load_run(str(run))
    solved = score(finished)
    assert solved.unsolved == 0
    finished.model.on_failure, finished.model.max_steps = "raise", 3
    with torch.inference_mode(), pytest.raises(NotConvergedError):
        finished.model(torch.randn(2, *finished.input_size))
    hurried = score(finished)
    assert hurried.unsolved > 0 and hurried.images == solved.images
    config = json.loads((run / "model/config.json").read_text())
    config["model_args"] |= {"max_steps": 3}
    (run / "model/config.json").write_text(json.dumps(config))
    capsys.readouterr()
    for command in ("evaluate", "predict"):
        assert main([command, str(run)]) == 0
        assert "the inverse of a block was not found for" in capsys.readouterr().err
    assert json.loads((run / "evaluation.json").read_text())["unsolved"] == hurried.unsolved


def test_on_several_devices_what_goes_on_after_an_inverse_that_is_not_found_is_what_was_saved(tmp_path):
    saved = SimpleNamespace(files=[])
    loop = SimpleNamespace(
        fabric=SimpleNamespace(world_size=2), checkpoints=saved, run=RunDirectory(tmp_path), step=4, rows=[]
    )
    for files, said in (
        ([], "nothing is saved yet, begin again"),
        ([tmp_path / "step-3.pt"], "continue from step-3.pt: "),
    ):
        saved.files = files
        with pytest.raises(InputError, match=said), Loop._saved_if_unsolved(loop):
            raise NotConvergedError("no fixed point in 1 step")
