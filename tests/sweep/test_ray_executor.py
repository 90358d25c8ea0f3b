"""Sweeps on Ray, on two workers of this machine."""

import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from imixer.cli import main
from imixer.sweep import ray_executor

pytest.importorskip("ray")

PLAN = """
set: {epochs: 15, schedule.warmup_epochs: 1, model: {num_blocks: 1, embed_dim: 16}}
grid: {optim: {opt: [adamw, sgdd]}}
"""


def workers(log):
    return [int(pid) for pid in re.findall(r"^process (\d+) on", log.read_text(), re.MULTILINE)]


def kill_after_first_epoch(run, killed):
    """Kill the process that trains a run as soon as it can be resumed."""
    deadline = time.monotonic() + 900  # starting a cluster takes long where other tests run
    while time.monotonic() < deadline:
        if any((run / "checkpoints").glob("*")):
            killed.extend(workers(run.with_name(f"{run.name}.log")))
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.01)


def metrics(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]


@pytest.fixture
def one_thread():
    """As many threads here as a trial with one CPU has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_trials_run_side_by_side_and_a_killed_one_goes_on(capfd, tiny, one_thread):
    run, killed = Path("sweeps/tiny/opt=adamw/seed-0"), []
    killer = threading.Thread(target=kill_after_first_epoch, args=(run, killed))
    killer.start()
    code = main(["sweep", tiny(PLAN), "--executor", "ray", "--cpus", "1"])
    killer.join()
    assert code == 1  # no optimizer is called sgdd
    shown = capfd.readouterr()
    first, second = workers(run.with_name("seed-0.log"))
    assert killed == [first] and second != first
    # as if nothing had happened
    flags = ["--epochs", "15", "--schedule.warmup_epochs", "1", "--model.num_blocks", "1", "--model.embed_dim", "16"]
    assert main(["train", *flags, "--optim.opt", "adamw", "--out", "alone"]) == 0
    assert metrics(run) == metrics(Path("alone"))
    with open("sweeps/tiny/results.csv", newline="") as file:
        rows = {f"{row['cell']}/seed-{row['seed']}": row for row in csv.DictReader(file)}
    assert [row["status"] for row in rows.values()] == ["finished", "failed"]
    assert "did you mean sgd" in rows["opt=sgdd/seed-0"]["error"]
    # what Ray and the workers print is not on the screen
    assert "Task" not in shown.out + shown.err and "train loss" not in shown.out + shown.err
    assert re.fullmatch(
        r"loading PyTorch.*\n(opt=\w+/seed-0: (begins, see .*|finished, val acc .*|failed, no optimizer .*)\n){4}",
        shown.err,
    )
    assert "will be retried" in Path("sweeps/tiny/ray.log").read_text()


@pytest.mark.slow
def test_a_trial_waits_until_the_processes_of_a_lost_worker_have_let_go_of_it(tmp_path, monkeypatch):
    held, trained = [True, True, False], []
    monkeypatch.setattr(ray_executor, "is_training", lambda run: held.pop(0))
    monkeypatch.setattr(ray_executor, "run_trial", lambda trial, folder: trained.append(not held))
    monkeypatch.setattr(ray_executor.time, "sleep", lambda seconds: None)
    handler = signal.getsignal(signal.SIGINT)
    try:
        ray_executor._run_trial(SimpleNamespace(name="a"), tmp_path, str(tmp_path), torch.get_num_threads())
    finally:
        signal.signal(signal.SIGINT, handler)
    assert trained == [True]


def test_a_share_that_no_machine_of_a_given_cluster_has_yet_is_told(monkeypatch, caplog):
    caplog.set_level("INFO", logger="imixer")
    monkeypatch.setattr(ray_executor, "_connect", lambda address: None)
    monkeypatch.setattr(ray_executor, "_most", lambda *what: 4.0)
    with ray_executor.RayExecutor(address="head:6379", cpus=64, gpus=1):
        pass
    said = caplog.text
    assert "cpus is 64, and no machine there has more than 4; waiting for one" in said and "gpus" not in said


def test_a_stopped_sweep_lets_its_trials_save(elsewhere, tiny):
    tiny(PLAN.replace("epochs: 15", "epochs: 1000"))
    command = [sys.executable, "-m", "imixer", "sweep", "tiny.yaml", "--executor", "ray"]
    background = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))  # as a shell's `... &` has it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **background) as process:
        run, deadline = Path("sweeps/tiny/opt=adamw/seed-0"), time.monotonic() + 900
        while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        _, err = process.communicate()
    assert process.returncode == 143
    assert err.endswith("imixer: interrupted with 0 of 2 trials finished; the same command goes on\n")
    with open("sweeps/tiny/results.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert first["status"] == "unfinished" and 1 <= int(first["epoch"]) < 1000
    assert any((run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--cpus 10000", ["cpus is 10000", "this machine has"]),
        ("--address localhost:9", ["address is localhost:9", "no Ray cluster"]),
        ("--address nowhere", ["address is nowhere", "no Ray cluster"]),
    ],
)
def test_an_impossible_cluster_is_refused_before_anything_is_written(capsys, elsewhere, tiny, flags, parts):
    assert main(["sweep", tiny(PLAN), "--executor", "ray", *flags.split()]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in parts:
        assert part in line
    assert [path.name for path in elsewhere.iterdir()] == ["tiny.yaml"]
