"""Every file of a run."""

import csv
import json
import math
import os
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.training.model import build_model
from imixer.training.run.checkpoints import Checkpoints
from imixer.training.run.config import ModelConfig, TrainConfig
from imixer.training.run.confusion import read_confusion, write_confusion
from imixer.training.run.directory import RunDirectory, create_run, open_run
from imixer.training.run.parsing import load_config, merge_settings, save_config
from imixer.training.run.result import read_result
from imixer.training.run.resume_rules import check_changes
from imixer.training.run.summary import runs_below
from imixer.training.train import resolve_defaults

FILES = {
    "config.yaml",
    "environment.json",
    "metrics.csv",
    "convergence.csv",
    "result.json",
    ".lock",
    "checkpoints/index.json",
    "checkpoints/step-00000022.pt",
    "checkpoints/step-00000044.pt",
    "model/config.json",
    "model/model.safetensors",
    "learning_curves.png",
    "confusion_matrix.png",
    "confusion_matrix.csv",
}


def test_it_holds_these_files(train_quick, tmp_path):
    run = train_quick(tmp_path / "run", pictures=True)
    found = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    events = {name for name in found if name.startswith("tensorboard/events.out.tfevents")}
    assert found - events == FILES
    assert len(events) == 1


def test_metrics_have_one_row_per_epoch(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert [int(row["step"]) for row in rows] == [22, 44]  # 1437 images in full batches of 64
    for row in rows:
        assert all(math.isfinite(float(value)) for value in row.values())
        assert 0 <= float(row["val_acc"]) <= float(row["val_acc_top5"]) <= 1
        assert float(row["images_per_s"]) > 0
    assert float(rows[-1]["lr"]) == pytest.approx(1e-6)  # the schedule ends at min_lr


def test_tensorboard_has_the_same_numbers(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    for name in ("train_loss", "val_loss", "val_acc", "lr"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [22, 44]
        assert [s.value for s in scalars] == pytest.approx([float(row[name]) for row in rows], rel=1e-5)


def test_the_configuration_is_whole(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["name"] == "imixer_t2_8"
    assert config["data"]["image_size"] == 8
    assert config["out"] is None
    assert load_config(run / "config.yaml").model.embed_dim == 16


def test_a_folder_with_the_name_of_the_data_is_not_taken_for_them(train_quick, elsewhere):
    (elsewhere / "digits").mkdir()
    run = train_quick(elsewhere / "run", "--epochs", "1", "--schedule.warmup_epochs", "0")
    assert load_config(run / "config.yaml").data.name == "digits"


def test_the_environment_is_named(run):
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert {"imixer", "timm", "lightning", "python", "cpu", "cores", "gpus"} <= set(environment)


def test_the_checkpoint_is_plain(run):
    checkpoint = torch.load(run / "checkpoints" / "step-00000044.pt", weights_only=True)
    assert checkpoint["step"] == 44
    assert {"model", "optimizer", "rows", "data_fingerprint"} <= set(checkpoint)


def test_the_best_checkpoint_is_that_of_the_highest_accuracy(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    best = max(rows, key=lambda row: float(row["val_acc"]))
    assert [entry.step for entry in Checkpoints(run / "checkpoints").entries() if entry.best] == [int(best["step"])]


def test_convergence_is_written_per_epoch_and_block(run):
    rows = list(csv.DictReader((run / "convergence.csv").open()))
    assert [(row["epoch"], row["block"]) for row in rows] == [("1", "0"), ("2", "0")]
    for row in rows:
        assert 0 < float(row["residual"]) < 0.1
        assert float(row["sigma"]) > 0
        assert 0 < float(row["bound"]) <= 0.81 * 1.129**2


def test_the_result_comes_back(run):
    result = read_result(RunDirectory(run))
    assert (result.epochs, result.held_out, result.model, result.data) == (2, 360, "imixer_t2_8", "digits")
    assert result.last["step"] == 44
    assert result.seconds > 0


def test_the_confusion_matrix_counts_every_held_out_image(run):
    names, counts = read_confusion(run / "confusion_matrix.csv")
    assert names == [str(digit) for digit in range(10)]
    assert sum(map(sum, counts)) == 360
    right = sum(counts[i][i] for i in range(10))
    assert right / 360 == pytest.approx(read_result(RunDirectory(run)).last["val_acc"], abs=1e-6)


def test_a_confusion_matrix_keeps_names_that_look_alike_or_like_csv(tmp_path):
    names, counts = ["a,b", "a,b", 'c"d'], [[1, 0, 2], [0, 3, 0], [0, 0, 4]]
    write_confusion(counts, names, tmp_path / "c.csv")
    assert read_confusion(tmp_path / "c.csv") == (names, counts)
    for text in ("true,a,b\na,1,0\n", "true,a,b\na,1,0\nb,1\n", "\n"):
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(ValueError, match="a row and a column for each class"):
            read_confusion(tmp_path / "c.csv")


@pytest.mark.parametrize("name", ["learning_curves.png", "confusion_matrix.png"])
def test_figures_are_pictures(run, name):
    with Image.open(run / name) as image:
        assert min(image.size) > 300
        low, high = image.convert("L").getextrema()
        assert high - low > 200  # not blank


def test_the_next_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [create_run(None, "my data", "imixer_t2_8").path.as_posix() for _ in range(2)]
    assert paths == ["runs/my_data-imixer_t2_8-001", "runs/my_data-imixer_t2_8-002"]


@pytest.mark.parametrize("missing", ["config.yaml", "model/config.json", "model/model.safetensors"])
def test_what_is_missing_is_named(tmp_path, missing):
    for name in FILES - {missing}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=missing):
        open_run(str(tmp_path))


def test_a_folder_that_is_not_named_in_utf_8_is_refused_before_anything_is_written(tmp_path):
    place = os.fsdecode(b"/data/caf\xe9")
    with pytest.raises(InputError, match=r"data\.name: /data/caf\\udce9 is not named in UTF-8; rename that folder"):
        save_config(TrainConfig(data=DataConfig(name=place)), tmp_path / "config.yaml")
    assert not (tmp_path / "config.yaml").exists()


def test_a_project_that_looks_like_a_run_hides_no_run(tmp_path):
    for name in ("config.yaml", "model/config.json", "runs/one/config.yaml", "runs/one/metrics.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert runs_below(tmp_path) == [tmp_path / "runs/one"]
    (tmp_path / "runs/one/metrics.csv").unlink()
    assert runs_below(tmp_path) == [tmp_path]  # it lost its files


def test_what_was_taken_out_of_a_mapping_is_a_change_of_a_resumed_run():
    begun = TrainConfig(model=ModelConfig(name="resnet18", kwargs={"global_pool": "max"}))
    with pytest.raises(InputError, match=r"model\.kwargs\.global_pool is None, but run was begun with max"):
        check_changes(begun, replace(begun, model=replace(begun.model, kwargs={})), "run")
    check_changes(begun, begun, "run")


def test_a_setting_wins_over_a_rival_of_0():
    assert (
        merge_settings({"schedule.warmup_share": 0.0}, {"schedule.warmup_epochs": 5})["schedule.warmup_share"] is None
    )


def test_a_run_on_data_that_have_a_name_says_where_they_lie_from_anywhere(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere / "home"))
    built = build_model(ModelConfig("imixer_t4_32"), DataConfig(), native_size=(32, 32), in_chans=3, num_classes=10)

    def data(name, **settings):
        return resolve_defaults(TrainConfig(data=DataConfig(name=name, **settings)), built).data

    assert data("cifar10").root == data("torch/svhn").root == str(elsewhere / "data")
    assert data("cifar10", root="~/sets").root == str(elsewhere / "home" / "sets")
    assert data("digits").root is data("pets").root is None
    assert data("s3://bucket/pets", cache_dir="cache").cache_dir == str(elsewhere / "cache")
