"""Budgets in multiply-adds."""

import csv
import re
from dataclasses import replace

import pytest
import torch

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.training.budget import _rounded_up, duration, optimizer_cost
from imixer.training.model import build_model, forward_cost
from imixer.training.run.config import ModelConfig, OptimConfig, ScheduleConfig, TrainConfig, parse_budget
from imixer.training.run.parsing import build_config, expand_config_flags, parse, train_parser

TINY = [
    *("--recipe", "digits_general"),
    *("--model.num_blocks", "1", "--model.embed_dim", "16"),
]


def built(**model):
    with torch.device("meta"):
        config = ModelConfig(**{"name": "imixer_t4_32", "num_blocks": 2, "embed_dim": 32, **model})
        return build_model(config, DataConfig(), native_size=None, in_chans=3, num_classes=10)


@pytest.mark.parametrize(("budget", "value"), [("0.5P", 5e14), ("20T", 2e13), ("1 P", 1e15), ("1e-3P", 1e12)])
def test_budgets_are_numbers_with_a_unit(budget, value):
    assert parse_budget(budget) == pytest.approx(value)


@pytest.mark.parametrize("budget", ["0.5", "0.5G", "0.5PP", "P", "", "-1P", "0P", "nanP", "infP", "half a P", "0.5p"])
def test_other_units_are_refused_in_one_line(budget):
    with pytest.raises(InputError, match=r"with T .* or P") as refused:
        TrainConfig(budget=budget)
    assert "\n" not in str(refused.value) and repr(budget) in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "-1P"], "budget is '-1P'; give multiply-adds above 0"),
        (["--optim.lr", "-1e-3"], "optim.lr is -0.001; give a learning rate above 0"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_a_value_below_zero_is_named_and_not_taken_for_an_option(words, said, tmp_path, capsys):
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"imixer: {said}")


def test_the_forward_is_counted_with_its_convolutions():
    """A Mixer's by hand. S tokens, C channels, D_S and D_C hidden."""
    S, C, D_S, D_C = 64, 32, 16, 128
    blocks = 2 * (2 * S * D_S * C + 2 * S * C * D_C)
    stem = 32 * 32 * 24 * 12 + 16 * 16 * 16 * 24 * 9 + 8 * 8 * 32 * 16 * 9
    cost = forward_cost(built(name="mixer_t4_32", stem="whitened"))
    assert cost.convolutions == stem
    assert cost.total == stem + blocks + C * 10


def test_newton_schulz_is_counted_for_muon_alone():
    """Five iterations of X X^T, its square, and that with X, for each matrix of the blocks."""
    shapes = [(16, 64), (64, 16), (128, 32), (32, 128)] * 2
    expected = 5 * sum(2 * min(s) ** 2 * max(s) + min(s) ** 3 for s in shapes)
    mixer = built(name="mixer_t4_32")
    assert optimizer_cost(mixer, "muon") == optimizer_cost(mixer, "NMuon") == expected
    assert optimizer_cost(mixer, "adamw") == 0


@pytest.mark.parametrize("opt", ["adamw", "muon"])
def test_a_run_takes_as_many_whole_steps_as_the_budget_pays_for(opt):
    model = built()
    config = TrainConfig(budget="1T", optim=OptimConfig(opt=opt), data=DataConfig(batch_size=100))
    step = 3 * forward_cost(model).total * 100 + optimizer_cost(model, opt)
    lasts = duration(config, model, 50)
    assert lasts.steps == int(1e12 // step)
    assert lasts.epochs == -(-lasts.steps // 50)
    assert f"{lasts.steps:,} steps, {lasts.steps / 50:.2f} epochs" in lasts.summary
    assert ("Newton-Schulz adds" in lasts.summary) == (opt == "muon")
    assert f"convolutions are {forward_cost(model).convolutions / forward_cost(model).total:.1%}" in lasts.summary


def test_a_budget_below_one_epoch_is_refused_with_what_an_epoch_takes(tmp_path, capsys):
    assert main(["train", *TINY, "--budget", "1e-9T", "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    needed = re.search(r"budget is 1e-9T, and one epoch takes (\S+); give at least that", message)
    assert needed, message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 50, 1234, 56_789, 12_345_678])
def test_the_budget_that_a_refusal_asks_for_is_enough_and_has_three_digits(steps_per_epoch):
    with pytest.raises(InputError) as refused:
        duration(TrainConfig(budget="1e-9T"), built(), steps_per_epoch)
    needed = re.search(r"one epoch takes (\S+); give at least that", str(refused.value))[1]
    assert duration(TrainConfig(budget=needed), built(), steps_per_epoch).epochs <= 2
    assert len(re.sub(r"e[-+]\d+|\D|^[0.]+", "", needed)) <= 3


def test_a_budget_that_a_float_falls_short_of_is_not_asked_for():
    assert _rounded_up(71_600 * 10**12) == "71.7P" and _rounded_up(71_500 * 10**12) == "71.5P"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"schedule": ScheduleConfig(cooldown_epochs=2)},
            r"budget 1T and schedule\.cooldown_epochs 2 each say how long.*or give --schedule\.cooldown_epochs 0",
        ),
        (
            {"schedule": ScheduleConfig(sched="step", cooldown_epochs=2)},
            r"cooldown_epochs 2 are at the lowest rate, and sched step has none; raise epochs",
        ),
    ],
)
def test_what_a_budget_contradicts_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(budget="1T", **config)


@pytest.mark.parametrize("option", ["solver picard", "gradient implicit"])
def test_what_multiplies_as_often_as_its_images_need_has_no_budget(option):
    name, value = option.split()
    config = TrainConfig(budget="1T", model=ModelConfig(**{name: value}))
    with pytest.raises(InputError, match=rf"model\.{option} multiplies as often as its images need.*model\.{name} "):
        duration(config, built(), 5)


@pytest.mark.parametrize(
    ("brought", "given"), [({"gradient": "implicit"}, {}), ({}, {"kwargs": {"gradient": "implicit"}})]
)
def test_a_gradient_that_comes_with_the_weights_or_as_a_further_argument_has_no_budget_either(brought, given):
    model, name = built(**brought, **given), "model.kwargs.gradient" if given else "model.gradient"
    with pytest.raises(InputError, match=rf"and {name} implicit multiplies as often.*or {name} unroll$"):
        duration(TrainConfig(budget="1T", model=ModelConfig(**given)), model, 5)
    segmenter = replace(model, name="segmenter", args={"backbone": model.name, "backbone_args": model.args})
    assert segmenter.model_args == model.args


def test_a_run_that_was_begun_with_a_budget_of_open_cost_goes_on():
    config = TrainConfig(model=ModelConfig(gradient="implicit"), budget="1T")
    assert duration(config, built(), 4, begun=True).steps > 4


def test_what_comes_with_the_weights_is_named_as_uncounted():
    model = built(correction_penalty=0.1, gradient="neumann")
    said = duration(TrainConfig(budget="1T"), model, 5).summary
    assert said.endswith("; not counted is what model.correction_penalty, model.gradient neumann adds")
    unrolled = TrainConfig(budget="1T", model=ModelConfig(gradient="unroll"))
    assert duration(unrolled, model, 5).summary.endswith("; not counted is what model.correction_penalty adds")


def test_what_a_step_multiplies_beyond_three_forwards_is_named():
    model = {"jacobian_penalty": 0.1, "gradient": "recompute"}
    config = TrainConfig(budget="1T", model=ModelConfig(**model), grad_checkpointing=True)
    named = "model.jacobian_penalty, model.gradient recompute, grad_checkpointing"
    assert duration(config, built(), 5).summary.endswith(f"; not counted is what {named} adds")
    assert "not counted" not in duration(TrainConfig(budget="1T"), built(), 5).summary


@pytest.mark.parametrize("length", [["--budget", "0.0007T"], ["--steps", "50"]])
@pytest.mark.usefixtures("undrawn")
def test_a_warm_up_longer_than_the_run_is_shortened(tmp_path, length):
    words = ["train", *TINY, *length, "--schedule.warmup_epochs", "70", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        epochs = len(list(csv.DictReader(file)))
    assert 1 < epochs < 40 and f"warmup_epochs: {epochs - 1}\n" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_run_ends_at_its_budget_in_the_middle_of_an_epoch_with_the_rate_at_zero(tmp_path, capsys):
    flags = [*TINY, "--schedule.sched", "linear", "--schedule.min_lr", "0", "--schedule.warmup_share", "0.1"]
    assert main(["train", *flags, "--budget", "0.0007T", "--out", str(tmp_path / "run")]) == 0
    told = re.search(r"budget 0\.0007T: (\d+) steps, (\S+) epochs", capsys.readouterr().err)
    steps, epochs = int(told[1]), float(told[2])
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert epochs % 1 and len(rows) == int(epochs) + 1
    assert int(rows[-1]["step"]) == steps
    assert float(rows[-1]["lr"]) == 0.0 and float(rows[-2]["lr"]) > 0
    assert f"epochs: {len(rows)}\nbudget: 0.0007T" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--budget", "1T", "--epochs=3"], "--epochs is 3 and --budget is 1T"),
        (["--steps=5", "--epochs", "3"], "--epochs is 3 and --steps is 5"),
        (["--steps", "5", "--budget", "1T"], "--budget is 1T and --steps is 5"),
        (
            ["--schedule.warmup_epochs", "1", "--schedule.warmup_share", "0.1"],
            "--schedule.warmup_epochs is 1 and --schedule.warmup_share is 0.1",
        ),
    ],
)
def test_flags_that_say_the_duration_twice_are_refused_and_none_is_taken_in_silence(flags, named):
    with pytest.raises(InputError, match=f"{re.escape(named)}.*leave one of them out"):
        expand_config_flags(["--data.name", "digits", *flags])


def test_a_flag_wins_over_the_same_thing_in_a_runs_own_configuration_where_all_is_spelled_out(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 3\nbudget: 1T\n")
    words = expand_config_flags(["--config", str(tmp_path / "config.yaml"), "--epochs", "2"])
    assert build_config(parse(train_parser(), words)).budget is None
