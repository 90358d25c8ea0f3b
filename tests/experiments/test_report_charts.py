"""What the report shows, of runs made by hand: each number on its axis and in its column."""

import json
from pathlib import Path

import pytest

from imixer.experiments.report import charts
from imixer.experiments.report.collect import (
    IterationCurves,
    ReportedExperiment,
    ReportedRun,
    ReportedTable,
    differing_settings,
)
from imixer.experiments.report.html_report import _experiment, _sections
from imixer.experiments.report.page import Chart, Fold, HtmlTable

SETTINGS = {"model.name": "imixer_t2_8", "data.name": "digits", "seed": 3, "epochs": 4, "schedule.cooldown_epochs": 1}


def made_run(name, *epochs, **parts):
    """A run of which each epoch is training loss, validation loss, accuracy."""
    rows = [
        {"epoch": epoch, "train_loss": train, "val_loss": loss, "val_acc": acc, "images_per_s": 1234.5, "seconds": 60.0}
        for epoch, (train, loss, acc) in enumerate(epochs, 1)
    ]
    empty = dict(
        convergence=[],
        result={},
        evaluation={},
        test_evaluation={},
        iterations=[],
        anomaly_data="",
        anomalies={},
        energy=[],
        pictures=[],
    )
    known = dict(settings=SETTINGS, environment={"torch": "2"}, classes=None, test_classes=None, rows=rows)
    return ReportedRun(name, Path("runs", name), **known | empty | parts)


TWO = (
    made_run("one", (2.0, 1.5, 0.25), (1.0, 0.5, 0.75)),
    made_run("two", (3.0, 2.5, 0.125), settings=SETTINGS | {"seed": 5}, result={"parameters": 4321, "device": "cpu"}),
)


def panels(figure):
    """The lines of each panel by its title: name, x and y."""
    titles = [title.text for title in figure.layout.annotations]
    axes = list(dict.fromkeys(line.xaxis for line in figure.data))
    return {
        title: [(line.name, list(line.x), list(line.y)) for line in figure.data if line.xaxis == axis]
        for title, axis in zip(titles, axes, strict=True)
    }


def test_learning_curves_have_a_panel_per_metric_and_a_line_per_run():
    figure = charts.learning_curves(TWO)
    assert panels(figure) == {
        "training loss": [("one", [1, 2], [2.0, 1.0]), ("two", [1], [3.0])],
        "validation loss": [("one", [1, 2], [1.5, 0.5]), ("two", [1], [2.5])],
        "validation accuracy": [("one", [1, 2], [0.25, 0.75]), ("two", [1], [0.125])],
    }
    one, two = (line.line for line in figure.data if line.xaxis == "x")
    assert one.color != two.color and one.dash != two.dash
    assert (figure.layout.yaxis3.tickformat, figure.layout.yaxis.tickformat) == (".0%", None)
    # what the page gets is the same
    drawn = json.loads(Chart("losses", "curves", figure).json)["data"]
    assert [line["y"] for line in drawn if line["name"] == "two"] == [[3.0], [2.5], [0.125]]


def test_convergence_has_a_line_per_block():
    rows = [
        {"epoch": epoch, "block": block, "residual": 0.1 * epoch, "sigma": 10.0 + block, "bound": 0.5 + block + epoch}
        for epoch in (1, 2)
        for block in (0, 1)
    ]
    figure = charts.convergence_by_epoch(made_run("one", (2.0, 1.5, 0.25), convergence=rows))
    assert panels(figure) == {
        "residual": [("block 0", [1, 2], [0.1, 0.2]), ("block 1", [1, 2], [0.1, 0.2])],
        "spectral norm": [("block 0", [1, 2], [10.0, 10.0]), ("block 1", [1, 2], [11.0, 11.0])],
        "Lipschitz bound": [("block 0", [1, 2], [1.5, 2.5]), ("block 1", [1, 2], [2.5, 3.5])],
    }
    assert (figure.layout.yaxis.type, figure.layout.yaxis2.type) == ("log", None)


def test_iterations_have_norm_and_cosine_with_their_deviations():
    def measured(means, std):
        return [{"mean": mean, "std": std, "min": 0.0, "max": 9.0} for mean in means]

    blocks = [
        {"block": 3, "norm": measured([1.0, 0.5], 0.01), "cosine": measured([0.25, 0.75], 0.02)},
        {"block": 4, "norm": measured([2.0, 1.5], 0.03), "cosine": measured([0.375, 0.875], 0.04)},
    ]
    figure = charts.iteration_steps(blocks)
    assert {title: [(name, y) for name, _, y in lines] for title, lines in panels(figure).items()} == {
        "Norm<sub>a</sub>": [("block 3", [1.0, 0.5]), ("block 4", [2.0, 1.5])],
        "cos<sub>a</sub>": [("block 3", [0.25, 0.75]), ("block 4", [0.375, 0.875])],
    }
    assert [list(line.error_y.array) for line in figure.data] == [[0.01] * 2, [0.02] * 2, [0.03] * 2, [0.04] * 2]
    assert [[round(x) for x in line.x] for line in figure.data] == [[0, 1]] * 4
    assert (figure.layout.yaxis.type, figure.layout.yaxis2.type) == ("log", None)


def test_models_are_compared_in_the_panel_of_their_block_and_measure():
    def measured(*means):
        return [{"mean": mean, "min": mean - 0.5, "max": mean + 0.25} for mean in means]

    def model(name, n, shift):
        blocks = [
            {"norm": measured(1 + shift, 2 + shift), "cosine": measured(3 + shift, 4 + shift)},
            {"norm": measured(5 + shift, 6 + shift), "cosine": measured(7 + shift, 8 + shift)},
        ]
        return {"name": name, "trained_n_iter": n, "blocks": blocks}

    shown = [{"block": 0, "measure": "cosine"}, {"block": 1, "measure": "norm"}]
    figure = charts.compared_iterations(IterationCurves([model("a", 1, 0), model("b", 0, 10)], shown))
    assert panels(figure) == {
        "iMLP-0: cos<sub>a</sub>": [("a", [0, 1], [3, 4]), ("b", [0, 1], [13, 14])],
        "iMLP-1: Norm<sub>a</sub>": [("a", [0, 1], [5, 6]), ("b", [0, 1], [15, 16])],
    }
    assert list(map(list, figure.data[0].customdata)) == [[2.5, 3.25], [3.5, 4.25]]
    assert list(figure.data[0].marker.symbol) == ["circle", "diamond"]


def test_energies_and_asymmetries_stand_in_their_panels():
    steps = [
        {
            "block": block,
            "mixing": mixing,
            "change": {"mean": -1.0 - block - shift, "std": 0.5 + shift},
            "verdict": "observed",
            "share_falling": 0.75,
            "asymmetry": {"W": 0.25 + shift / 100, "V": 0.5 + shift / 100},
        }
        for block in (0, 1)
        for mixing, shift in (("tokens", 0), ("channels", 10))
    ]
    figure = charts.energy_changes(steps)
    left, right = panels(figure).values()
    assert left == [("mixing of tokens", [0, 1], [-1.0, -2.0]), ("mixing of channels", [0, 1], [-11.0, -12.0])]
    assert right == [
        ("tokens, W", [0, 1], [0.25] * 2),
        ("tokens, V", [0, 1], [0.5] * 2),
        ("channels, W", [0, 1], [0.35] * 2),
        ("channels, V", [0, 1], [0.6] * 2),
    ]
    tokens, channels = (line for line in figure.data if line.mode == "markers")
    assert (list(tokens.error_y.array), list(channels.error_y.array)) == ([0.5] * 2, [10.5] * 2)
    assert list(tokens.customdata[0]) == [0.5, "observed", 0.75]
    (independent,) = figure.layout.shapes  # couplings drawn independently
    assert independent.y0 == independent.y1 == pytest.approx(0.5**0.5)


def test_every_synapse_of_a_deep_network_has_its_line():
    asymmetry = dict.fromkeys("ABCDEFG", 0.5)
    common = {"block": 0, "change": {"mean": -1.0, "std": 0.0}, "verdict": "observed", "share_falling": 1}
    steps = [{**common, "mixing": mixing, "asymmetry": asymmetry} for mixing in ("tokens", "channels")]
    _, right = panels(charts.energy_changes(steps)).values()
    assert [name for name, *_ in right] == [
        f"{mixing}, {name}" for mixing in ("tokens", "channels") for name in "ABCDEFG"
    ]


def test_a_confusion_matrix_has_true_classes_down_and_predicted_ones_across():
    figure = charts.confusion_matrix(["cat", "dog"], [[3, 1], [0, 0]])
    (matrix,) = figure.data
    assert (list(matrix.x), list(matrix.y)) == (["cat", "dog"], ["cat", "dog"])
    assert [list(row) for row in matrix.z] == [[0.75, 0.25], [0.0, 0.0]]
    assert [list(row) for row in matrix.text] == [[3, 1], ["", ""]]
    assert (figure.layout.yaxis.title.text, figure.layout.xaxis.title.text) == ("true class", "predicted class")
    assert figure.layout.yaxis.autorange == "reversed"


def test_classes_have_their_accuracies():
    scores = [{"name": "cat", "accuracy": 0.5, "images": 4}, {"name": "dog", "accuracy": 1.0, "images": 2}]
    (bars,) = charts.class_accuracies(scores).data
    assert (list(bars.x), list(bars.y), list(bars.customdata)) == (["cat", "dog"], [0.5, 1.0], [4, 2])


def sections(runs, experiments=()):
    return {section.title: section.items for section in _sections(list(experiments), list(runs)) if section.items}


def test_the_summary_has_each_number_in_its_column():
    table, unfinished = sections(TWO)["Summary"]
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert rows[0] == {
        "run": "one",
        "accuracy": "75.00%",
        "best epoch": "75.00% (2)",
        "model": "imixer_t2_8",
        "data": "digits",
        "loss": "0.5000",
        "epochs": "2 of 5",
        "images/s": "1,234",
        "time": "60 s",
        "seed": "3",
        "parameters": "-",
        "device": "-",
    }
    assert (rows[1]["parameters"], rows[1]["device"], rows[1]["seed"]) == ("4,321", "cpu", "5")
    assert (table.text, unfinished.text) == (1, "Not finished, with the numbers of their last epoch: one.")


def test_the_summary_begins_with_what_one_wants_to_know():
    fell = made_run("one", (2.0, 1.5, 0.75), (1.0, 0.5, 0.25), test_evaluation={"top1": 0.125})
    table, _ = sections([fell, *TWO])["Summary"]
    assert list(table.header[:4]) == ["run", "accuracy", "best epoch", "test set"] and table.cards
    assert [row[:4] for row in table.rows[:2]] == [
        ["one", "25.00%", "75.00% (1)", "12.50%"],
        ["one", "75.00%", "75.00% (2)", "-"],
    ]


def test_the_confusion_of_a_test_set_stands_beside_that_of_the_held_out_images():
    names, counts = ["cat", "dog"], [[3, 1], [0, 2]]
    shown = made_run(
        "one",
        classes=(names, counts),
        test_classes=(names, [[1, 0], [1, 0]]),
        test_evaluation={"data": "t/", "top1": 0.5},
    )
    _, held_out, tested = sections([shown])["Classes"]
    assert [chart.caption for chart in (held_out, tested)] == [
        "Held-out images of each class, and what they were taken for",
        "Images of the test set t/ of each class, and what they were taken for",
    ]
    assert [list(row) for row in tested.figure.data[0].customdata] == [[1, 0], [1, 0]]


def test_settings_that_differ_stand_under_the_run_that_has_them():
    assert differing_settings(TWO) == [("seed", [3, 5])]
    table, *folds = sections(TWO)["Settings"]
    assert (table.header, table.rows) == (["setting", "one", "two"], [["seed", "3", "5"]])
    assert [fold.summary for fold in folds] == ["All settings of one", "All settings of two"]
    (environment,) = sections(TWO)["Environment"]
    assert environment == Fold("Versions and hardware of one, two", '{\n  "torch": "2"\n}')


def test_scores_are_told_of_the_images_they_are_of():
    classes = [{"name": "cat", "accuracy": 0.5, "images": 4}]
    held_out = {"top1": 0.5, "images": 4, "per_class": classes}
    test_set = {"top1": 0.25, "images": 1000, "per_class": classes, "data": "tests/"}
    heading, first, second = sections([made_run("one", evaluation=held_out, test_evaluation=test_set)])["Classes"]
    assert heading.text == "one"
    assert first.caption == "50.00% of 4 images are recognised: the held-out images, by class"
    assert second.caption == "25.00% of 1,000 images are recognised: the test set tests/, by class"


def test_tables_of_experiments_are_shown_as_they_were_printed():
    table = ReportedTable("Results", ["size", "top-1 %"], [["S", "88.08 +- 0.51"]], 1)
    shown = _experiment(
        ReportedExperiment("table1", "Table 1", "Scale smoke", [table], ["larger by +- 1"], ["a note"]), 0
    )
    conditions, sentence, items, notes = shown
    assert (conditions.text, sentence.text, notes.lines) == ("Scale smoke", "larger by ± 1.", ["a note"])
    assert items == HtmlTable("Table 1: results", ["size", "top-1 %"], [["S", "88.08 ± 0.51"]], 1)
