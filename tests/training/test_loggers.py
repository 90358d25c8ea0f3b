"""Where an epoch's numbers go."""

import csv
import os
import signal
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imixer.cli import main
from imixer.training.progress_bar import TrainingProgress


def stop_at_step_30(monkeypatch, train_quick, run, *flags):
    def interrupt(self, done, loss):
        if done == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", interrupt)
        with pytest.raises(AssertionError):
            train_quick(run, *flags)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_without_its_package_is_refused_before_anything_is_written(tmp_path, without, capsys, name):
    without(name)
    assert main(["train", "--out", str(tmp_path / "run"), "--logger", name]) == 2
    assert f'pip install "imixer[{name}]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_csv_is_the_files_alone(train_quick, tmp_path):
    run = train_quick(tmp_path / "run", "--logger", "csv")
    assert not (run / "tensorboard").exists()
    assert (run / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("name", "package", "file"),
    [("wandb", "wandb", "wandb"), ("mlflow", "mlflow", "mlflow.db")],
    ids=["wandb", "mlflow"],
)
def test_other_loggers_write_into_the_run_without_a_server(train_quick, tmp_path, monkeypatch, name, package, file):
    pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train_quick(tmp_path / "run", "--logger", name)
    assert (run / file).exists()


@pytest.mark.usefixtures("undrawn")
def test_tensorboard_shows_each_epoch_of_a_resumed_run_once(train_quick, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stop_at_step_30(monkeypatch, train_quick, run)
    time.sleep(1.1)  # files are named by the second, and those begun in one by one process have no certain order
    assert main(["train", "--resume", str(run)]) == 0
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("val_acc")] == [22, 44]
    assert [scalar.step for scalar in events.Scalars("residual/block_0")] == [22, 44]
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["22", "44"]


@pytest.mark.usefixtures("undrawn")
def test_mlflow_shows_a_resumed_run_as_one(train_quick, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    run = tmp_path / "run"
    stop_at_step_30(monkeypatch, train_quick, run, "--logger", "mlflow")
    assert main(["train", "--resume", str(run)]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (shown,) = client.search_runs([client.get_experiment_by_name("imixer").experiment_id])
    assert [each.step for each in client.get_metric_history(shown.info.run_id, "val_acc")] == [22, 44]
