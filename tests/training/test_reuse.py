"""evaluate, predict and export on a finished run, through the command line."""

import csv
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imixer.cli import main
from imixer.training.finished_run import load_run
from imixer.training.predict import class_of_folder
from imixer.training.run.confusion import read_confusion


@pytest.fixture
def images(tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (10, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def refused(capsys, words, *parts):
    assert main([str(word) for word in words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in ("imixer: ", *parts):
        assert part in line


def test_evaluate_agrees_with_training(run, capsys):
    assert main(["evaluate", str(run), "--batch_size", "100"]) == 0
    shown = capsys.readouterr().out
    scores = json.loads((run / "evaluation.json").read_text())
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert scores["images"] == 360
    assert scores["top1"] == pytest.approx(float(last["val_acc"]), abs=1e-5)
    assert scores["top5"] == pytest.approx(float(last["val_acc_top5"]), abs=1e-5)
    assert scores["loss"] == pytest.approx(float(last["val_loss"]), rel=1e-4)
    assert scores["images_per_s"] > 0
    assert sum(score["images"] for score in scores["per_class"]) == 360
    hits = sum(score["accuracy"] * score["images"] for score in scores["per_class"])
    assert hits / 360 == pytest.approx(scores["top1"], abs=1e-5)
    for text in (f"top-1 {scores['top1']:.2%}", "top-5", "images/s", "precision", "evaluation.json"):
        assert text in shown


@pytest.fixture
def test_set(run, tmp_path):
    """The run's held-out images as files in class folders, without those of the last class."""
    items = load_run(str(run)).data().val
    for number in range(len(items)):
        image, label = items[number]
        if label != 9:
            (tmp_path / "test" / f"{label}").mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "test" / f"{label}" / f"{number:03}.png")
    return tmp_path / "test"


def test_a_test_set_of_held_out_images_gets_their_scores(run, test_set, capsys):
    assert main(["evaluate", str(run)]) == 0
    before, held_out = (run / "evaluation.json").read_bytes(), json.loads((run / "evaluation.json").read_text())
    capsys.readouterr()
    assert main(["evaluate", str(run), "--test", str(test_set)]) == 0
    shown = capsys.readouterr().out
    scores = json.loads((run / "test_evaluation.json").read_text())
    assert scores["data"] == str(test_set)
    for mine, theirs in zip(scores["per_class"][:9], held_out["per_class"], strict=False):
        assert (mine["name"], mine["images"]) == (theirs["name"], theirs["images"])
        assert mine["accuracy"] == theirs["accuracy"]
    assert scores["images"] == sum(score["images"] for score in scores["per_class"]) == 324
    assert scores["per_class"][9]["images"] == 0 and scores["per_class"][9]["accuracy"] is None
    assert "test_evaluation.json" in shown and "-" in shown.splitlines()[-2]
    assert (run / "evaluation.json").read_bytes() == before


def test_each_image_of_a_test_set_is_written_down_the_worst_first(run, test_set, capsys):
    assert main(["evaluate", str(run), "--test", str(test_set)]) == 0
    assert "test_predictions.csv" in capsys.readouterr().out
    with (run / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = json.loads((run / "test_evaluation.json").read_text())
    assert sorted(row["image"] for row in rows) == sorted(map(str, test_set.rglob("*.png")))
    assert all(row["true_class"] == Path(row["image"]).parent.name for row in rows)
    assert all(int(row["correct"]) == (row["true_class"] == row["predicted_class"]) for row in rows)
    assert sum(int(row["correct"]) for row in rows) / len(rows) == pytest.approx(scores["top1"], abs=1e-5)
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True) and np.mean(losses) == pytest.approx(scores["loss"], abs=1e-4)
    for row in rows:
        assert -np.log(float(row["probability_of_true_class"])) == pytest.approx(float(row["loss"]), abs=1e-3)
        assert float(row["confidence"]) >= float(row["probability_of_true_class"])
    names, counts = read_confusion(run / "test_confusion_matrix.csv")
    assert names == [str(n) for n in range(10)]
    for true in range(10):
        for predicted in range(10):
            alike = [r for r in rows if (r["true_class"], r["predicted_class"]) == (str(true), str(predicted))]
            assert counts[true][predicted] == len(alike)


def test_the_worst_images_are_shown_with_true_and_predicted_class_and_confidence(run, monkeypatch):
    figures = []
    monkeypatch.setattr("imixer.training.figures.save_figure", lambda figure, path, dpi=0: figures.append(figure))
    assert main(["evaluate", str(run)]) == 0
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = next(figure for figure in figures if len(figure.axes) == 20)
    for axes, row in zip(page.axes, rows, strict=False):
        expected = f"true: {row['true_class']}\npredicted: {row['predicted_class']} {float(row['confidence']):.0%}"
        assert axes.get_title() == expected and axes.texts[0].get_text() == row["image"]
    wrong = sum(row["correct"] == "0" for row in rows)
    assert page.get_suptitle().startswith(f"{wrong} of 360 images not recognised; the 20 with the largest loss")


def test_a_test_set_that_the_model_cannot_be_tested_on_is_refused(run, test_set, capsys):
    refused(capsys, ["evaluate", run, "--test", test_set / "no"], "no folder", "no")
    refused(capsys, ["evaluate", run, "--test", test_set / "3"], "holds images but no class folders")
    (test_set / "3" / "bad.png").write_bytes(b"no image")
    refused(capsys, ["evaluate", run, "--test", test_set], "bad.png", "not an image")
    (test_set / "ten").mkdir()
    shutil.copy(next((test_set / "1").iterdir()), test_set / "ten")
    refused(capsys, ["evaluate", run, "--test", test_set], "'ten'", "0, 1, 2, 3, 4, ...")


def test_what_cannot_be_read_of_a_test_set_is_skipped_and_told_if_the_run_skips(
    train_quick, test_set, capsys, tmp_path
):
    (test_set / "3" / "bad.png").write_bytes(b"no image")
    train_quick(tmp_path / "run", "--data.skip_bad", "true", "--epochs", "1", "--schedule.warmup_epochs", "0")
    assert main(["evaluate", str(tmp_path / "run"), "--test", str(test_set)]) == 0
    assert "skipped 1 unreadable image, the first 3/bad.png" in capsys.readouterr().out


def test_predict_draws_held_out_images(run, capsys):
    assert main(["predict", str(run), "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("held-out") == 8
    assert "true class" in shown
    assert f"picture: {run / 'prediction.png'}" in shown
    with Image.open(run / "prediction.png") as picture:
        assert min(picture.size) > 500


def test_predict_files_and_folders(run, images, capsys):
    out = images / "predictions.csv"
    assert main(["predict", str(run), str(images), str(images / "0.png"), "--csv", str(out), "--top", "99"]) == 0
    assert "1.png" in capsys.readouterr().out
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["image"] for row in rows} == {str(images / f"{n}.png") for n in range(3)}
    first = [float(row["probability"]) for row in rows if row["image"].endswith("0.png")]
    assert len(first) == 10  # no more than there are classes
    assert first == sorted(first, reverse=True)
    assert sum(first) == pytest.approx(1, abs=1e-4)
    refused(capsys, ["predict", run, images / "0.png", "--csv", out], "exists")


def test_an_unreadable_image_among_others_is_left_out_and_named(run, images, tmp_path, capsys):
    there = shutil.copytree(images, tmp_path / "there")
    (there / "1.png").write_bytes((there / "1.png").read_bytes()[:40])
    (there / "none.png").touch()
    out = tmp_path / "p.csv"
    assert main(["predict", str(run), str(there), "--csv", str(out), "--top", "1"]) == 0
    with out.open() as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)] == ["0.png", "2.png"]
    assert re.search(r"left out 2 of 4 images; the first: cannot read image \S+1\.png", capsys.readouterr().err)
    (there / "0.png").unlink()
    (there / "2.png").unlink()
    refused(capsys, ["predict", run, there], "1.png")


def test_images_of_more_bits_than_those_of_training_are_told(run, tmp_path, capsys):
    Image.fromarray(np.full((8, 8), 4095, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save(tmp_path / "usual.png")
    assert main(["predict", str(run), str(tmp_path)]) == 0
    said = "1 of 2 images have more than 8 bits, unlike those of training, and were read as 16, so that 65,535 is white"
    assert f"{said}; the first: {tmp_path / 'deep.png'}" in capsys.readouterr().err
    assert main(["predict", str(run), str(tmp_path / "usual.png")]) == 0
    assert "more than 8 bits" not in capsys.readouterr().err
    for number, file in enumerate(("deep.png", "usual.png")):
        (tmp_path / "test" / str(number)).mkdir(parents=True)
        (tmp_path / file).rename(tmp_path / "test" / str(number) / file)
    assert main(["evaluate", str(run), "--test", str(tmp_path / "test")]) == 0
    assert f"{said}; the first: {tmp_path / 'test' / '0' / 'deep.png'}" in capsys.readouterr().err


def test_predict_takes_the_true_class_from_class_folders(run, test_set, tmp_path, capsys):
    few = tmp_path / "few"
    for label in "37":
        shutil.copytree(test_set / label, few / label / "indoors")
    shutil.copytree(few / "3", few / "three")
    assert main(["predict", str(run), str(few), "--csv", str(tmp_path / "p.csv"), "--top", "1"]) == 0
    shown = capsys.readouterr().out
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = [row for row in rows if row["true_class"]]
    assert all(row["true_class"] == Path(row["image"]).parts[-3] for row in known)
    assert {Path(row["image"]).parts[-3] for row in rows if not row["true_class"]} == {"three"}
    right = sum(row["class"] == row["true_class"] for row in known)
    unknown = len(rows) - len(known)
    assert f"right: {right} of {len(known)} whose class is known; {unknown} lie in no class folder" in shown
    assert f"prediction.png, the first 16 of {len(rows)} images" in shown


def test_a_class_folder_above_what_is_given_is_none():
    assert class_of_folder(Path("/7/mine/a.png"), ["/7/mine"], ["7"]) is None
    assert class_of_folder(Path("/7/mine/a.png"), ["/7/mine/a.png"], ["7"]) is None
    assert class_of_folder(Path("/mine/7/a.png"), ["/mine/7/a.png"], ["7"]) == "7"
    assert class_of_folder(Path("/7/3/a.png"), ["/"], ["3", "7"]) == "3"


def test_predict_with_another_number_of_iterations(run, images, tmp_path):
    tables = []
    for n in ("0", "2", "8"):
        out = tmp_path / f"{n}.csv"
        assert main(["predict", str(run), str(images / "0.png"), "--n_iter", n, "--csv", str(out)]) == 0
        tables.append(out.read_text())
    assert len(set(tables)) > 1


def test_predict_refuses(run, images, tmp_path, capsys):
    refused(capsys, ["predict", run, tmp_path / "nowhere.png"], "nowhere.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    refused(capsys, ["predict", run, tmp_path / "broken.png"], "broken.png")
    refused(capsys, ["predict", run, "--n_iter", "-1"], "n_iter is -1")


def test_only_imixers_iterate(train_quick, tmp_path, capsys):
    vanilla = train_quick(
        tmp_path / "vanilla", "--model.name", "mixer_t2_8", "--epochs", "1", "--schedule.warmup_epochs", "0"
    )
    refused(capsys, ["predict", vanilla, "--n_iter", "3"], "n_iter", "no iMixer")


@pytest.mark.parametrize(("format", "suffix"), [("onnx", "onnx"), ("torch", "pt2")])
def test_export(run, tmp_path, capsys, format, suffix):
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    out = tmp_path / f"m.{suffix}"
    assert main(["export", str(run), "--format", format, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert str(out) in shown
    assert "max_abs_diff" in shown
    assert out.stat().st_size > 1000
    refused(capsys, ["export", run, "--format", format, "--out", out], "exists")
    refused(capsys, ["export", run, "--format", format, "--out", tmp_path / "no" / "m"], "no folder")


def cats_and_dogs(folder):
    for place, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number + 9 * place).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_moved_data(train_quick, tmp_path, capsys):
    here, there = cats_and_dogs(tmp_path / "here"), tmp_path / "there"
    run = train_quick(tmp_path / "run", "--data.name", str(here), "--data.batch_size", "4")
    assert main(["evaluate", str(run)]) == 0
    before = json.loads((run / "evaluation.json").read_text())
    assert before["top5"] is None  # two classes
    shutil.move(here, there)
    refused(capsys, ["evaluate", run], str(here))
    assert main(["evaluate", str(run), "--data", str(there)]) == 0
    assert json.loads((run / "evaluation.json").read_text())["loss"] == before["loss"]
    refused(capsys, ["evaluate", run, "--data", "digits"], "cat, dog", str(run))


def test_images_that_were_trained_on_are_never_called_held_out(train_quick, tmp_path, capsys):
    data = cats_and_dogs(tmp_path / "data")
    run = train_quick(tmp_path / "run", "--data.name", str(data), "--data.batch_size", "4")
    (data / "cat" / "6.png").write_bytes((data / "dog" / "0.png").read_bytes())
    for words in (["evaluate", run], ["predict", run], ["analyze", "inverse", run]):
        refused(capsys, words, "data has changed since", str(run), "--test FOLDER")
    (data / "cat" / "0.png").unlink()  # as many as before
    refused(capsys, ["evaluate", run], "data has changed since")
    (data / "cat" / "6.png").rename(data / "cat" / "0.png")
    assert main(["evaluate", str(run)]) == 0
    shutil.copytree(data, tmp_path / "parts" / "train")
    shutil.copytree(data, tmp_path / "parts" / "val")
    refused(capsys, ["evaluate", run, "--data", tmp_path / "parts"], "parts has changed since")
    assert main(["evaluate", str(run), "--test", str(data)]) == 0


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_held_out_images_are_known_again_wherever_and_however_the_data_are_named(
    train_quick, tmp_path, monkeypatch, kind
):
    data = cats_and_dogs(tmp_path / "data")
    if kind == "tar":
        (tmp_path / "shards").mkdir()
        with tarfile.open(tmp_path / "shards" / "pets.tar", "w") as archive:
            for number, file in enumerate(sorted(data.rglob("*.png"))):
                for suffix, content in ((".png", file.read_bytes()), (".cls", str(number // 6).encode())):
                    member = tarfile.TarInfo(f"{number:03}{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        data = tmp_path / "shards"
    monkeypatch.chdir(data if kind == "folder" else tmp_path)
    name = "." if kind == "folder" else "shards"
    run = train_quick(tmp_path / "run", "--data.name", name, "--data.batch_size", "4")
    assert main(["evaluate", str(run)]) == 0
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, tmp_path / "elsewhere" / "copy")
    assert main(["evaluate", str(run), "--data", "elsewhere/copy"]) == 0


def test_a_held_out_part_may_grow_and_may_not_vanish(train_quick, tmp_path, capsys):
    data = tmp_path / "data"
    cats_and_dogs(data / "train")
    shutil.copytree(data / "train", data / "val")
    run = train_quick(tmp_path / "run", "--data.name", str(data), "--data.batch_size", "4")
    (data / "val" / "cat" / "6.png").write_bytes((data / "val" / "dog" / "0.png").read_bytes())
    assert main(["evaluate", str(run)]) == 0
    shutil.rmtree(data / "val")
    refused(capsys, ["evaluate", run], "data has changed since")
    result = json.loads((run / "result.json").read_text())
    del result["held_out_draw"]  # of an earlier version
    (run / "result.json").write_text(json.dumps(result))
    assert main(["evaluate", str(run)]) == 0


def test_a_run_is_reloaded_as_trained(run):
    finished = load_run(str(run), "cpu")
    assert finished.class_names == tuple("0123456789")
    assert finished.input_size == (1, 8, 8)
    assert not finished.model.training
    assert finished.device == torch.device("cpu")
