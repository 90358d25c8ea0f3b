"""A model whose numbers are none is not scored, and no file that says JSON holds what JSON lacks."""

import ast
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import imixer
from imixer.cli import main
from imixer.errors import InputError
from imixer.training.finished_run import load_run
from imixer.training.finite_checks import first_non_finite_output, first_non_finite_tensor, require_finite_outputs
from imixer.training.run.safetensors_file import first_non_finite_in, place_of
from imixer.writing import json_text


@pytest.fixture
def spoil(run, tmp_path):
    """Copy the run, and change one number of it."""

    def spoil(name: str, value: float, dtype: torch.dtype = torch.float32) -> Path:
        copy = Path(shutil.copytree(run, tmp_path / "spoilt"))
        file = copy / "model" / "model.safetensors"
        weights = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
        weights[name].view(-1)[0] = value
        save_file(weights, file, metadata={"format": "pt"})
        return copy

    return spoil


COMMANDS = {
    "evaluate": ["evaluate"],
    "predict": ["predict"],
    "export": ["export", "--format", "torch"],
    "report": ["report"],
    "adversarial": ["evaluate", "--adversarial", "--images", "8", "--steps", "1"],
    **{
        what: ["analyze", what]
        for what in ("energy", "contraction", "inverse", "iterations", "convergence", "features", "weights", "ood")
    },
}
V = "blocks.0.mlp_tokens.contraction.fc1.v"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_a_line_from_which_block_on_the_model_is_not_finite(command, spoil, capsys):
    run = spoil("blocks.0.mlp_channels.fc1.weight", math.nan)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    name, *more = COMMANDS[command]
    what = more[:1] if name == "analyze" else []
    assert main([name, *what, str(run), *more[len(what) :]]) == 2
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("imixer:")]
    assert len(said) == 1 and "not finite, from block 0 on: blocks.0.mlp_channels.fc1.weight" in said[0]
    assert "nan" not in out.lower()
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("stem.proj.weight", math.inf, "from the stem on: stem.proj.weight holds infinity (1 of"),
        ("stem.proj.bias", -math.inf, "from the stem on: stem.proj.bias holds infinity"),
        (V, math.nan, f"from block 0 on: {V} holds NaN"),
        ("norm.weight", math.nan, "from the norm on: norm.weight holds NaN"),
        ("head.bias", math.nan, "from the head on: head.bias holds NaN (1 of 10 numbers)"),
    ],
)
def test_any_weight_and_any_buffer(name, value, said, spoil):
    with pytest.raises(InputError) as error:
        load_run(str(spoil(name, value)), "cpu")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_statistics_of_batch_norm():
    bn = torch.nn.BatchNorm1d(3)
    bn.running_var[1] = math.nan
    assert first_non_finite_tensor(bn.state_dict()) == "the running_var on: running_var holds NaN (1 of 3 numbers)"
    bn.running_var[1] = 1.0
    assert first_non_finite_tensor(bn.state_dict()) is None  # the count of batches is an integer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_files_are_looked_at_without_torch(dtype, value, tmp_path):
    file = tmp_path / "model.safetensors"
    largest = torch.finfo(dtype).max
    tensors = {
        "head.weight": torch.full((3,), value, dtype=dtype),
        "blocks.10.fc.weight": torch.full((2, 2), value, dtype=dtype),
        "blocks.2.fc.weight": torch.full((2, 2), largest, dtype=dtype),
        "blocks.2.fc.v": torch.full((5,), -largest, dtype=dtype),
        "count": torch.tensor(2**62),
    }
    save_file(tensors, file)
    assert first_non_finite_in(file) == "block 10 on: blocks.10.fc.weight"
    tensors["blocks.2.fc.v"][4] = value
    save_file(tensors, file)
    assert first_non_finite_in(file) == "block 2 on: blocks.2.fc.v"
    save_file({"blocks.2.fc.weight": tensors["blocks.2.fc.weight"], "count": tensors["count"]}, file)
    assert first_non_finite_in(file) is None
    file.write_bytes(b"\x05\x00")
    with pytest.raises(ValueError, match="no safetensors"):
        first_non_finite_in(file)


def test_where_a_name_belongs():
    names = {"blocks.3.mlp_tokens.fc_in.weight": "block 3", "stem.proj.weight": "the stem", "head": "the head"}
    assert {name: place_of(name) for name in names} == names


# Finite weights, and numbers that overflow on the way


@pytest.mark.parametrize("command", ["evaluate", "predict", "energy", "convergence", "features", "iterations", "ood"])
def test_weights_that_are_finite_and_overflow_are_found_by_following_an_image(command, spoil, capsys):
    run = spoil("blocks.0.mlp_channels.fc2.bias", 3e38)
    file = run / "model" / "model.safetensors"
    weights = load_file(file)
    weights["blocks.0.mlp_channels.fc2.bias"][:] = 3e38
    weights["blocks.0.mlp_channels.fc2.weight"] *= 3e38
    save_file(weights, file, metadata={"format": "pt"})
    name, *more = COMMANDS[command]
    assert main([name, *more, str(run)]) == 2
    err = capsys.readouterr().err
    assert "block 0 on: the output of blocks.0.mlp_channels" in err and "although all weights are finite" in err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_that_overflows(dtype):
    big = torch.finfo(dtype).max
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).to(dtype)
    with torch.no_grad():
        model[0].weight.fill_(big)
    images = torch.ones(3, 2, dtype=dtype)
    assert first_non_finite_output(model, images) == "0"
    with pytest.raises(InputError, match=f"from the 0 on: the output of 0 exceeds {str(dtype)[6:]}"):
        require_finite_outputs(model, images, "runs/x")


def test_images_that_are_not_finite_are_not_the_models_fault():
    model, images = torch.nn.Linear(2, 2), torch.ones(3, 2)
    images[1, 0] = math.nan
    with pytest.raises(InputError, match="was given 1 of 3 images that are not finite"):
        require_finite_outputs(model, images, "runs/x")


@pytest.mark.parametrize(
    "flags",
    [
        ["--memory", "polynomial", "--order", "400"],
        ["--memory", "modern", "--beta", "1e38"],
        ["--memory", "exponential", "--beta", "1e30"],
    ],
    ids=" ".join,
)
def test_a_memory_whose_energy_overflows_is_refused_or_recalls(flags, tmp_path, capsys):
    code = main(["recall", *flags, "--out", str(tmp_path / "memory")])
    if code == 0:
        summary = strictly(tmp_path / "memory" / "recall.json")
        assert all(each["energy_after"] is not None for each in summary["queries"])
    else:
        assert code == 2 and len([x for x in capsys.readouterr().err.splitlines() if x.startswith("imixer:")]) == 1


# JSON


def strictly(file: Path):
    def refuse(constant):
        raise AssertionError(f"{constant} in {file}")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_a_number_that_is_none_is_refused_by_its_place_or_null(value):
    with pytest.raises(ValueError, match=r"^blocks\[1\]\.bounds\[0\] is not a finite number"):
        json_text({"blocks": [{"bounds": [1.0]}, {"bounds": (value,)}]})
    assert json.loads(json_text([value, 1.5, "NaN"], non_finite="null")) == [None, 1.5, "NaN"]
    with pytest.raises(ValueError, match="the value"):
        json_text(value)


def test_everything_is_written_by_that_writer():
    source = Path(imixer.__file__).parent
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps") and isinstance(node.value, ast.Name):
                assert node.value.id != "json" or file.name == "writing.py", file


def test_what_a_run_writes_is_json(run):
    files = [file for file in run.rglob("*.json") if file.is_file()]
    assert {"result.json", "environment.json", "config.json", "index.json"} <= {file.name for file in files}
    for file in files:
        strictly(file)
