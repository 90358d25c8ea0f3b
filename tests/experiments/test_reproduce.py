"""From the command to the files: what is trained, skipped, shared, missing, interrupted and refused."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from rich.console import Console

from imixer.cli import main
from imixer.errors import InputError
from imixer.experiments.ablations import LEGACY, TIED
from imixer.experiments.data_sets import DatasetLocation, locate_dataset
from imixer.experiments.paper import PAPER_TABLE_1, PAPER_TABLE_4
from imixer.experiments.registry import EXPERIMENTS
from imixer.experiments.reproduce import reproduce
from imixer.experiments.scales import SCALES
from imixer.experiments.trained_contraction import TrainedContraction
from imixer.training.run.parsing import load_config

HERE = Path("reproduced/smoke")


def facts(name, folder=HERE):
    return json.loads((folder / f"{name}.json").read_text())


def rows(name, folder=HERE):
    return {row["name"]: row for row in facts(name, folder)["rows"]}


def models():
    return {path: path.stat().st_mtime_ns for path in Path().rglob("model.safetensors")}


def texts(name, folder=HERE):
    return {suffix: (folder / f"{name}.{suffix}").read_bytes() for suffix in ("md", "tex", "csv", "json")}


@pytest.fixture
def pretend(monkeypatch):
    """Let trials take no time: `accuracy(name)` gives their result, or raises, and the calls are listed."""

    def install(accuracy=lambda name: 0.5):
        def train(config):
            run = Path(config.out)
            name = "/".join(run.parts[-3:])
            calls.append(name)
            run.mkdir()
            result = accuracy(name)
            (run / "metrics.csv").write_text(f"epoch,val_acc,val_loss,seconds\n{config.epochs},{result},1.5,2.5\n")
            environment = {"run": name, "python": "3", "torch": "2", "timm": "1", "imixer": "0", "commit": "abc"}
            (run / "environment.json").write_text(json.dumps(environment | {"gpus": [], "cores": 2, "cpu": "some CPU"}))
            (run / "model").mkdir()
            (run / "model" / "model.safetensors").touch()

        calls = []
        monkeypatch.setattr("imixer.training.train.train", train)
        measured = TrainedContraction(0.9, 0.5, 1.0, 0.01, "guaranteed")
        monkeypatch.setattr("imixer.experiments.reproduce.measure_contraction", lambda path: measured)
        return calls

    return install


def test_an_experiment_end_to_end_and_again(capsys, tiny):
    assert main(["reproduce", "tied"]) == 0
    shown = capsys.readouterr()
    found = facts("tied")
    assert (found["experiment"], found["scale"], found["trials"]) == ("tied", "smoke", 2)
    assert found["data"]["digits"]["training"] == 1437
    for part in (
        "Scale smoke",
        "digits (1,437 training and 360 held-out images)",
        "8x8 pixels",
        "2 epochs",
        "2 trials",
    ):
        for text in (shown.out, texts("tied")["md"].decode(), found["conditions"]):
            assert part in text
        assert part.replace("_", r"\_") in texts("tied")["tex"].decode()
    own = rows("tied")
    assert own["imixer"]["paper"] == asdict(PAPER_TABLE_1["imixer", "S"])
    for name, row in own.items():
        assert [run["status"] for run in row["runs"]] == ["finished", "finished"]
        accuracies, best = [], []
        for run in row["runs"]:
            with open(Path(run["path"], "metrics.csv"), newline="") as file:
                epochs = [100 * float(epoch["val_acc"]) for epoch in csv.DictReader(file)]
            accuracies.append(epochs[-1])
            best.append(max(epochs))
            assert (run["top1"], run["best_top1"]) == pytest.approx((epochs[-1], max(epochs)))
            assert run["best_epoch"] == 1 + epochs.index(max(epochs))
            assert run["seconds"] > 0
            config = load_config(Path(run["path"], "config.yaml"))
            assert (config.seed, bool(config.model.tied)) == (run["seed"], name == "tied")
        for spread, values in ((row["last"], accuracies), (row["best"], best)):
            assert spread["mean"] == pytest.approx(np.mean(values))
            assert spread["std"] == pytest.approx(np.std(values, ddof=1))
            assert f"{spread['mean']:.2f} ± {spread['std']:.2f}" in texts("tied")["md"].decode()
            assert f"{spread['mean']:.2f} +- {spread['std']:.2f}" in shown.out
        result = json.loads(Path(row["runs"][0]["path"], "result.json").read_text())
        assert row["parameters"] == result["parameters"]
    comparison = own["tied"]["comparison"]
    assert comparison["difference"] == pytest.approx(own["tied"]["last"]["mean"] - own["imixer"]["last"]["mean"])
    assert comparison["test"] == "Welch"  # a matrix less: the seed draws other weights
    with open(HERE / "tied.csv", newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert float(table["tied"]["last_mean"]) == own["tied"]["last"]["mean"]
    assert float(table["tied"]["comparison_low"]) == comparison["low"]
    assert float(table["imixer"]["paper_mean"]) == 88.56
    assert table["tied"]["planned"] == "2"

    before, written = models(), texts("tied")
    for file in HERE.glob("tied.*"):  # killed before they were written
        file.unlink()
    assert main(["reproduce", "tied"]) == 0
    assert (models(), texts("tied")) == (before, written)


def test_rows_asked_for_are_trained_now_and_the_page_has_all(capsys, pretend, tiny):
    calls = pretend()
    assert main(["reproduce", "tied", "--rows", "tied"]) == 0
    assert calls == ["tied/tied/seed-0", "tied/tied/seed-1"]
    assert "tied: 2 of 4 trials to train, " in capsys.readouterr().out
    assert {name: len(row["runs"]) for name, row in rows("tied").items()} == {"imixer": 2, "tied": 2}
    assert {run["status"] for run in rows("tied")["imixer"]["runs"]} == {"waiting"}
    assert main(["reproduce", "tied"]) == 0
    assert calls[2:] == ["tied/imixer/seed-0", "tied/imixer/seed-1"]


def test_without_training_the_page_is_made_of_what_is_finished(capsys, pretend, tiny):
    calls = pretend()
    assert main(["reproduce", "tied", "--train", "false"]) == 0
    assert calls == [] and "0 of 2 (2 waiting)" in texts("tied")["md"].decode()
    assert "to train" not in capsys.readouterr().out
    assert not (HERE / "runs").exists()


def test_without_a_name_experiments_are_listed_with_what_they_cost(capsys, pretend, tiny):
    pretend()
    assert main(["reproduce", "tied", "--rows", "tied"]) == 0
    per_image = [row["multiply_adds"] for row in rows("tied").values()]
    capsys.readouterr()
    assert main(["reproduce", "--scale", "smoke"]) == 0
    shown = capsys.readouterr().out
    (line,) = (line for line in shown.splitlines() if line.startswith(" tied "))
    cost = f"{3 * sum(per_image) * 2 * 1437 * 2 / 1e9:.1f} G"  # two trials of two epochs
    assert re.sub(" +", " ", line).split("them ")[1].startswith(f"2 2 of 4 {cost} ")
    assert "left out: cifar100: cifar100 is not part of the scale smoke" in shown
    assert all(f" {name} " in shown for name in ("table1", "fig7", "robustness"))


def test_what_another_experiment_has_finished_is_linked(pretend, tiny):
    calls = pretend()
    assert main(["reproduce", "tied"]) == 0
    assert main(["reproduce", "legacy", "--trials", "3"]) == 0
    assert sorted(calls[4:]) == ["legacy/imixer/seed-2", *(f"legacy/legacy/seed-{seed}" for seed in range(3))]
    linked = Path("reproduced/smoke/runs/legacy/imixer/seed-0")
    assert linked.is_symlink() and not Path(os.readlink(linked)).is_absolute()
    assert [run["status"] for run in rows("legacy")["imixer"]["runs"]] == ["finished"] * 3
    assert "finished" in Path("reproduced/smoke/runs/legacy/results.csv").read_text()
    # the other way round, and when what was linked is gone
    assert main(["reproduce", "tied", "--trials", "3"]) == 0
    assert len(calls) == 9 and calls[-1] == "tied/tied/seed-2"
    shutil.rmtree("reproduced/smoke/runs/tied")
    assert main(["reproduce", "legacy", "--trials", "3"]) == 0
    assert sorted(calls[9:]) == ["legacy/imixer/seed-0", "legacy/imixer/seed-1"]
    # elsewhere, nothing is shared
    assert main(["reproduce", "tied", "--out", "other"]) == 0
    assert len(calls) == 15


def test_a_link_to_a_run_that_is_no_longer_whole_is_trained(pretend, tiny):
    calls = pretend()
    assert main(["reproduce", "tied"]) == 0
    assert main(["reproduce", "legacy"]) == 0
    with Path("reproduced/smoke/runs/tied/imixer/seed-0/metrics.csv").open("a") as file:
        file.write("a damaged line\n")
    before = len(calls)
    assert main(["reproduce", "legacy"]) == 0
    assert calls[before:] == ["legacy/imixer/seed-0"]
    assert [run["status"] for run in rows("legacy")["imixer"]["runs"]] == ["finished"] * 2


def test_other_settings_are_not_shared(pretend, tiny, monkeypatch):
    calls = pretend()
    assert main(["reproduce", "tied"]) == 0
    monkeypatch.setitem(SCALES, "smoke", replace(tiny, overrides=tiny.overrides | {"epochs": 3}))
    assert main(["reproduce", "legacy"]) == 0
    assert len(calls) == 8


def test_trials_that_fail_or_are_missing_are_said(capsys, pretend, tiny):
    def accuracy(name):
        if name == "tied/tied/seed-1":
            raise InputError("training diverged: lower optim.lr")
        return 0.25 + 0.125 * ("seed-1" in name)

    pretend(accuracy)
    assert main(["reproduce", "tied"]) == 1
    row = rows("tied")["tied"]
    assert [run["status"] for run in row["runs"]] == ["finished", "failed"]
    assert (row["last"], row["finished"]) == ({"mean": 25.0, "std": None}, 1)
    comparison = row["comparison"]
    assert (comparison["difference"], comparison["verdict"]) == (-6.25, "undecided")
    assert [comparison[name] for name in ("low", "high", "p", "p_corrected", "detectable")] == [None] * 5
    for text in (capsys.readouterr().out, texts("tied")["md"].decode()):
        assert "1 of 2 (1 failed)" in text
        assert "training diverged: lower optim.lr" in text and "seed-1" in text
    # and they get another chance
    pretend()
    assert main(["reproduce", "tied"]) == 0
    assert rows("tied")["tied"]["finished"] == 2


def test_an_interruption_presents_what_there_is(capsys, pretend, tiny):
    def accuracy(name):
        if name == "tied/imixer/seed-1":
            raise KeyboardInterrupt
        return 0.5

    pretend(accuracy)
    assert main(["reproduce", "tied"]) == 130
    assert "with 2 of 4 trials finished; the same command goes on" in capsys.readouterr().err
    assert {name: row["finished"] for name, row in rows("tied").items()} == {"imixer": 1, "tied": 1}
    assert "1 of 2 (1 unfinished)" in texts("tied")["md"].decode()
    assert "1 of 2 (1 waiting)" in texts("tied")["md"].decode()
    calls = pretend()
    assert main(["reproduce", "tied"]) == 0
    assert len(calls) == 2


@pytest.fixture
def tabulated():
    """Leave the experiments that need no trained model and no other scale, and put the others back in their order."""
    with mock.patch.dict(EXPERIMENTS):
        for name in [name for name, each in EXPERIMENTS.items() if not each.tabulated or each.scale]:
            del EXPERIMENTS[name]
        yield


@pytest.mark.usefixtures("tabulated")
def test_all_is_every_experiment_and_trains_nothing_twice(capsys, pretend, tiny):
    calls = pretend()
    assert main(["reproduce", "all", "--trials", "1"]) == 0
    planned = sum(len(row["runs"]) for name in EXPERIMENTS for row in rows(name).values())
    assert len(set(calls)) == len(calls) < planned
    assert all(row["finished"] == len(row["runs"]) for name in EXPERIMENTS for row in rows(name).values())
    shown = " ".join(capsys.readouterr().out.split())
    assert all(EXPERIMENTS[name].title in shown for name in EXPERIMENTS)
    assert {path.name for path in HERE.iterdir()} == {
        "runs",
        "index.md",
        *(f"{name}.{suffix}" for name in EXPERIMENTS for suffix in ("md", "tex", "csv", "json")),
    }


def test_data_sets_that_are_not_there_are_not_run(capsys, pretend, tiny):
    calls = pretend()
    assert main(["reproduce", "table4"]) == 0
    assert sorted(calls) == [f"table4/{model}-digits/seed-{seed}" for model in ("imixer", "mixer") for seed in (0, 1)]
    for text in (capsys.readouterr().out, texts("table4")["md"].decode()):
        for data in ("cifar100", "stanford", "food101", "imagenet"):
            assert "not run: " + data in text
    row = rows("table4")["mixer-imagenet"]
    assert (row["last"], row["runs"], row["parameters"]) == (None, [], None)
    assert row["paper"] == asdict(PAPER_TABLE_4["imagenet", "mixer"])
    assert "| imagenet | Mixer | not run |  | 73.91 |" in texts("table4")["md"].decode()


def test_a_page_of_finished_runs_is_not_overwritten_where_their_data_are_missing(capsys, pretend, tiny, monkeypatch):
    pretend()
    assert main(["reproduce", "tied", "--out", "mine"]) == 0
    before = texts("tied", Path("mine"))
    absent = DatasetLocation("digits", {}, missing="digits is not in away")
    there = locate_dataset("digits", None)
    monkeypatch.setitem(
        EXPERIMENTS, "tied", replace(TIED, rows=lambda scale: [replace(row, data="gone") for row in TIED.rows(scale)])
    )
    monkeypatch.setattr(
        "imixer.experiments.reproduce._find", lambda name, scale, folder: absent if name == "gone" else there
    )
    capsys.readouterr()
    assert main(["reproduce", "legacy", "tied", "--out", "mine"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "mine/runs/tied has runs whose data are not there: digits is not in away" in line
    assert texts("tied", Path("mine")) == before


def test_one_data_set_of_several_is_enough(pretend, tiny, monkeypatch):
    monkeypatch.setitem(SCALES, "smoke", replace(tiny, table4_data=("digits", "food101")))
    calls = pretend()
    Path("sets").mkdir()
    assert main(["reproduce", "table4", "--data_dir", "sets"]) == 0
    assert len(calls) == 4
    assert "food101 is not in sets" in facts("table4")["data"]["food101"]["missing"]


def test_an_experiment_with_a_figure_is_drawn_instead_of_tabulated(pretend, tiny, monkeypatch):
    seen = []
    monkeypatch.setitem(EXPERIMENTS, "fig", replace(TIED, name="fig", figure="norms"))
    monkeypatch.setattr("imixer.experiments.reproduce.draw_figure", lambda found, console, image: seen.append(found))
    pretend()
    assert main(["reproduce", "fig"]) == 0
    (found,) = seen
    assert [run.path for row in found.rows for run in row.finished] == [
        HERE / "runs" / "fig" / cell / f"seed-{seed}" for cell in ("imixer", "tied") for seed in (0, 1)
    ]
    assert found.folder == HERE


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["table5"], ["table5", "table1"]),
        (["tied", "--rows", "teid"], ["no row 'teid'", "imixer, tied"]),
        (["tied", "--rows", "tied", "--train", "false"], ["rows is tied", "train is false"]),
        (["--rows", "tied"], ["rows is ['tied']", "no experiment is named"]),
        (["--margin", "1"], ["margin is 1", "no experiment is named"]),
        (
            ["laptop", "--data", "cifar100"],
            ["cifar10 is not part of", "laptop with data cifar100; leave data out"],
        ),
        (["--gpus", "2"], ["gpus is 2", "no experiment is named"]),
        (["tied", "--train", "false", "--executor", "ray"], ["executor is ray", "train is false"]),
        (["tied", "--train", "false", "--executor", "ray", "--cpus", "2"], ["cpus is 2", "train is false"]),
        (["--executor", "ray"], ["executor is ray", "no experiment is named"]),
        (["--train", "false"], ["train is False", "no experiment is named"]),
        (["--image", "taken"], ["image is taken", "no experiment is named"]),
        (["--trials", "0"], ["trials is 0"]),
        (["table1", "fig9"], ["fig9", "fig7"]),
        (["tied", "--scale", "huge"], ["huge", "smoke"]),
        (["tied", "--trials", "0"], ["trials is 0"]),
        (["tied", "--trials", "few"], ["trials is 'few'", "a whole number"]),
        (["tied", "--cpus", "2"], ["cpus is given", "--executor ray"]),
        (["table1", "--scale", "cpu"], ["cifar10 is not in data", "--data_dir"]),
        (["table1", "--scale", "cpu", "--data_dir", "nowhere"], ["data_dir is nowhere"]),
        (["table1", "--data", "cifra10"], ["data is 'cifra10'", "did you mean cifar10", "imagenet", "--data_dir"]),
        (["table1", "--data", "taken"], ["data is 'taken'", "--data_dir"]),
        (["table1", "--data", "food101"], ["food101 is not in data"]),
        (["table4", "--data", "cifar100"], ["table4 has data sets of its own"]),
        (["tied", "--margin", "0"], ["margin is 0"]),
        (["fig3", "fig7", "--margin", "1"], ["margin is 1", "fig3 and fig7 have no use", "compare nothing"]),
        (["tied", "--margin", "-0.5"], ["margin is -0.5", "above 0"]),
        (["tied", "--margin", ".inf"], ["margin is inf"]),
        (["tied", "--margin", "nan"], ["margin is 'nan'", "give a number"]),
        (["table4", "--scale", "paper"], ["cifar100 is not in data", "imagenet is not in data"]),
        (["tied", "--out", "taken"], ["taken"]),
        (["tied", "--lr", "3"], ["unknown option --lr"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, pretend, words, parts):
    pretend()
    Path("taken").touch()
    assert main(["reproduce", *words]) == 2
    shown = capsys.readouterr()
    line = shown.err.splitlines()[-1]
    assert line.startswith("imixer: ") and all(part in line for part in parts), line
    assert shown.out == ""
    assert [path.name for path in Path().iterdir()] == ["taken"]


def test_fewer_trials_or_another_scale_do_not_overwrite(capsys, pretend, tiny, monkeypatch):
    pretend()
    assert main(["reproduce", "tied"]) == 0
    before = texts("tied")
    assert main(["reproduce", "tied", "--trials", "1"]) == 2
    assert "it has seed 1, and this one has not" in capsys.readouterr().err
    monkeypatch.setitem(SCALES, "smoke", replace(tiny, overrides=tiny.overrides | {"epochs": 3}))
    assert main(["reproduce", "tied"]) == 2
    assert "epochs of cell imixer is 2 there and 3 here" in capsys.readouterr().err
    assert texts("tied") == before


def test_help_is_free_of_torch():
    code = "import sys, imixer.cli as c; c.main(['reproduce', '--help']); print([m for m in %s if m in sys.modules])"
    heavy = ["torch", "timm", "lightning", "matplotlib", "numpy", "scipy"]
    done = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    shown = " ".join(done.stdout.split())
    for word in (*EXPERIMENTS, *SCALES, "all"):
        assert f"`{word}`" in shown
    assert LEGACY.title in shown


def test_another_data_set_is_asked_the_same(capsys, pretend, tiny, monkeypatch):
    opened = []

    def find(name, folder):
        opened.append((name, folder))
        return DatasetLocation(name, {"data.name": f"{folder}/{name}"}, "", 40_000, 10_000, 3, 100)

    monkeypatch.setattr("imixer.experiments.reproduce.locate_dataset", find)
    calls = pretend()
    assert main(["reproduce", "table2", "--data", "cifar100", "--data_dir", "sets", "--trials", "1"]) == 0
    assert opened == [("cifar100", "sets")] and len(calls) == 12
    folder = Path("reproduced/smoke-cifar100")
    assert "cifar100 (40,000 training and 10,000 held-out images)" in facts("table2", folder)["conditions"]
    found = rows("table2", folder)
    # what the paper has on CIFAR-100 is its S with h_r = 2, n = 2, in Table 4
    assert {name: row["paper"] and row["paper"]["mean"] for name, row in found.items() if row["paper"]} == {
        "h_r=2-n=2": 68.26
    }
    assert {row["config"]["data"]["name"] for row in found.values()} == {"sets/cifar100"}


def test_a_row_may_have_fewer_trials_than_the_others(capsys, pretend, tiny, monkeypatch):
    monkeypatch.setitem(SCALES, "smoke", replace(tiny, table4_data=("digits", "imagenet"), trials=3))
    found = DatasetLocation("imagenet", {"data.name": "imagenet"}, "", 1000, 100, 3, 1000)
    monkeypatch.setattr(
        "imixer.experiments.reproduce.locate_dataset",
        lambda name, folder: found if name == "imagenet" else locate_dataset(name),
    )
    calls = pretend()
    assert main(["reproduce", "table4"]) == 0
    assert sorted(call for call in calls if "imagenet" in call) == [
        "table4/imixer-imagenet/seed-0",
        "table4/mixer-imagenet/seed-0",
    ]
    assert len(calls) == 8
    for text in (capsys.readouterr().out, texts("table4")["md"].decode()):
        assert "3 trials per row, of imagenet 1" in text
    row = rows("table4")["mixer-imagenet"]
    assert (row["finished"], len(row["runs"]), row["comparison"]["p"]) == (1, 1, None)
    # unless the command says so
    assert main(["reproduce", "table4", "--trials", "3"]) == 0
    assert len(rows("table4")["mixer-imagenet"]["runs"]) == 3


def test_a_margin_of_ones_own_decides_what_is_equivalent(pretend, tiny):
    pretend(lambda name: 0.5 + 0.01 * ("seed-1" in name) + 0.001 * ("legacy/legacy" in name and "seed-1" in name))
    assert main(["reproduce", "legacy", "--trials", "2"]) == 0
    assert (facts("legacy")["margin"], rows("legacy")["legacy"]["comparison"]["verdict"]) == (0.5, "undecided")
    assert main(["reproduce", "legacy", "--trials", "2", "--margin", "2"]) == 0
    comparison = rows("legacy")["legacy"]["comparison"]
    assert (comparison["margin"], comparison["verdict"], comparison["test"]) == (2.0, "equivalent", "paired")
    md, tex, csv_text, kept = (text.decode() for text in texts("legacy").values())
    (in_md,) = (line for line in md.splitlines() if line.startswith("| per iteration |") and " paired " in line)
    assert in_md.strip("| ").split(" | ")[-1] == "equivalent within 2"
    (in_tex,) = (line for line in tex.splitlines() if line.startswith("per iteration &") and " paired " in line)
    assert in_tex.removesuffix(r" \\").split(" & ")[-1] == "equivalent within 2"
    in_csv = {row["name"]: row for row in csv.DictReader(io.StringIO(csv_text))}["legacy"]
    assert (in_csv["comparison_margin"], in_csv["comparison_verdict"]) == ("2.0", "equivalent")
    shown = [row for table in json.loads(kept)["shown"]["tables"] for row in table["rows"]]
    assert [row[-1] for row in shown if "paired" in row] == ["equivalent within 2"]
    assert "per iteration: equivalent to per forward within 2 points" in md


def test_what_reports_show_of_an_experiment_speaks_of_its_own_tests(pretend, tiny):
    pretend(lambda name: 0.5 + 0.01 * int(name[-1]) + 0.002 * ("legacy/legacy" in name) * int(name[-1]))
    assert main(["reproduce", "legacy", "--trials", "3"]) == 0
    shown = facts("legacy")["shown"]
    assert shown["sentences"][0].startswith("Differences of this experiment: 1;")
    assert any("corrected by Holm for the 1 test of this experiment" in note for note in shown["notes"])


def test_an_experiment_that_trains_nothing_refuses_options_of_training(capsys):
    for flag, value in (("--executor", "ray"), ("--data_dir", "somewhere")):
        assert main(["reproduce", "anomaly", flag, value]) == 2
        assert f"{flag[2:]} is {value}, and anomaly trains nothing; leave it out" in capsys.readouterr().err


def test_several_experiments_make_a_page_that_is_corrected_for_all_of_them(pretend, tiny, monkeypatch):
    def accuracy(name):
        seed, row = int(name[-1]), name.split("/")[1]
        noise = {"silu": 0.02, "tanh": -0.03, "softplus": 0.05}.get(row, 0.002)
        return 0.5 + 0.01 * seed + (row != "imixer") * noise * (seed - 1) + 0.05 * (row in ("tied", "relu"))

    pretend(accuracy)
    some = [EXPERIMENTS[name] for name in ("activations", "tied")]
    console = Console(file=io.StringIO())
    reproduce(some, tiny, console, trials=3)
    page = (HERE / "index.md").read_text()
    assert page.startswith("# The paper's tables and figures at the scale smoke\n")
    assert "`imixer reproduce activations tied --scale smoke --trials 3`; 2 cores of some CPU; python 3" in page
    assert [line for line in page.splitlines() if line.startswith("## ")] == [f"## {each.title}" for each in some] + [
        "## How to read the tables"
    ]
    assert "corrected by Holm for the 5 tests in the tables of this page" in page
    assert page.count("corrected by Holm") == 1 and page.count("ran on") == 0
    assert "relu: larger than gelu (+5.00 points" in page
    alone = rows("activations")["relu"]["comparison"]
    assert alone["p_corrected"] == pytest.approx(4 * alone["p"])
    shown = re.search(r"\| relu \|.*?\| paired \| ([^|]*) \|", page)
    assert shown[1] == f"{5 * alone['p']:.3f}" != f"{4 * alone['p']:.3f}"


def test_segmentations_are_compared_by_their_mean_iou_and_the_paper_has_no_column(capsys, monkeypatch):
    def train(config):
        run = Path(config.out)
        run.mkdir()
        miou = {"imixer": 0.8, "mixer": 0.7, "unet": 0.6}[run.parent.name] + config.seed / 100
        lines = f"1,0.9,{miou + 0.05},1.5,2.5\n2,0.95,{miou},1.5,2.5\n"
        (run / "metrics.csv").write_text(f"epoch,val_acc,val_miou,val_loss,seconds\n{lines}")
        environment = {"run": "a", "python": "3", "torch": "2", "timm": "1", "imixer": "0", "commit": "abc"}
        (run / "environment.json").write_text(json.dumps(environment | {"gpus": [], "cores": 2, "cpu": "some CPU"}))
        (run / "model").mkdir()
        (run / "model" / "model.safetensors").touch()

    monkeypatch.setattr("imixer.training.train.train", train)
    assert main(["reproduce", "segmentation", "--trials", "2"]) == 0
    out = capsys.readouterr().out
    found = rows("segmentation", Path("reproduced/scenes"))
    assert found["mixer"]["last"]["mean"] == pytest.approx(70.5) and found["mixer"]["best"]["mean"] == pytest.approx(
        75.5
    )
    assert found["mixer"]["comparison"]["difference"] == pytest.approx(-10)
    assert found["unet"]["runs"][1]["miou"] == pytest.approx(61) and "top1" not in found["unet"]["runs"][1]
    assert "last epoch, best epoch: mIoU on the held-out images" in out
    assert "scenes (4,000 training and 500 held-out images)" in out and "paper %" not in out
