"""Sweeps in this process: what is run, skipped, recorded and summed up."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from rich.console import Console

from imixer.cli import main
from imixer.errors import InputError
from imixer.sweep.display import _LiveTable
from imixer.sweep.results import SweepResults
from imixer.sweep.spec import build_sweep, read_sweep
from imixer.sweep.sweep import run_sweep

PLAN = "set: {epochs: 4}\ngrid: {model.n_iter: [1, 2]}\nseeds: 3\n"


def table(file):
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def models():
    return {path: path.stat().st_mtime_ns for path in Path().rglob("model.safetensors")}


@pytest.fixture
def pretend(monkeypatch):
    """Let trials take no time: `figures(name)` gives accuracy and loss, or raises, and the calls are listed."""

    def install(figures=lambda name: (0.5, 1.0)):
        def train(config):
            run = Path(config.out)
            name = "/".join(run.parts[-2:])
            calls.append(name)
            run.mkdir()
            (run / "metrics.csv").write_text("epoch,val_acc,val_loss,seconds\n3,0.1,9,1\n")
            print(f"output of {name}")
            accuracy, loss = figures(name)
            (run / "metrics.csv").write_text(f"epoch,val_acc,val_loss,seconds\n3,0.1,9,1\n4,{accuracy},{loss},2.5\n")
            (run / "model").mkdir()
            (run / "model" / "model.safetensors").touch()

        calls = []
        monkeypatch.setattr("imixer.training.train.train", train)
        return calls

    return install


def test_a_sweep_trains_every_cell_with_every_seed_and_sums_up(capsys, tiny):
    assert main(["sweep", tiny()]) == 0
    rows = table("sweeps/tiny/results.csv")
    assert [(row["cell"], row["model.n_iter"], row["seed"]) for row in rows] == [
        ("n_iter=1", "1", "0"),
        ("n_iter=2", "2", "0"),
        ("n_iter=1", "1", "1"),
        ("n_iter=2", "2", "1"),
    ]
    for row in rows:
        assert row["status"] == "finished"
        run = Path("sweeps/tiny", row["cell"], f"seed-{row['seed']}")
        last = table(run / "metrics.csv")[-1]
        assert [float(row[name]) for name in ("epoch", "val_acc", "val_loss", "seconds")] == [
            float(last[name]) for name in ("epoch", "val_acc", "val_loss", "seconds")
        ]
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert (str(config["seed"]), str(config["model"]["n_iter"])) == (row["seed"], row["model.n_iter"])
    assert len({row["val_loss"] for row in rows}) == 4  # no two trials are the same
    assert yaml.safe_load(Path("sweeps/tiny/spec.yaml").read_text())["grid"] == {"model.n_iter": [1, 2]}
    shown = capsys.readouterr()
    for row in table("sweeps/tiny/summary.csv"):
        own = [float(r["val_acc"]) for r in rows if r["cell"] == row["cell"]]
        assert (row["trials"], row["planned"]) == ("2", "2")
        mean, std = np.mean(own), np.std(own, ddof=1)
        assert float(row["val_acc_mean"]) == pytest.approx(mean, rel=1e-5)
        assert float(row["val_acc_std"]) == pytest.approx(std, rel=1e-5)
        assert f"{mean:.2%}"[:-1] in shown.out and f"+- {std:.2%}"[:-1] in shown.out
    # a trial is what `imixer train` makes of the same settings
    flags = ["--epochs", "2", "--schedule.warmup_epochs", "1", "--model.num_blocks", "1", "--model.embed_dim", "16"]
    assert main(["train", *flags, "--model.n_iter", "2", "--seed", "1", "--out", "alone"]) == 0
    alone = table("alone/metrics.csv")
    timeless = {"seconds", "images_per_s"}
    for ours, other in zip(table("sweeps/tiny/n_iter=2/seed-1/metrics.csv"), alone, strict=True):
        assert {k: v for k, v in ours.items() if k not in timeless} == {
            k: v for k, v in other.items() if k not in timeless
        }


def test_a_second_start_runs_only_what_is_missing(pretend, tiny):
    calls = pretend()
    assert main(["sweep", tiny(PLAN)]) == 0
    assert len(calls) == 6
    before = models()
    assert main(["sweep", tiny(PLAN)]) == 0
    assert len(calls) == 6
    more = PLAN.replace("[1, 2]", "[1, 2, 3]").replace("seeds: 3", "seeds: [0, 1, 2, 7]")
    assert main(["sweep", tiny(more)]) == 0
    assert sorted(calls[6:]) == sorted(
        ["n_iter=3/seed-0", "n_iter=3/seed-1", "n_iter=3/seed-2"] + [f"n_iter={n}/seed-7" for n in (1, 2, 3)]
    )
    after = models()
    assert before.items() <= after.items() and len(after) == 12
    assert len(table("sweeps/tiny/results.csv")) == 12
    assert len(read_sweep("sweeps/tiny/spec.yaml").trials) == 12


def test_a_begun_trial_is_continued_or_else_trained_anew(pretend, tiny, monkeypatch):
    calls = pretend()
    resumed = []

    def resume(path):
        resumed.append(path)
        Path(path, "metrics.csv").write_text("epoch,val_acc,val_loss,seconds\n4,0.5,1,2\n")
        Path(path, "model").mkdir()
        Path(path, "model", "model.safetensors").touch()

    monkeypatch.setattr("imixer.training.train.resume", resume)
    for seed in (0, 1):
        Path(f"sweeps/tiny/n_iter=1/seed-{seed}").mkdir(parents=True)
    Path("sweeps/tiny/n_iter=1/seed-1/config.yaml").touch()  # seed 0 was lost before it had one
    sweep = read_sweep(tiny(PLAN))
    Path("sweeps/tiny/spec.yaml").write_text(yaml.safe_dump(sweep.spec, sort_keys=False))
    assert [trial.name for trial in SweepResults(sweep, Path("sweeps/tiny")).with_status("unfinished")] == [
        "n_iter=1/seed-0",
        "n_iter=1/seed-1",
    ]
    assert main(["sweep", "tiny.yaml"]) == 0
    assert resumed == ["sweeps/tiny/n_iter=1/seed-1"]
    assert "n_iter=1/seed-0" in calls and "n_iter=1/seed-1" not in calls and len(calls) == 5


@pytest.mark.parametrize("kept", ["checkpoints/step-00000001", "model/model.safetensors"])
def test_a_trial_that_lost_its_configuration_alone_is_kept_and_named(capsys, pretend, tiny, kept):
    calls = pretend()
    assert main(["sweep", tiny(PLAN)]) == 0
    run = Path("sweeps/tiny/n_iter=1/seed-0")
    shutil.rmtree(run)
    (run / kept).parent.mkdir(parents=True)
    (run / kept).touch()
    before = len(calls)
    capsys.readouterr()
    assert main(["sweep", "tiny.yaml"]) == 1
    assert (run / kept).exists() and len(calls) == before
    assert "has lost its config.yaml" in " ".join(capsys.readouterr().out.split())


def test_a_loss_that_is_not_finite_spoils_no_summary_and_makes_no_best_epoch(capsys, pretend, tiny):
    pretend(lambda name: (0.9, "nan" if name == "n_iter=1/seed-1" else 1.0))
    assert main(["sweep", tiny(PLAN)]) == 0
    (shown,) = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("n_iter=1 "))
    assert "nan" in shown
    first, second = (row for row in table("sweeps/tiny/results.csv") if row["cell"] == "n_iter=1" and row["seed"] < "2")
    assert (first["best_epoch"], second["best_epoch"], second["best_val_acc"]) == ("4", "3", "0.1")


@pytest.mark.parametrize(
    ("was", "now", "parts"),
    [
        ("epochs: 4", "epochs: 5", ["epochs of cell n_iter=1 is 4 there and 5 here"]),
        ("set: {", "set: {optim.lr: 0.1, ", ["optim.lr of cell n_iter=1 is 0.015 there and 0.1 here"]),
        ("[1, 2]", "[2, 3]", ["it has a cell n_iter=1, and this one has not"]),
        ("seeds: 3", "seeds: 2", ["it has seed 2, and this one has not"]),
    ],
)
def test_another_sweep_does_not_go_into_the_same_folder(capsys, pretend, tiny, was, now, parts):
    calls = pretend()
    assert main(["sweep", tiny(PLAN), "--out", "mine"]) == 0
    before = Path("mine/spec.yaml").read_bytes()
    assert main(["sweep", tiny(PLAN.replace(was, now)), "--out", "mine"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in ["out: mine holds another sweep", *parts, "give another --out"]:
        assert part in line
    assert Path("mine/spec.yaml").read_bytes() == before
    assert len(calls) == 6


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(capsys, pretend, tiny):
    def figures(name):
        if name == "n_iter=1/seed-1":
            raise InputError("training diverged: lower optim.lr")
        if name == "n_iter=2/seed-0":
            raise RuntimeError("CUDA out of\nmemory")
        return 0.5, 1.0

    pretend(figures)
    assert main(["sweep", tiny(PLAN)]) == 1
    rows = {f"{row['cell']}/seed-{row['seed']}": row for row in table("sweeps/tiny/results.csv")}
    assert [row["status"] for row in rows.values()] == ["finished", "failed", "failed", *3 * ["finished"]]
    assert rows["n_iter=1/seed-1"]["error"] == "training diverged: lower optim.lr"
    assert rows["n_iter=1/seed-1"]["epoch"] == "3"
    assert rows["n_iter=2/seed-0"]["error"] == "RuntimeError: CUDA out of memory"
    shown = capsys.readouterr()
    assert "2 of 3" in shown.out
    assert "failed: n_iter=2/seed-0: RuntimeError: CUDA out of memory (sweeps/tiny/n_iter=2/seed-0.log)" in shown.out
    assert "n_iter=1/seed-1: failed, training diverged" in shown.err
    assert "output of" not in shown.out + shown.err
    log = Path("sweeps/tiny/n_iter=2/seed-0.log").read_text()
    assert "output of n_iter=2/seed-0" in log and "Traceback" in log
    assert "Traceback" not in Path("sweeps/tiny/n_iter=1/seed-1.log").read_text()
    # and they get another chance
    pretend()
    assert main(["sweep", "tiny.yaml"]) == 0
    assert {row["status"] for row in table("sweeps/tiny/results.csv")} == {"finished"}
    assert {row["error"] for row in table("sweeps/tiny/results.csv")} == {""}


def test_ctrl_c_says_how_to_go_on(capsys, pretend, tiny):
    def interrupted(name):
        if name == "n_iter=1/seed-1":
            raise KeyboardInterrupt
        return 0.5, 1.0

    pretend(interrupted)
    assert main(["sweep", tiny(PLAN)]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "imixer: interrupted with 2 of 6 trials finished; the same command goes on"
    status = [row["status"] for row in table("sweeps/tiny/results.csv")]
    assert status == ["finished", "finished", "unfinished", "waiting", "waiting", "waiting"]
    assert [row["trials"] for row in table("sweeps/tiny/summary.csv")] == ["1", "1"]
    calls = pretend()
    assert main(["sweep", "tiny.yaml"]) == 0
    assert len(calls) == 4


def test_means_are_over_the_finished_trials_only(pretend):
    found = iter([(0.5, 1.0), (0.25, 2.0), (0.75, 4.0)])
    pretend(lambda name: next(found))
    sweep = build_sweep({"seeds": 4, "set": {"epochs": 4}})
    (cell,) = sweep.cells
    results = run_sweep(sweep, "mine", trials=sweep.trials[:3])
    accuracy, loss = results.mean(cell), results.mean(cell, "val_loss")
    assert (accuracy.trials, accuracy.planned) == (3, 4)
    assert accuracy.mean == pytest.approx(np.mean([0.5, 0.25, 0.75]))
    assert accuracy.std == pytest.approx(np.std([0.5, 0.25, 0.75], ddof=1))
    assert loss.mean == pytest.approx(7 / 3)
    assert results.mean(cell, "seconds").std == 0
    (row,) = table("mine/summary.csv")
    assert (row["trials"], row["planned"]) == ("3", "4")


def test_one_trial_has_no_deviation_and_none_no_mean(capsys, pretend, tiny):
    pretend()
    assert main(["sweep", tiny(PLAN), "--share", "0/6"]) == 0
    first, second = table("sweeps/tiny/summary.csv")
    assert (first["val_acc_mean"], first["val_acc_std"]) == ("0.5", "")
    assert (second["val_acc_mean"], second["val_acc_std"]) == ("", "")
    shown = capsys.readouterr().out
    assert "not finished: 5 of 6 trials" in shown
    assert "50.00 %" in shown and "50.00 +-" not in shown


def test_shares_in_several_processes_make_one_table(pretend, tiny):
    def figures(name):
        if name.startswith("n_iter=2"):
            raise InputError("no")
        return 0.5, 1.0

    calls = pretend(figures)
    tiny(PLAN)
    assert main(["sweep", "tiny.yaml", "--share", "6/7"]) == 0  # a share may be empty
    assert calls == []
    assert main(["sweep", "tiny.yaml", "--share", "1/2"]) == 1
    assert main(["sweep", "tiny.yaml", "--share", "0/2"]) == 0  # its own trials all went well
    assert len(calls) == 6
    status = [row["status"] for row in table("sweeps/tiny/results.csv")]
    assert status == ["finished", "failed"] * 3


@pytest.mark.parametrize("lock", ["seed-1.log", "seed-1/.lock"])
def test_a_trial_that_another_process_trains_is_left_to_it(capsys, pretend, tiny, lock):
    calls = pretend()
    run = Path("sweeps/tiny/n_iter=1/seed-1")
    run.mkdir(parents=True)  # as it is before there is a configuration
    (run / "of_the_other").touch()
    Path("sweeps/tiny/spec.yaml").write_text(yaml.safe_dump(read_sweep(tiny(PLAN)).spec))
    with FileLock(run.parent / lock):
        assert main(["sweep", "tiny.yaml"]) == 0
    assert len(calls) == 5 and "n_iter=1/seed-1" not in calls
    assert (run / "of_the_other").exists() and run.with_name("seed-1.log").read_text() == ""
    assert [row["status"] for row in table("sweeps/tiny/results.csv")].count("unfinished") == 1
    shown = capsys.readouterr()
    assert "n_iter=1/seed-1: another process trains it" in shown.err and "not finished: 1 of 6" in shown.out
    assert main(["sweep", "tiny.yaml"]) == 0  # it was killed
    assert calls[5:] == ["n_iter=1/seed-1"]


def test_a_trial_that_another_process_is_about_to_train_is_left_to_it(capsys, pretend, tiny):
    calls = pretend()
    log = Path("sweeps/tiny/n_iter=1/seed-0.log")
    log.parent.mkdir(parents=True)
    Path("sweeps/tiny/spec.yaml").write_text(yaml.safe_dump(read_sweep(tiny(PLAN)).spec))
    with FileLock(log):
        assert main(["sweep", "tiny.yaml"]) == 0
    assert "n_iter=1/seed-0" not in calls and "n_iter=1/seed-0: another process trains it" in capsys.readouterr().err


def test_a_folder_whose_specification_is_being_written_is_no_folder_of_another(pretend, tiny):
    calls = pretend()
    Path("mine").mkdir()
    Path("mine/.spec.yaml.0123.writing").touch()
    assert main(["sweep", tiny(PLAN), "--out", "mine"]) == 0
    assert len(calls) == 6


def test_a_version_with_other_defaults_does_not_go_on_with_a_sweep(capsys, pretend, tiny, monkeypatch):
    calls = pretend()
    assert main(["sweep", tiny(PLAN), "--out", "mine"]) == 0
    there = json.loads(Path("mine/settings.json").read_text())
    assert there["n_iter=2"]["model.n_iter"] == "2" and there["n_iter=2"]["epochs"] == "4"
    for settings in there.values():
        del settings["optim.betas"]  # an option that has come since
        settings["optim.an_old_one"] = "1"  # or gone
    Path("mine/settings.json").write_text(json.dumps(there))
    assert main(["sweep", "tiny.yaml", "--out", "mine"]) == 0
    there["n_iter=2"]["ema"] = "0.5"
    Path("mine/settings.json").write_text(json.dumps(there))
    assert main(["sweep", "tiny.yaml", "--out", "mine"]) == 2
    assert "holds another sweep: ema of cell n_iter=2 is 0.5 there and None here" in capsys.readouterr().err
    assert len(calls) == 6


def test_half_a_row_of_another_process_is_not_read(pretend):
    sweep = build_sweep({})
    (trial,) = sweep.trials
    run = Path("mine", trial.name)
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("epoch,val_acc,val_loss,seconds\n1,0.5,2,1\n2,0.7")
    outcome = SweepResults(sweep, Path("mine"))[trial]
    assert (outcome.epoch, outcome.val_acc, outcome.status) == (1, 0.5, "unfinished")


def test_a_terminal_gets_a_table_that_fits(pretend):
    pretend()
    sweep = build_sweep({"grid": {"epochs": [4, 5]}, "seeds": 20})
    results = run_sweep(sweep, "mine", trials=sweep.trials[:30])
    results.note(sweep.trials[33], running=True)
    console = Console(file=io.StringIO(), width=80, height=15)
    console.print(_LiveTable(results, console).render())
    lines = console.file.getvalue().splitlines()
    assert len(lines) < 15
    assert "1 running, 9 waiting, 30 finished" in lines[-1]
    assert any("epochs=5" in line and "running" in line for line in lines)


def test_the_best_epoch_is_kept_beside_the_last(pretend, tiny):
    pretend(lambda name: (0.0625, 2.0))  # and 0.1 one epoch before
    assert main(["sweep", tiny()]) == 0
    for row in table("sweeps/tiny/results.csv"):
        assert (row["epoch"], row["val_acc"], row["best_epoch"], row["best_val_acc"]) == ("4", "0.0625", "3", "0.1")
