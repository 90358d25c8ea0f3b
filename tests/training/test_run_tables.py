"""What `imixer runs` and `imixer show` say of runs that are whole, stopped, being trained and damaged."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from filelock import FileLock

from imixer.cli import main
from imixer.cli.terminal import new_console
from imixer.console import PlainConsole
from imixer.training.run.directory import RunDirectory
from imixer.training.run.summary import RunSummary, summarize
from imixer.training.run_tables import runs_grid, show_run, show_runs

ROWS = (
    {"epoch": 1.0, "val_acc": 0.75, "val_loss": 1.5, "seconds": 3.0},
    {"epoch": 2.0, "val_acc": 0.5, "val_loss": 2.5, "seconds": 6.0},
)


def made(name, state="finished", rows=ROWS, **parts):
    known = dict(problem="", data="cats", model="m", epochs=3, parameters=7, device="CPU", changed=datetime(2026, 2, 3))
    return RunSummary(run=RunDirectory(Path("runs") / name), state=state, rows=rows, **known | parts)


def test_each_number_stands_in_its_column():
    grid = runs_grid([made("a"), made("b", "damaged", (), epochs=None, data="", model="")])
    first, second = (dict(zip(grid.header, row, strict=True)) for row in grid.rows)
    assert first == {
        "run": "a",
        "state": "finished",
        "data": "cats",
        "model": "m",
        "accuracy": "50.00%",
        "best epoch": "75.00% (1)",
        "epochs": "2 of 3",
        "date": "2026-02-03 00:00",
    }
    assert (second["state"], second["accuracy"], second["epochs"], second["data"]) == ("damaged", "-", "0", "-")


def shown_at(width, show, *args):
    console = PlainConsole(file=io.StringIO(), width=width)
    show(*args, console)
    return console.file.getvalue().splitlines()


def test_a_narrow_terminal_shows_whole_names_line_below_line():
    names = [f"digits-imixer_n2_8-00{number}" for number in (1, 2, 3)]
    _, header, *rows = shown_at(80, show_runs, [made(name, "training", model="imixer_n2_8") for name in names])
    assert all(len(line) <= 80 for line in rows)
    assert "".join(row[: header.index("state")].strip() for row in rows) == "".join(names)


def test_a_pipe_has_whole_lines(capsys):
    name = "n" * 200
    show_runs([made(name), made("b")], new_console())
    assert any(line.split()[:2] == [name, "finished"] for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("width", [40, 400])
def test_the_title_of_a_run_has_both_ends_of_its_path(tmp_path, width):
    path = tmp_path / ("n" * 100 + "-002")
    path.mkdir()
    title, *_ = shown_at(width, show_run, replace(made("a"), run=RunDirectory(path)))
    assert "-002 ─" in title and len(title) <= width


@pytest.fixture
def folder(run, tmp_path):
    """Runs in all states; the deeper one lies in a sweep's folder."""
    for name in ("whole", "sweep/stopped", "lost", "torn", "no config"):
        shutil.copytree(run, tmp_path / name)
    shutil.rmtree(tmp_path / "sweep" / "stopped" / "model")
    (tmp_path / "sweep" / "stopped" / "result.json").unlink()
    (tmp_path / "lost" / "result.json").unlink()
    (tmp_path / "torn" / "model" / "model.safetensors").write_bytes(b"torn")
    (tmp_path / "no config" / "config.yaml").unlink()
    return tmp_path


def test_runs_in_all_states_are_listed(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert main(["runs", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "5 runs: 3 damaged, 1 unfinished, 1 finished" in shown
    for name, file in (("lost", "result.json"), ("torn", "model.safetensors"), ("no config", "config.yaml")):
        assert any(f"{folder / name} is damaged: " in line and file in line for line in shown.splitlines())
    assert f"imixer train --resume {folder / 'sweep' / 'stopped'}" in shown
    assert sorted(folder.rglob("*")) == before


def test_a_run_that_is_being_trained_is_told_as_such(folder):
    stopped = folder / "sweep" / "stopped"
    assert summarize(stopped).state == "unfinished"
    with FileLock(stopped / ".lock"):
        assert summarize(stopped).state == "training"
    assert summarize(stopped).state == "unfinished"
    with FileLock(stopped / ".lock", timeout=0):  # which looking at it leaves free
        pass


def test_runs_may_be_sorted_by_accuracy(folder, capsys):
    for name, accuracy in (("sweep/stopped", 0.25), ("whole", 0.75)):
        file = folder / name / "metrics.csv"
        header, *rows = file.read_text().splitlines()
        cells = rows[-1].split(",")
        cells[header.split(",").index("val_acc")] = str(accuracy)
        file.write_text("\n".join([header, *rows[:-1], ",".join(cells)]) + "\n")
    for order, upwards in (("name", True), ("accuracy", False)):
        assert main(["runs", str(folder), "--sort", order]) == 0
        lines = capsys.readouterr().out.splitlines()
        places = [next(i for i, line in enumerate(lines) if text in line) for text in ("25.00%", "75.00%")]
        assert (places[0] < places[1]) == upwards


def test_show_tells_all_of_a_run(folder, capsys):
    assert main(["evaluate", str(folder / "whole")]) == 0
    capsys.readouterr()
    assert main(["show", str(folder / "whole")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    result = json.loads((folder / "whole" / "result.json").read_text())
    assert f"{result['last']['val_acc']:.2%} of the held-out images after epoch 2" in shown
    assert f"{result['best']['val_acc']:.2%} after epoch {result['best']['epoch']}" in shown
    assert f"{result['parameters']:,} parameters" in shown and "360 images of digits (evaluation.json)" in shown
    for part in ("model.num_blocks 1", "state finished", "metrics.csv"):
        assert part in shown
    for name, state in (("sweep/stopped", "unfinished"), ("torn", "damaged: "), ("no config", "damaged: ")):
        assert main(["show", str(folder / name)]) == 0
        assert f"state {state}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["runs", "nowhere"], ["no folder nowhere"]),
        (["runs", "empty"], ["empty holds no run"]),
        (["runs", "file"], ["no folder file"]),
        (["runs", "x" * 5000], ["xxx"]),
        (["runs", ".", "--sort", "size"], ["sort"]),
        (["show", "nowhere"], ["no folder nowhere"]),
        (["show", "sweep"], ["folder of runs", "imixer runs sweep"]),
    ],
)
def test_what_is_no_run_is_refused_in_a_line(tmp_path, monkeypatch, capsys, words, parts):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "sweep" / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "sweep" / "a" / "config.yaml").write_text("epochs: 1")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    *_, line = captured.err.splitlines()
    assert line.startswith("imixer: ") and captured.out == "" and all(part in line for part in parts)


def test_listing_runs_needs_no_torch(run):
    code = "import sys; from imixer.cli import main; main(['runs', sys.argv[1]]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True).returncode == 0
