"""What `imixer models` counts and measures."""

import io
import re
from pathlib import Path

import pytest
import timm
from rich.console import Console

from imixer.cli import main
from imixer.cli.dispatch import _COMMANDS
from imixer.training import model_costs as module
from imixer.training.model_costs import ModelCost, model_costs, model_grid, show_model_costs

ROOT = Path(__file__).parents[2]


def test_parameters_and_multiply_adds_are_those_of_the_model():
    (cost,) = model_costs(["mixer_t2_8"])
    model = timm.create_model("mixer_t2_8", num_classes=1000)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    tokens, channels, hidden = 16, 96, (48, 384)  # 8x8 pixels in patches of 2x2; widths of the two MLPs
    block = 2 * tokens * hidden[0] * channels + 2 * channels * hidden[1] * tokens
    assert cost.multiply_adds == tokens * (2 * 2 * 3) * channels + 4 * block + channels * 1000
    assert cost.input_size == (3, 8, 8) and cost.seconds > 0 and cost.device.startswith("CPU")


def test_the_time_is_that_of_an_image(monkeypatch):
    monkeypatch.setattr(module, "_timed_forwards", lambda model, images: iter([0.25, 9.0, 0.5, 0.75, 0.75]))
    monkeypatch.setattr(module, "_MOST_S", 100.0)
    (cost,) = model_costs(["imixer_t2_8"], batch_size=2)
    assert cost.seconds == 0.5 / 2  # the median of the first three


def test_each_number_stands_in_its_column():
    known = ModelCost("a", (3, 8, 16), 1_230_000, 2_500_000_000, 0.0125, 4, "CPU")
    grid = model_grid([known, ModelCost("b", (3, 8, 8), 10_000, None, 0.5, 4, "CPU")])
    assert dict(zip(grid.header, grid.rows[0], strict=True)) == {
        "model": "a",
        "image": "8x16",
        "parameters": "1.23 M",
        "multiply-adds": "2.500 G",
        "ms per image": "12.50",
    }
    assert grid.rows[1][3] == "-"


def test_the_models_of_the_package_are_listed_unless_others_are_named(capsys, monkeypatch):
    counted = []
    monkeypatch.setattr(
        module, "_cost", lambda name, *_: counted.append(name) or ModelCost(name, (3, 8, 8), 1, 1, None, 1, "")
    )
    assert main(["models", "--measure", "false"]) == 0
    assert {"imixer_t2_8", "imixer_b16_224", "mixer_s4_32"} <= set(counted) and "mixer_b16_224" not in counted
    assert "imixer_n2_8.digits" in counted
    assert "ms per image" not in capsys.readouterr().out
    counted.clear()
    assert main(["models", "mixer_?4_32", "resnet18", "mixer_s4_32"]) == 0
    assert counted == ["mixer_s4_32", "mixer_t4_32", "resnet18"]


def test_the_commands_that_take_a_packaged_model_are_those_that_are_named():
    console = Console(file=io.StringIO(), width=400)
    show_model_costs([ModelCost("a", (3, 8, 8), 1, 1, None, 1, "", trained_classes=10)], console)
    named = re.search(r"--model NAME of (.*) takes one that has weights", console.file.getvalue())[1]
    taking = {name for name, command in _COMMANDS.items() if "packaged model in the place" in _help(command)}
    assert set(re.split(", | and ", named)) == taking
    (listed,) = re.findall(r"`imixer (predict`.*?) take `--model NAME`", (ROOT / "docs/models.md").read_text())
    assert set(re.findall(r"\w+", listed)) - {"and"} == taking


def _help(command):
    return " ".join(command.build().format_help().lower().split())


def test_a_packaged_model_is_counted_as_it_was_trained():
    (cost,) = model_costs(["imixer_n2_8.digits"], timed=False)
    model = timm.create_model("imixer_n2_8.digits", pretrained=True)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.input_size == (1, 8, 8) and cost.trained_classes == 10
    grid = model_grid([cost, ModelCost("b", (3, 8, 8), 10_000, None, None, 1, "CPU")])
    assert [dict(zip(grid.header, row, strict=True))["weights"] for row in grid.rows] == ["of 10 classes", "-"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["imixer_s8"], "did you mean"),
        (["nothing*"], "no model 'nothing*'"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--device", "abacus"], "device"),
    ],
)
def test_what_is_no_model_is_refused_in_a_line(capsys, words, part):
    assert main(["models", *words]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("imixer: ") and part in line
