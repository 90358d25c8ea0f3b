"""Figures are drawn of the runs that the tables have too, and say what can be read off them."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from imixer.analysis.convergence import compare_convergence
from imixer.analysis.convergence_statements import (
    Condition,
    Statement,
    agree,
    first_block,
    first_two_blocks,
    last_block,
    middle_blocks,
)
from imixer.analysis.views.convergence import draw_first_block
from imixer.cli import main
from imixer.escaping import for_markdown
from imixer.experiments.figure_output import _DRAWINGS, _condition_grid, _verdict_grid, draw_figure
from imixer.experiments.registry import EXPERIMENTS, experiments_at
from imixer.experiments.reproduce import reproduce
from imixer.experiments.scales import SCALES
from imixer.training.finished_run import load_run

HERE = Path("reproduced/smoke")
FIGURES = ("fig3", "fig5", "fig6")


def facts(name):
    return json.loads((HERE / f"{name}.json").read_text())


def numbers(found):
    """As JSON has them."""
    return json.loads(json.dumps(found))


def page(name):
    return (HERE / f"{name}.md").read_text()


@pytest.fixture
def deeper(tiny, monkeypatch):
    """Two blocks, so that more can be read off."""
    scale = replace(tiny, overrides=tiny.overrides | {"model.num_blocks": 2})
    monkeypatch.setitem(SCALES, "smoke", scale)
    return scale


def test_three_figures_of_three_models_that_are_trained_once(capsys, deeper, monkeypatch):
    assert main(["reproduce", *FIGURES, "--trials", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    trained = [run for run in HERE.glob("runs/*/*/seed-*") if run.is_dir() and not run.is_symlink()]
    assert sorted(trained) == [HERE / "runs" / "fig3" / f"n={n}" / "seed-0" for n in (1, 2, 4)]
    measured = compare_convergence([load_run(str(run)) for run in sorted(trained)])
    assert "Nothing is compared" not in (HERE / "index.md").read_text()
    for name in FIGURES:
        for suffix in ("png", "pdf", "json", "md"):
            assert (HERE / f"{name}.{suffix}").stat().st_size > 100
            assert f"{name}.{suffix}" in shown
        found = facts(name)
        assert (found["images"], found["n_iter"], found["seed"], found["drawn_seed"]) == (16, 10, 0, 0)
        for model, mine, n in zip(found["models"], measured, (1, 2, 4), strict=True):
            assert (model["name"], model["trained_n_iter"]) == (f"n = {n}", n)
            for block, own in zip(model["blocks"], mine.blocks, strict=True):
                assert [norm["mean"] for norm in block["norm"]] == pytest.approx(own.norms.mean(1).tolist())
                assert [each["mean"] for each in block["cosine"]] == pytest.approx(own.cosines.mean(1).tolist())
        tests = (first_block,) if name == "fig3" else (first_two_blocks, middle_blocks, last_block)
        for statement, test in zip(found["statements"], tests, strict=True):
            expected = test(measured)
            (trial,) = statement["trials"]
            assert trial == numbers({"seed": 0, "verdict": expected.verdict} | asdict(expected))
            assert statement["verdict"] == expected.verdict
            assert f"| {expected.text} | {expected.verdict} | {expected.verdict} |" in page(name)
            assert expected.text in shown and expected.criterion in shown
            for condition in expected.conditions:
                row = f"| {for_markdown(condition.what)} | {condition.asked} | {condition.value:.3g} | "
                row += for_markdown(f"[{condition.low:.3g}, {condition.high:.3g}]") + f" | {condition.verdict} |"
                assert row in page(name)
    assert "it takes 4 blocks, and there are 2" in page("fig5")
    for name in FIGURES:
        assert "held-out fifth of the training images (360 images)" in page(name)
        assert "tensor(" not in page(name) and ("Seed 0" in page(name) or name != "fig3")
        assert "the trial with seed 0" in page(name) and "imixer\\_s\\_ni1" in page(name)
        assert f"]({name}.png)" in page(name)

    def no_ink(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr("imixer.experiments.figure_output.save_print_figure", no_ink)
    (HERE / "fig3.json").unlink()
    assert main(["reproduce", "fig3", "--trials", "1"]) == 0  # results first
    written = capsys.readouterr()
    assert "fig3.png was not drawn (RuntimeError: no ink)" in written.err
    assert facts("fig3")["images"] == 16 and "fig3.png" not in written.out and not (HERE / "fig3.png").exists()


def without(result, row, seed):
    """The result with a trial of one row failed."""
    runs = [
        replace(run, outcome=replace(run.outcome, status="failed")) if run.seed == seed else run
        for run in result.rows[row].runs
    ]
    rows = [replace(each, runs=tuple(runs)) if i == row else each for i, each in enumerate(result.rows)]
    return replace(result, rows=tuple(rows))


def test_verdicts_are_those_of_all_seeds_that_every_row_has_finished_and_the_first_is_drawn(tiny, monkeypatch):
    drawn = []

    def draw(measured):
        drawn.append(measured)
        return draw_first_block(measured)

    monkeypatch.setitem(_DRAWINGS, "first block", draw)
    quiet = Console(file=io.StringIO())
    (result,) = reproduce([EXPERIMENTS["fig3"]], SCALES["smoke"], quiet, trials=2)
    found = facts("fig3")
    (statement,) = found["statements"]
    assert [trial["seed"] for trial in statement["trials"]] == [0, 1]
    assert statement["verdict"] == agree([trial["verdict"] for trial in statement["trials"]])
    assert "| the paper | here | seed 0 | seed 1 |" in page("fig3")
    assert "the trial with seed 0; finished: 2" in page("fig3")
    # a seed that is not finished in every row is left out
    one_seed = without(result, 1, 0)
    draw_figure(one_seed, quiet)
    assert len(drawn) == 2 and not torch.equal(*(measured[0].blocks[0].norms for measured in drawn))
    assert facts("fig3")["drawn_seed"] == 1 and len(facts("fig3")["statements"][0]["trials"]) == 1
    (HERE / "fig3.json").unlink()
    said = Console(file=io.StringIO(), width=200)
    draw_figure(without(one_seed, 2, 1), said)
    assert "not run: no trial of all its rows is finished" in said.file.getvalue()
    assert not (HERE / "fig3.json").exists()


def test_verdicts_and_conditions_stand_in_their_columns():
    def statement(verdict):
        conditions = (
            Condition("rate", "below 1", 0.5, 0.25, 0.875, verdict),
            Condition("norm", "above 2", 3, 2.5, 4, "x"),
        )
        return Statement("Blocks converge.", "a criterion", conditions[: 1 + (verdict == "confirmed")])

    verdicts = _verdict_grid([[statement("not confirmed"), statement("not decidable")]], [3, 7])
    assert verdicts.header == ("the paper", "here", "seed 3", "seed 7")
    assert verdicts.rows == (("Blocks converge.", "not decidable", "not confirmed", "not decidable"),)
    conditions = _condition_grid(statement("confirmed"))
    assert [dict(zip(conditions.header, row, strict=True)) for row in conditions.rows] == [
        {"condition": "rate", "asked": "below 1", "mean": "0.5", "interval": "[0.25, 0.875]", "verdict": "confirmed"},
        {"condition": "norm", "asked": "above 2", "mean": "3", "interval": "[2.5, 4]", "verdict": "x"},
    ]


def test_feature_maps_of_the_first_held_out_image_or_of_any(capsys, tiny):
    assert main(["reproduce", "fig7", "--trials", "1"]) == 0
    assert facts("fig7")["image"] == "held-out 0"
    for suffix in ("png", "pdf", "json", "md"):
        assert (HERE / f"fig7.{suffix}").stat().st_size > 100
    pixels = (HERE / "fig7.png").read_bytes()
    Image.new("RGB", (30, 20), "orange").save("dog.png")
    assert main(["reproduce", "fig7", "--trials", "1", "--image", "dog.png"]) == 0
    assert facts("fig7")["image"] == "dog.png" and (HERE / "fig7.png").read_bytes() != pixels
    shown = capsys.readouterr().out
    for text in (shown, page("fig7").replace("\\", "")):
        assert "image: dog.png" in text and "x^a: the 8 numbers" in text and "H(x^a): what the block" in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["fig7", "--image", "nowhere.png"], ["nowhere.png"]),
        (["fig7", "--image", "."], ["is a folder"]),
        (["all", "--image", "words.txt"], ["words.txt"]),
        (["fig3", "--image", "words.txt"], ["image is words.txt", "fig3 has no use"]),
        (["fig5", "table1", "--image", "words.txt"], ["fig5 and table1 have no use", "fig7"]),
    ],
)
def test_images_that_are_none_or_of_no_use_are_refused_in_one_line(words, parts, capsys):
    Path("words.txt").write_text("no image")
    assert main(["reproduce", *words]) == 2
    shown = capsys.readouterr()
    line = shown.err.splitlines()[-1]
    assert line.startswith("imixer: ") and all(part in line for part in parts), line
    assert [path.name for path in Path().iterdir()] == ["words.txt"]


def test_a_data_set_without_a_test_split_is_refused_in_one_line(capsys):
    for label in ("dark", "light"):
        folder = Path("sets", "cifar10", label)
        folder.mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (number, 0, 200 * (label == "light"))).save(folder / f"{number}.png")
    assert main(["reproduce", "fig3", "--scale", "cpu", "--data_dir", "sets"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imixer: ") and "cifar10 in sets/cifar10 has no test split; add" in line
    assert not Path("reproduced").exists()


def test_names_may_be_several_and_twice(capsys, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr("imixer.experiments.reproduce.reproduce", lambda each, *args, **more: seen.append(each) or [])
    for words in (["fig5", "fig3", "fig5"], ["fig3", "all"]):
        assert main(["reproduce", *words]) == 0
    assert [[each.name for each in names] for names in seen] == [
        ["fig5", "fig3"],
        [each.name for each in experiments_at("smoke")],
    ]


def test_an_experiment_of_one_scale_is_refused_at_another(capsys):
    assert main(["reproduce", "laptop_pieces", "--scale", "smoke"]) == 2
    assert capsys.readouterr().err == "imixer: laptop_pieces has no scale smoke; give --scale laptop\n"
    assert main(["reproduce", "table1", "--scale", "scenes"]) == 2
    assert "table1 has no scale scenes; give --scale smoke or digits or cpu" in capsys.readouterr().err


def test_experiments_of_one_scale_take_it_where_none_is_named(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "imixer.experiments.reproduce.reproduce", lambda each, scale, *args, **more: seen.append(scale.name) or []
    )
    for words in (["segmentation", "segmentation_inverse"], ["laptop"], ["table1"], ["all"]):
        assert main(["reproduce", *words]) == 0
    assert seen == ["scenes", "laptop", "smoke", "smoke"]
    assert main(["reproduce", "segmentation", "table1"]) == 2
    assert "segmentation has no scale smoke; give --scale scenes" in capsys.readouterr().err
