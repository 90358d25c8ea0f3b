"""What a sweep shows and writes, of trials made by hand: each number in its column."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from imixer.sweep.display import _LiveTable, _TrialLines, report_sweep
from imixer.sweep.results import CellSummary, SweepResults
from imixer.sweep.spec import build_sweep
from imixer.sweep.trial import record_failure
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import save_config

HEADER = "epoch,val_acc,val_loss,seconds\n"


def write_trial(results, trial, *epochs, finished=True, failed=""):
    """Make a run directory of a trial: the epochs' metrics, and weights if it is finished."""
    run = results.folder / trial.name
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text(HEADER + "".join(f"{','.join(map(str, epoch))}\n" for epoch in epochs))
    if finished:
        (run / "model").mkdir()
        (run / "model" / "model.safetensors").touch()
    if failed:
        record_failure(run, failed)


@pytest.fixture
def results(elsewhere):
    """Two cells of three seeds: finished twice, failed; finished once, begun, running."""
    sweep = build_sweep({"set": {"epochs": 7}, "grid": {"model.n_iter": [1, 2]}, "seeds": 3})
    results = SweepResults(sweep, Path("mine"))
    by_name = {trial.name: trial for trial in sweep.trials}
    write_trial(results, by_name["n_iter=1/seed-0"], (6, 0.5, 1.75, 10), (7, 0.25, 1.5, 61))
    write_trial(results, by_name["n_iter=1/seed-1"], (6, 0.75, 0.5, 20), (7, 0.75, 2.5, 3700))
    write_trial(results, by_name["n_iter=1/seed-2"], (3, 0.125, 3.0, 5), finished=False, failed="it diverged")
    write_trial(results, by_name["n_iter=2/seed-0"], (7, 0.875, 0.25, 30))
    write_trial(results, by_name["n_iter=2/seed-1"], (2, 0.0625, 4.0, 2), finished=False)
    results.note(by_name["n_iter=2/seed-2"], running=True)
    return results


def printed(show, width=200):
    console = Console(file=io.StringIO(), width=width)
    show(console)
    return console.file.getvalue().splitlines()


def test_the_summary_has_a_row_per_cell_and_says_what_is_missing(results):
    header, first, second, *lines = printed(lambda console: report_sweep(results, console))
    assert header.split() == ["cell", "trials", "val", "acc", "val", "loss"]
    # mean and standard deviation of 25 % and 75 %, of 1.5 and 2.5
    assert " ".join(first.split()) == "n_iter=1 2 of 3 50.00 +- 35.36 % 2.0000 +- 0.7071"
    assert " ".join(second.split()) == "n_iter=2 1 of 3 87.50 % 0.2500"
    assert lines == [
        "mean +- standard deviation of the sample, over the finished trials",
        "failed: n_iter=1/seed-2: it diverged (mine/n_iter=1/seed-2.log)",
        "not finished: 2 of 6 trials",
        "written: mine/results.csv, mine/summary.csv, and a run directory per trial",
    ]


def test_the_live_table_has_a_row_per_trial(results):
    table = _LiveTable(results, Console(file=io.StringIO(), width=100, height=40)).render()
    columns = {column.header: [str(cell) for cell in column.cells] for column in table.columns}
    assert columns == {
        "cell": ["n_iter=1", "n_iter=2"] * 3,
        "seed": ["0", "0", "1", "1", "2", "2"],
        "status": ["finished", "finished", "finished", "unfinished", "failed", "running"],
        "epoch": ["7/7", "7/7", "7/7", "2/7", "3/7", "0/7"],
        "val acc": ["25.00%", "87.50%", "75.00%", "6.25%", "12.50%", ""],
        "time": ["0:01:01", "0:00:30", "1:01:40", "0:00:02", "0:00:05", ""],
    }
    assert table.caption == "1 running, 1 failed, 1 unfinished, 3 finished"


def test_epochs_of_a_budget_are_those_that_the_run_has_found(elsewhere):
    sweep = build_sweep({"set": {"budget": "1T"}, "seeds": 2})
    results = SweepResults(sweep, Path("mine"))
    begun, waiting = sweep.trials
    write_trial(results, begun, (1, 0.5, 1.0, 2.0), finished=False)
    save_config(replace(begun.cell.config, epochs=9), RunDirectory(Path("mine", begun.name)).config)
    assert (results[begun].epochs, results[waiting].epochs) == (9, None)
    table = _LiveTable(results, Console(file=io.StringIO(), width=100, height=40)).render()
    assert [str(cell) for cell in table.columns[3].cells] == ["1/9", "0/?"]


def test_a_line_tells_what_has_become_of_a_trial(results):
    shown = io.StringIO()
    lines = _TrialLines(results, shown)
    for trial in results.sweep.trials:
        lines.note(trial)
    results.note(results.sweep.trials[3], running=True)
    lines.note(results.sweep.trials[3])
    assert shown.getvalue().splitlines() == [
        "n_iter=1/seed-0: finished, val acc 25.00%, 0:01:01",
        "n_iter=2/seed-0: finished, val acc 87.50%, 0:00:30",
        "n_iter=1/seed-1: finished, val acc 75.00%, 1:01:40",
        "n_iter=2/seed-1: not finished, epoch 2/7",
        "n_iter=1/seed-2: failed, it diverged",
        "n_iter=2/seed-2: begins, see mine/n_iter=2/seed-2.log",
        "n_iter=2/seed-1: goes on after epoch 2, see mine/n_iter=2/seed-1.log",
    ]


def test_the_files_hold_what_the_screen_shows(results):
    results.write()
    assert Path("mine/results.csv").read_text().splitlines() == [
        "cell,model.n_iter,seed,status,epoch,epochs,val_acc,val_loss,best_epoch,best_val_acc,seconds,error",
        "n_iter=1,1,0,finished,7,7,0.25,1.5,6,0.5,61,",
        "n_iter=2,2,0,finished,7,7,0.875,0.25,7,0.875,30,",
        "n_iter=1,1,1,finished,7,7,0.75,2.5,6,0.75,3700,",  # of two best epochs the first
        "n_iter=2,2,1,unfinished,2,7,0.0625,4,2,0.0625,2,",
        "n_iter=1,1,2,failed,3,7,0.125,3,3,0.125,5,it diverged",
        "n_iter=2,2,2,running,0,7,,,0,,,",
    ]
    assert Path("mine/summary.csv").read_text().splitlines() == [
        "cell,model.n_iter,trials,planned,val_acc_mean,val_acc_std",
        "n_iter=1,1,2,3,0.5,0.353553",
        "n_iter=2,2,1,3,0.875,",
    ]


def test_a_cell_is_summed_up_by_any_metric(results):
    (cell, _) = results.sweep.cells
    assert results.mean(cell, "best_val_acc") == CellSummary(2, 3, 0.625, pytest.approx(0.125 * 2**0.5))
    assert results.mean(cell, "seconds").mean == (61 + 3700) / 2
