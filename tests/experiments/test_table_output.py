"""What a page shows and says, of results made by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from imixer.experiments.complexity import ModelComplexity
from imixer.experiments.data_sets import DatasetLocation
from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.experiment_result import ExperimentResult, RowResult, TrialRun, judge_page
from imixer.experiments.index_page import write_index
from imixer.experiments.paper import PaperAccuracy
from imixer.experiments.scales import SCALES
from imixer.experiments.sentences import describe, row_name, summarise
from imixer.experiments.table_output import count_tests, present
from imixer.experiments.trained_contraction import TrainedContraction, measure_contraction, worst_contraction
from imixer.sweep.results import TrialOutcome
from imixer.training.run.config import TrainConfig


def trial(seed, accuracy, contraction=None, seconds=10.0):
    outcome = TrialOutcome("finished", 12, accuracy / 100, 0.5, 9, accuracy / 100 + 0.01, seconds)
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
        "Differences on this page: 4; larger 1, smaller 1, equivalent within the margin 1, undecided 1"
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


def test_a_page_shows_figures_with_what_was_read_off_them(tmp_path):
    figure = replace(result(BASE, figure="norms"), folder=tmp_path)
    figure = replace(figure, experiment=replace(figure.experiment, name="fig5", title="Figure 5"))
    assert "## Figure 5\n\nNot drawn" in write_index([figure], "a command").read_text()
    (tmp_path / "fig5.png").touch()
    assert "![Figure 5](fig5.png)" in write_index([figure], "a command").read_text()
    (tmp_path / "fig5.md").write_text("# Figure 5\n\n![Figure 5](fig5.png)\n\n## Verdicts\n")
    page = write_index([figure], "a command").read_text()
    assert "\n## Figure 5\n" in page and "\n### Verdicts\n" in page and page.count("![Figure 5]") == 1
