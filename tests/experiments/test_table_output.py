"""What a page shows and says, of results made by hand."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from imixer.experiments.complexity import ModelComplexity
from imixer.experiments.data_sets import DatasetLocation
from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.experiment_result import ExperimentResult, RowResult, TrialRun, judge_page
from imixer.experiments.index_page import write_index
from imixer.experiments.paper import PaperAccuracy
from imixer.experiments.scales import SCALES
from imixer.experiments.sentences import _CONTRACTION, describe, row_name, summarise
from imixer.experiments.table_output import count_tests, present, write_tables
from imixer.experiments.trained_contraction import _SEVERITY, TrainedContraction, measure_contraction, worst_contraction
from imixer.sweep.results import TrialOutcome
from imixer.training.run.config import TrainConfig
from imixer.verdict import Verdict


def trial(seed, accuracy, contraction=None, seconds=10.0):
    score, best = accuracy / 100, accuracy / 100 + 0.01
    outcome = TrialOutcome("finished", 12, 12, score, 0.5, 9, best, seconds, score=score, best_score=best)
    return TrialRun(seed, Path(f"run-{seed}"), outcome, contraction)


def row_result(name, accuracies, baseline="base", paper=None, drawn=(), contraction=None, seconds=10.0):
    row = Row(name, {"model": name, "n": "2"}, {}, "digits", None if name == baseline else baseline, paper)
    runs = tuple(trial(seed, accuracy, contraction, seconds) for seed, accuracy in enumerate(accuracies))
    return RowResult(row, TrainConfig(), ModelComplexity(1234, 5_000_000, drawn), runs)


def result(*lines, **experiment):
    data = {"digits": DatasetLocation("digits", {}, "", 1437, 360, 1, 10)}
    about = Experiment("some", "Some rows", "the base", lambda scale: [], **experiment)
    return ExperimentResult(about, SCALES["smoke"], 4, 0.5, data, lines, Path("."))


BASE = row_result("base", [80.0, 82.0, 84.0, 81.0], paper=PaperAccuracy(88.0, 0.5))


@pytest.fixture(autouse=True)
def no_machine(monkeypatch):
    monkeypatch.setattr(ExperimentResult, "environments", [])


def shown(found):
    judgements = judge_page([found])
    return present(found, judgements[0], count_tests(judgements))


def cells(found, table, row):
    _, grid = shown(found).tables[table]
    return dict(zip(grid.header, next(each for each in grid.rows if each[0] == row), strict=True))


def test_the_paper_has_columns_where_it_has_numbers():
    bare = replace(BASE, row=replace(BASE.row, paper=None))
    other = row_result("other", [82.1, 84.0, 86.0, 82.9])
    page = shown(result(bare, other))
    assert not any("paper" in title for _, grid in page.tables for title in grid.header)
    assert not any("paper" in line for line in page.legend)
    page = shown(result(BASE, other))
    assert [[title for title in grid.header if "paper" in title] for _, grid in page.tables] == [["paper %"], ["paper"]]


@pytest.mark.parametrize(
    ("models", "words"), [(None, SCALES["smoke"].summary), ("three blocks of nothing", "three blocks of nothing")]
)
def test_a_page_tells_the_models_that_were_trained(models, words):
    assert shown(result(BASE, models=models)).conditions.endswith(f"; {words}")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TrainConfig(epochs=7), "7 epochs"),
        (TrainConfig(budget="0.5P"), "0.5P multiply-adds"),
        (TrainConfig(steps=1200), "1,200 steps"),
        (TrainConfig(choose=["steps"], minutes=3.0), "3 minutes"),
    ],
)
def test_a_page_tells_how_long_the_models_were_trained(config, words):
    assert f"; {words}; " in shown(result(replace(BASE, config=config))).conditions


def test_trials_in_different_precisions_are_told(monkeypatch):
    about = {"gpus": [], "cores": 2, "cpu": "X", "python": "3", "torch": "2", "timm": "1", "imixer": "0", "commit": "c"}
    several = [about | {"precision": precision} for precision in ("bf16", "32")]
    monkeypatch.setattr(ExperimentResult, "environments", several)
    lines = shown(result(BASE)).remarks
    assert "trials differ in precision: bf16 and 32, which round otherwise" in lines
    assert [line.rpartition("; ")[2] for line in lines if line.startswith("ran on")] == [
        "precision bf16",
        "precision 32",
    ]
    monkeypatch.setattr(ExperimentResult, "environments", [about])  # as runs of before are
    assert not any("precision" in line for line in shown(result(BASE)).remarks)


def test_what_a_resumed_run_went_on_with_is_told_once(monkeypatch):
    about = {"gpus": [], "cores": 2, "cpu": "X", "python": "3", "torch": "2", "timm": "1", "imixer": "0", "commit": "c"}
    several = [about | {"resumed": [{"step": step, "commit": "d", "cpu": "Y"}]} for step in (3, 5)]
    several.append(about | {"resumed": [{"step": 5}]})
    monkeypatch.setattr(ExperimentResult, "environments", several)
    first, second = [line for line in shown(result(BASE)).remarks if line.startswith("ran on")]
    assert first.endswith(", commit c; resumed with commit d, cpu Y")
    assert second.endswith(", commit c; resumed, and what it was begun with is lost")


def test_a_paired_difference_of_fewer_seeds_than_the_means_beside_it_says_of_how_many():
    found = result(BASE, row_result("other", [82.1, 84.0]))
    assert cells(found, 1, "other")["test"] == "paired, 2 seeds"
    assert cells(found, 1, "other")["difference"] == "+2.05"  # and not of the means, which is 1.30
    assert "of paired rows over the seeds that both have" in " ".join(shown(found).legend)


def test_each_number_stands_in_its_column():
    other = row_result("other", [82.1, 84.0, 86.0, 82.9], paper=PaperAccuracy(88.6, 0.3))
    found = result(BASE, other)
    assert cells(found, 0, "other") == {
        "model": "other",
        "n": "2",
        "last epoch %": "83.75 +- 1.69",
        "best epoch %": "84.75 +- 1.69",
        "paper %": "88.60 +- 0.30",
        "trials": "4",
        "parameters": "1,234",
        "mult-adds": "5.00 M",
    }
    # differences 2.1, 2, 2, 1.9: mean 2, std 0.0816, error 0.0408, t = 49; t(0.975; 3) = 3.182, tail by t's density
    assert cells(found, 1, "other") == {
        "model": "other",
        "n": "2",
        "difference": "+2.00",
        "95% interval": "[1.87, 2.13]",
        "test": "paired",
        "p": "< 0.001",
        "detectable": "0.17",
        "paper": "+0.60",
        "verdict": "larger",
    }


def test_rows_that_cannot_share_weights_are_not_paired():
    other = row_result("other", [82.1, 84.0, 86.0, 82.9], drawn=(("weight", (3, 4)),))
    assert cells(result(BASE, other), 1, "other")["test"] == "Welch"
    legend = " ".join(shown(result(BASE, other)).legend)
    assert "Welch: " in legend and "paired: " not in legend


def test_sentences_follow_from_the_verdicts():
    larger = row_result("larger", [82.1, 84.0, 86.0, 82.9], paper=PaperAccuracy(88.6, 0.3))
    smaller = row_result("smaller", [78.1, 80.0, 82.0, 78.9])
    same = row_result("same", [80.01, 82.0, 84.0, 80.98])
    open_ = row_result("open", [85.0, 80.0, 84.0, 81.0])
    found = result(BASE, larger, smaller, same, open_)
    judgements = judge_page([found])
    assert summarise(judgements) == (
        "Differences in the tables of this page: 4; larger 1, smaller 1, equivalent within the margin 1, undecided 1"
    )
    first, second, third, fourth = describe(found, judgements[0])
    assert first.startswith(
        "larger, n = 2: larger than base, n = 2 (+2.00 points, 95% interval [1.87, 2.13], corrected p "
    )
    assert first.endswith("the paper's means differ by +0.60")
    assert second.startswith("smaller, n = 2: smaller than base, n = 2 (-2.00 points")
    assert third.startswith("same, n = 2: equivalent to base, n = 2 within 0.5 points")
    assert fourth.startswith("Undecided against the base: open, n = 2. Neither a difference nor its absence is shown")
    assert "trials could have seen a difference of" in fourth


@pytest.mark.parametrize("values", [[85.0, 80.0, 84.0, 81.0], [80.0, 82.5, 84.0, 81.0], [90.0], []])
def test_no_page_claims_what_its_interval_does_not_show(values):
    found = result(BASE, row_result("other", values))
    for sentence in describe(found, judge_page([found])[0]):
        assert not any(word in sentence for word in ("larger than", "smaller than", "equivalent", "no difference"))


def test_a_row_is_named_by_what_sets_it_apart():
    assert row_name(RowResult(Row("a", {"size": "S", "model": "Mixer"}, {}, "digits"))) == "S, Mixer"
    assert row_name(RowResult(Row("a", {"h_r": "0.25", "n": "4"}, {}, "digits"))) == "h_r = 0.25, n = 4"


def test_contraction_and_time_are_columns_where_an_experiment_asks():
    good = TrainedContraction(0.97, 0.5, 1.0, 0.012, "guaranteed")
    bad = TrainedContraction(float("inf"), 3.25, 0.25, 1.7, "violated")
    base = row_result("base", [80.0, 81.0], contraction=good)
    found = result(
        base, row_result("wild", [70.0, 71.0], contraction=bad, seconds=15.0), show_contraction=True, show_time=True
    )
    expected = {"bound": "-", "norm": "3.25", "residual": "170 %", "inverse": "violated, 25% found", "time": "1.50"}
    assert cells(found, 0, "wild").items() >= expected.items()
    expected = {"bound": "0.97", "norm": "0.5", "residual": "1.2 %", "inverse": "guaranteed", "time": "1.00"}
    assert cells(found, 0, "base").items() >= expected.items()
    said = " | ".join(describe(found, {}))
    assert "contraction for any input, by its bound (largest Jacobian norm 0.5): base, n = 2" in said
    assert "In at least one block F is no contraction" in said and "norm 3.2): wild, n = 2" in said


def test_the_worst_of_several_runs_counts():
    worst = worst_contraction(
        [TrainedContraction(0.9, 0.5, 1.0, 0.1, "guaranteed"), TrainedContraction(1.1, 0.4, 0.5, 0.2, "observed")]
    )
    assert worst == TrainedContraction(1.1, 0.5, 0.5, 0.2, "observed")
    assert worst_contraction([]) is None
    lost = TrainedContraction(1.1, 0.9, 0.5, 0.3, "undecided")
    assert worst_contraction([worst, lost]).verdict == "undecided"
    assert worst_contraction([lost, replace(lost, verdict="violated")]).verdict == "violated"
    assert {*get_args(Verdict)} == {*_SEVERITY} == {*_CONTRACTION}


def test_the_contraction_of_a_run_is_measured_once(run, tmp_path):
    run_copy = tmp_path / "run"
    shutil.copytree(run, run_copy)
    first = measure_contraction(run_copy)
    assert first.verdict in ("observed", "violated") and 0 < first.norm and 0 < first.residual < 1
    assert first.bound == pytest.approx((0.9 * 1.1289) ** 2, rel=0.01) or first.bound < 1.03
    file = run_copy / "analysis" / "trained_contraction.json"
    numbers = json.loads(file.read_text())
    assert numbers["images"] == 16 and numbers["norm"] == first.norm
    file.write_text(json.dumps(numbers | {"norm": None}))
    assert measure_contraction(run_copy) == replace(first, norm=float("inf"))
    file.write_text(json.dumps({name: value for name, value in numbers.items() if name != "measurement"}))
    assert measure_contraction(run_copy) == first  # of an earlier version: measured again
    assert json.loads(file.read_text()) == numbers


def test_a_page_shows_figures_with_what_was_read_off_them(tmp_path):
    figure = replace(result(BASE, figure="norms"), folder=tmp_path)
    figure = replace(figure, experiment=replace(figure.experiment, name="fig5", title="Figure 5"))
    assert "## Figure 5\n\nNot drawn" in write_index([figure], "a command").read_text()
    (tmp_path / "fig5.png").touch()
    assert "![Figure 5](fig5.png)" in write_index([figure], "a command").read_text()
    (tmp_path / "fig5.md").write_text("# Figure 5\n\n![Figure 5](fig5.png)\n\n## Verdicts\n")
    page = write_index([figure], "a command").read_text()
    assert "\n## Figure 5\n" in page and "\n### Verdicts\n" in page and page.count("![Figure 5]") == 1


@pytest.fixture
def written(tmp_path):
    """The files and the screen of three rows: a baseline, one that is larger, one whose data are missing."""
    contraction = TrainedContraction(0.97, 0.5, 0.75, 0.012, "observed")
    other = row_result("other", [82.1, 84.0, 86.0, 82.9], paper=PaperAccuracy(88.6, 0.3), contraction=contraction)
    absent = RowResult(Row("absent", {"model": "absent", "n": "4"}, {}, "imagenet", "base", PaperAccuracy(70.0)))
    found = replace(result(BASE, other, absent, show_contraction=True), folder=tmp_path)
    console = Console(file=io.StringIO(), width=400)
    write_tables(found, console)
    return tmp_path, console.file.getvalue()


def test_the_csv_file_has_each_number_in_its_column(written):
    folder, _ = written
    with (folder / "some.csv").open(newline="") as file:
        base, other, absent = csv.DictReader(file)
    assert list(other) == [
        *("model", "n", "name", "data", "last_mean", "last_std", "best_mean", "best_std", "finished"),
        *("paper_mean", "paper_spread", "paper_difference", "baseline", "comparison_difference", "comparison_low"),
        *("comparison_high", "comparison_test", "comparison_pairs", "comparison_p", "comparison_p_corrected"),
        *("comparison_p_equivalence_corrected", "comparison_detectable", "comparison_margin", "comparison_verdict"),
        *("comparison_within_margin", "contraction_bound", "contraction_norm", "contraction_found"),
        *("contraction_residual", "contraction_verdict", "parameters", "multiply_adds", "planned"),
    ]
    words = {"model": "other", "n": "2", "name": "other", "data": "digits", "baseline": "base"}
    words |= {"comparison_test": "paired", "comparison_verdict": "larger", "comparison_within_margin": "False"}
    words |= {"contraction_verdict": "observed", "finished": "4", "planned": "4", "comparison_pairs": "4"}
    words |= {"parameters": "1234", "multiply_adds": "5000000"}
    assert other.items() >= words.items()
    # differences 2.1, 2, 2, 1.9: error 0.0408, t(0.975; 3) = 3.1824; a margin of 0.5 lies t = -36.7 errors away
    numbers = {
        "last_mean": 83.75,
        "last_std": 1.6902,
        "best_mean": 84.75,
        "best_std": 1.6902,
        "paper_mean": 88.6,
        "paper_spread": 0.3,
        "paper_difference": 0.6,
        "comparison_difference": 2.0,
        "comparison_low": 2 - 3.1824 * 0.040825,
        "comparison_high": 2 + 3.1824 * 0.040825,
        "comparison_margin": 0.5,
        "comparison_p_equivalence_corrected": 1.0,
        "contraction_bound": 0.97,
        "contraction_norm": 0.5,
        "contraction_found": 0.75,
        "contraction_residual": 0.012,
    }
    assert {name: float(other[name]) for name in numbers} == pytest.approx(numbers, rel=1e-4)
    assert float(other["comparison_p"]) == float(other["comparison_p_corrected"]) < 1e-4  # a single test
    assert [base[name] for name in ("baseline", "comparison_low", "contraction_bound")] == [""] * 3
    assert [absent[name] for name in ("last_mean", "parameters", "finished", "planned", "paper_spread")] == [
        *("", "", "0", "0", "")
    ]


def test_the_screen_the_page_and_latex_show_the_same_cells(written):
    folder, shown = written
    results = ["other", "2", "83.75 +- 1.69", "84.75 +- 1.69", "88.60 +- 0.30", "4"]
    results += ["0.97", "0.5", "1.2 %", "observed, 75% found", "1,234", "5.00 M"]
    differences = ["other", "2", "+2.00", "[1.87, 2.13]", "paired", "< 0.001", "0.17", "+0.60", "larger"]
    header = ["model", "n", "last epoch %", "best epoch %", "paper %", "trials"]
    header += ["bound", "norm", "residual", "inverse", "parameters", "mult-adds"]
    tests = ["model", "n", "difference", "95% interval", "test", "p", "detectable", "paper", "verdict"]
    lines = [line.split("  ") for line in shown.splitlines()]
    on_screen = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    page = (folder / "some.md").read_text().replace("\\", "").splitlines()
    in_page = [line.strip("| ").split(" | ") for line in page]
    latex = [line.removesuffix(r" \\").split(" & ") for line in (folder / "some.tex").read_text().splitlines()]
    for cells in (header, results, tests, differences):
        assert cells in on_screen
        assert [cell.replace("+-", "±") for cell in cells] in in_page
        escaped = [cell.replace("+-", r"$\pm$").replace("%", r"\%").replace("<", "$<$") for cell in cells]
        assert escaped in latex
    assert ["absent", "4", "not run", "70.00"] in on_screen


def test_the_json_file_has_every_trial(written):
    folder, _ = written
    facts = json.loads((folder / "some.json").read_text())
    base, other, absent = facts["rows"]
    assert other["runs"][1] == {
        "seed": 1,
        "path": "run-1",
        "status": "finished",
        "epoch": 12,
        "top1": 84.0,
        "best_epoch": 9,
        "best_top1": 85.0,
        "val_loss": 0.5,
        "seconds": 10.0,
        "error": "",
    }
    assert [run["seed"] for run in base["runs"]] == [0, 1, 2, 3] and absent["runs"] == []
    assert other["last"] == {"mean": 83.75, "std": pytest.approx(1.6902, rel=1e-4)}
    assert (facts["trials"], facts["margin"], facts["baseline"]) == (4, 0.5, "the base")
    grids = {grid["caption"]: grid for grid in facts["shown"]["tables"]}
    assert grids["Results"]["rows"][1][2] == "83.75 +- 1.69" and grids["Differences"]["rows"][0][2] == "+2.00"
