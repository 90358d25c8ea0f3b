"""Same seed, same numbers."""

import csv

import pytest

TIMES = {"images_per_s", "seconds"}


def numbers(run):
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_repeated_by_its_configuration(run, tmp_path):
    from imixer.cli import main

    again = tmp_path / "again"
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    assert numbers(again) == numbers(run)
    assert weights(again) == weights(run)
    assert (again / "config.yaml").read_text() == (run / "config.yaml").read_text()


@pytest.mark.parametrize("workers", ["2"])
def test_loader_processes_are_seeded_too(train_quick, tmp_path, workers):
    runs = [train_quick(tmp_path / name, "--data.workers", workers, "--data.hflip", "0.5") for name in ("a", "b")]
    assert numbers(runs[0]) == numbers(runs[1])
    assert weights(runs[0]) == weights(runs[1])


def test_another_seed_gives_other_weights(run, train_quick, tmp_path):
    assert weights(train_quick(tmp_path / "other", "--seed", "1")) != weights(run)
