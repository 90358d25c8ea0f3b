"""A segmentation goes through the commands that a classification does: sweeps, lists, reports, hub, test sets."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from imixer.cli import main
from imixer.data.masked_batches import joint_transform
from imixer.data.sources.decoding import pixel_format
from imixer.data.sources.image_files import load_image
from imixer.errors import InputError
from imixer.experiments.image_comparison import ImageScores, _require_same_images
from imixer.training.finished_run import load_run

SMALL = {
    "task": "segment",
    "data.image_size": 16,
    "data.batch_size": 4,
    "model.name": "imixer_t4_32",
    "model.num_blocks": 2,
    "model.embed_dim": 16,
    "schedule.warmup_epochs": 1,
    "precision": "32",
    "logger": "csv",
    "epochs": 2,
}


def flags(**settings):
    return [f"--{name}={value}" for name, value in (SMALL | settings).items()]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def squares(root, images=10, size=(24, 20), first=0):
    """Squares of the colour of their class, on noise."""
    draw = np.random.default_rng(first)
    for number in range(first, first + images):
        pixels, mask = draw.integers(0, 60, (*size, 3)), np.zeros(size)
        top, left = draw.integers(0, min(size) - 8, 2)
        kind = number % 2 + 1
        pixels[top : top + 8, left : left + 8, kind] = 230
        mask[top : top + 8, left : left + 8] = kind
        save(root / "images" / f"{number}.png", pixels)
        save(root / "masks" / f"{number}.png", mask)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the data, and a run that is trained on them and evaluated."""
    root = tmp_path_factory.mktemp("segment")
    squares(root / "data")
    assert main(["train", "--data.name", str(root / "data"), "--out", str(root / "runs" / "one"), *flags()]) == 0
    assert main(["evaluate", str(root / "runs" / "one")]) == 0
    return root


@pytest.fixture
def undrawn_masks(monkeypatch):
    """Draw no picture after training or evaluation, where a test looks at numbers."""
    for module in ("tasks.segmentation", "evaluate_masks"):
        monkeypatch.setattr(f"imixer.training.{module}.drawn", lambda path, draw: True)


@pytest.fixture
def run(trained):
    return trained / "runs" / "one"


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_a_segmentation_is_no_start_for_another_training(trained, run, tmp_path, monkeypatch, capsys, task):
    monkeypatch.chdir(tmp_path)
    data = ["--data.name", str(trained / "data")] if task == "segment" else []
    assert main(["train", "--task", task, *data, "--model.checkpoint", str(run)]) == 2
    assert "a segmentation" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_runs_and_show_tell_the_mean_iou(trained, run, capsys):
    miou = json.loads((run / "result.json").read_text())["last"]["val_miou"]
    assert main(["runs", str(trained / "runs"), "--sort", "accuracy"]) == 0
    assert f"{miou:.2%} mIoU" in capsys.readouterr().out
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    evaluated = json.loads((run / "evaluation.json").read_text())["miou"]
    assert re.search(rf"mIoU +{miou:.2%} on the held-out images, .* of their pixels, after epoch 2", shown)
    assert f"mIoU {evaluated:.2%} on 2 images of data (evaluation.json)" in shown


def test_runs_are_compared_by_the_mean_iou_of_each_image(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "one")
    shutil.copytree(run, "two")
    with open("two/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    better = [f"{float(row['miou']) + 0.25:.6f}" for row in rows]
    lines = [
        f"{row['image']},{miou},{row['pixel_accuracy']},{row['loss']}" for row, miou in zip(rows, better, strict=True)
    ]
    Path("two/predictions.csv").write_text("image,miou,pixel_accuracy,loss\n" + "\n".join(lines) + "\n")
    assert main(["compare", "one", "two"]) == 0
    shown = capsys.readouterr().out
    (line,) = (line.split() for line in shown.splitlines() if line.split()[:1] == ["two"])
    assert line[3:6] == ["2", "0", "+25.00"] and "mIoU of an image" in shown
    digits = tmp_path / "digits"
    shutil.copytree("one", digits)
    config = (digits / "config.yaml").read_text()
    (digits / "config.yaml").write_text(config.replace("task: segment", "task: anomaly"))
    assert main(["compare", "one", "digits"]) == 2
    assert "detector of anomalies" in capsys.readouterr().err


def test_a_report_shows_the_mean_iou_and_the_worst_images_first(run, capsys, tmp_path):
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    scores = json.loads((run / "evaluation.json").read_text())
    last = json.loads((run / "result.json").read_text())["last"]
    for words in (
        f"{last['val_miou']:.2%} mIoU",
        "validation mIoU",
        f"mIoU {scores['miou']:.2%} on 2 images: the held-out images, by class",
        "Held-out images with the lowest mIoU, the worst first",
        "Pixels of held-out images of each class",
    ):
        assert words in page, words
    assert "validation accuracy" not in page


def test_a_test_set_of_images_and_masks_is_scored_whole_in_the_classes_of_the_run(run, tmp_path, capsys):
    squares(tmp_path / "other", 5, (30, 22), first=100)
    assert main(["evaluate", str(run), "--test", str(tmp_path / "other")]) == 0
    scores = json.loads((run / "test_evaluation.json").read_text())
    assert scores["images"] == 5 and sum(each["pixels"] for each in scores["per_class"]) == 5 * 30 * 22
    with (run / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    worst_first = [float(row["miou"]) for row in rows]
    assert worst_first == sorted(worst_first) and all("other/images/10" in row["image"] for row in rows)
    assert (run / "test_worst_images.png").is_file()
    # gray images, a single one, in the colours of the model
    save(tmp_path / "gray" / "images" / "a.png", np.arange(24 * 20).reshape(24, 20) % 251)
    save(tmp_path / "gray" / "masks" / "a.png", np.ones((24, 20)))
    assert main(["evaluate", str(run), "--test", str(tmp_path / "gray")]) == 0
    save(tmp_path / "gray" / "masks" / "a.png", np.full((24, 20), 7))
    capsys.readouterr()
    assert main(["evaluate", str(run), "--test", str(tmp_path / "gray")]) == 2
    assert "has the value 7, and classes are 0 to 2" in capsys.readouterr().err.splitlines()[-1]
    assert main(["evaluate", str(run), "--test", str(tmp_path / "nowhere")]) == 2
    assert "test: no folder" in capsys.readouterr().err.splitlines()[-1]
    assert main(["evaluate", str(run), "--test", str(tmp_path / "other"), "--data", "x"]) == 2


def test_a_test_set_is_read_as_the_training_images_were_and_what_is_left_out_is_said(run, tmp_path, capsys):
    root = squares(tmp_path / "deep", 2)
    deep = np.full((24, 20), 4000, dtype=np.uint16)  # of 12 bits, where the run had 8
    Image.fromarray(deep).save(root / "images" / "0.png")
    (root / "extra").mkdir()
    Image.new("RGB", (8, 8)).save(root / "extra" / "a.png")
    loaded = load_run(str(run))
    read = np.asarray(loaded.masked_data(test=str(root)).val[0][0])
    assert np.array_equal(read, np.asarray(load_image(root / "images" / "0.png", 3, pixel_format(loaded.config.data))))
    assert main(["evaluate", str(run), "--test", str(root)]) == 0
    said = capsys.readouterr().err
    assert f"not used of {root}: extra/ (1 image)" in said
    assert "1 of 2 images have more than 8 bits, unlike those of training, and were read as 16" in said
    assert "black and white, as values run" not in said  # of a range that is not used


def test_pixels_of_a_test_set_that_count_for_nothing_are_told(run, tmp_path, capsys, undrawn_masks):
    root = squares(tmp_path / "other", 2)
    file = root / "masks" / "0.png"
    mask = np.asarray(Image.open(file)).copy()
    mask[:6] = 255
    save(file, mask)
    assert main(["evaluate", str(run), "--test", str(root)]) == 0
    assert "12.50% of the pixels of the test masks are 255, and count for nothing" in capsys.readouterr().err
    assert json.loads((run / "test_evaluation.json").read_text())["ignored"] == 0.125


@pytest.mark.parametrize("inside", [True, False])
def test_a_test_set_in_parts_is_that_of_its_test_part_alone(run, tmp_path, capsys, inside):
    root, parts = tmp_path / "data", ("train", "val", "test")
    for number, part in enumerate(parts):
        squares(tmp_path / part, 2, first=10 * number)
        for kind in ("images", "masks"):
            shutil.copytree(tmp_path / part / kind, root / kind / part if inside else root / part / kind)

    def remove(part):
        for kind in ("images", "masks"):
            shutil.rmtree(root / kind / part if inside else root / part / kind)

    loaded = load_run(str(run))
    names = [Path(path).name for path in loaded.masked_data(test=str(root)).val.paths]
    assert names == ["20.png", "21.png"]
    for part in ("train", "val"):
        remove(part)
        assert [Path(path).name for path in loaded.masked_data(test=str(root)).val.paths] == names


def test_a_test_set_of_parts_without_one_to_test_on_is_that_of_validation_or_all(run, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    squares(tmp_path / "data" / "train", 2)
    squares(tmp_path / "data" / "val", 2)
    loaded = load_run(str(run))
    for place in (tmp_path / "data", tmp_path / "data" / "val"):
        taken = loaded.masked_data(test=str(place)).val.paths
        assert [Path(path).parent.parent.name for path in taken] == ["val", "val"]
    columns = {
        kind: [{"bytes": file.read_bytes(), "path": None} for file in sorted((tmp_path / "data/val" / kind).iterdir())]
        for kind in ("images", "masks")
    }
    table = pa.table({"image": columns["images"], "mask": columns["masks"]})
    (tmp_path / "set").mkdir()
    for part in ("train", "val"):
        pq.write_table(table, tmp_path / "set" / f"{part}.parquet")
    assert len(loaded.masked_data(test=str(tmp_path / "set")).val) == 2
    (tmp_path / "set" / "val.parquet").unlink()
    assert (
        len(loaded.masked_data(test=str(tmp_path / "set")).val) == 2
    )  # as many data sets have it: all is for training
    pq.write_table(table.slice(1), tmp_path / "set" / "test.parquet")
    assert len(loaded.masked_data(test=str(tmp_path / "set")).val) == 1
    (tmp_path / "set" / "train.parquet").unlink()
    assert len(loaded.masked_data(test=str(tmp_path / "set")).val) == 1


def test_scenes_drawn_otherwise_are_not_compared_as_the_same_images():
    scores = {"held-out 0": 0.5, "held-out 1": 0.6}
    first = ImageScores("one", "scenes", "mIoU of an image", scores, {}, drawn=(0, 0.1))
    _require_same_images(first, replace(first, model="two"))
    with pytest.raises(InputError, match=r"one and two hold out other images, by data\.split_seed"):
        _require_same_images(first, replace(first, model="two", drawn=(1, 0.1)))


def test_a_card_for_the_hub_says_the_task_and_the_mean_iou_and_its_code_runs(run, tmp_path, capsys):
    assert main(["export", str(run), "--format", "hub", "--out", str(tmp_path / "hub")]) == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    miou = json.loads((run / "result.json").read_text())["last"]["val_miou"]
    assert (head["pipeline_tag"], head["metrics"]) == ("image-segmentation", ["mean_iou"])
    result = head["model-index"][0]["results"][0]
    assert result["task"]["type"] == "image-segmentation"
    assert result["metrics"] == [{"type": "mean_iou", "value": pytest.approx(miou, abs=1e-6)}]
    assert "## Mean IoU" in card and "pixels of colour images" in card and "accuracy" not in card.split("## How")[0]
    code = card.split("```python\n")[1].split("```")[0].replace("hf-hub:USER/NAME", f"local-dir:{tmp_path / 'hub'}")
    save(tmp_path / "image.png", np.random.default_rng(0).integers(0, 255, (24, 48, 3)))
    names = {}
    exec(code.replace('"image.png"', repr(str(tmp_path / "image.png"))), names)
    assert names["classes"].shape == (16, 16)
    loaded = load_run(str(run))
    image = Image.open(tmp_path / "image.png")
    seen = joint_transform(
        loaded.masked_data(), loaded.config.data, loaded.config.masks, loaded.input_size, train=False
    )(image, np.zeros((24, 48), np.uint8))[0]
    assert (names["transform"](image) - seen).abs().max() < 0.15  # the whole image, but for two steps of gray


@pytest.mark.usefixtures("undrawn_masks")
def test_a_sweep_compares_segmentations_by_their_mean_iou(trained, tmp_path, capsys):
    spec = {
        "name": "swept",
        "set": SMALL | {"data.name": str(trained / "data")},
        "grid": {"segment.head": ["linear", "multilevel"]},
        "seeds": 2,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "swept")]) == 0
    assert "val mIoU" in capsys.readouterr().out
    with (tmp_path / "swept" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        result = json.loads((tmp_path / "swept" / row["cell"] / f"seed-{row['seed']}" / "result.json").read_text())
        assert float(row["val_miou"]) == pytest.approx(result["last"]["val_miou"], rel=1e-5)
        assert float(row["best_val_miou"]) == pytest.approx(result["best"]["val_miou"], rel=1e-5)
        assert int(row["best_epoch"]) == result["best"]["epoch"]
    with (tmp_path / "swept" / "summary.csv").open() as file:
        means = {row["cell"]: float(row["val_miou_mean"]) for row in csv.DictReader(file)}
    for cell, mean in means.items():
        assert mean == pytest.approx(np.mean([float(row["val_miou"]) for row in rows if row["cell"] == cell]), rel=1e-5)


def test_a_segmentation_that_is_killed_goes_on_where_it_was(trained, tmp_path):
    """Real SIGKILLs, at random moments of its twelve steps, each of which is saved."""
    script = Path(__file__).with_name("kill_and_resume.py")
    command = [sys.executable, str(script), str(tmp_path / "whole"), str(tmp_path / "cut"), "2", "6", "7"]
    command += ["--data.name", str(trained / "data"), *flags(epochs=6), "--checkpoints.every_steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    one, other = (load_run(str(tmp_path / name)).model.state_dict() for name in ("cut", "whole"))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.usefixtures("undrawn_masks")
def test_data_with_other_classes_are_refused_at_resume(tmp_path, capsys):
    data = squares(tmp_path / "data")
    out = tmp_path / "run"
    assert main(["train", "--data.name", str(data), "--out", str(out), *flags()]) == 0
    (out / "result.json").unlink()
    for file in (out / "model").iterdir():
        file.unlink()
    (out / "model").rmdir()
    mask = np.zeros((24, 20))
    mask[:4] = 5
    save(data / "masks" / "0.png", mask)
    capsys.readouterr()
    assert main(["train", "--resume", str(out)]) == 2
    assert "with other classes (3; now 6)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("undrawn_masks")
def test_settings_are_chosen_for_masks_too_and_a_budget_sets_the_length(tmp_path, capsys):
    data = squares(tmp_path / "data", 12, (40, 40))
    words = [f"--{name}={value}" for name, value in SMALL.items() if name in ("task", "precision", "logger")]
    chosen = ["--choose", "[model,batch_size]", "--minutes", "0.01"]
    out = tmp_path / "chosen"
    assert main(["train", "--data.name", str(data), "--out", str(out), *words, *chosen, "--steps", "2"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "image_size 32, of photos" in said and "model imixer_laptop_32" in said
    assert load_run(str(out)).model.head_name == "multilevel"
    assert (
        main(
            [
                "train",
                "--data.name",
                str(data),
                "--out",
                str(tmp_path / "b"),
                *(word for word in flags(budget="0.0001T") if "epochs" not in word),
            ]
        )
        == 0
    )
    assert "budget" in " ".join(capsys.readouterr().err.split())


def test_analyses_of_the_inverse_take_a_segmentation(run, capsys):
    for name in ("contraction", "convergence", "inverse"):
        assert main(["analyze", name, str(run), "--images", "2"]) == 0, name
    capsys.readouterr()
    for name in ("energy", "features", "attribution"):
        assert main(["analyze", name, str(run)]) == 2, name
        assert capsys.readouterr().err.splitlines()[-1].startswith("imixer: ")
    assert main(["analyze", "iterations", str(run), "--images", "2"]) == 0
    assert "mIoU %" in capsys.readouterr().out
    found = json.loads((run / "analysis" / "iterations.json").read_text())["settings"]
    trained = found[2]
    assert (trained["n_iter"], trained["same_answer"], trained["logit_change"]["mean"]) == (2, 1.0, 0.0)
    assert all(0 <= each["miou"] <= 1 for each in found)


def test_a_quantised_segmentation_agrees_pixel_by_pixel(run, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--quantize", "int8", "--out", str(tmp_path / "q.onnx")]) == 0
    shown = capsys.readouterr()
    assert "random" not in shown.err
    loaded = load_run(str(run), "cpu")
    images = torch.stack([loaded.transform(image) for image, _ in loaded.masked_data().val])
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
    got = np.concatenate([session.run(None, {"image": image[None].numpy()})[0] for image in images])
    with torch.no_grad():
        same = (got.argmax(1) == loaded.model(images).argmax(1).numpy()).mean()
    assert got.shape == (2, 3, 16, 16) and same >= 0.9
    assert float(re.search(r"same_class (\S+)", shown.out)[1]) == pytest.approx(same, abs=5e-3)


def test_a_segmentation_that_diverges_is_stopped_and_its_step_can_be_replayed(trained, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--data.name", str(trained / "data"), "--out", str(out), *flags(), "--optim.opt", "sgd"]
    assert main(["train", *words, "--optim.lr", "1e30"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    step = next((out / "nonfinite").iterdir())
    assert "diverged" in line and "imixer replay" in line
    assert main(["replay", str(step)]) == 0
    assert "blocks" in capsys.readouterr().out


def test_options_of_classes_are_refused(run, capsys):
    for words in (["--top", "1"], ["--csv", "a.csv"], ["--n_iter", "1"]):
        assert main(["predict", str(run), *words]) == 2
        assert f"{words[0][2:]} is given, and {run} is a segmentation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.name", "voc", "--data.root", "nowhere"], "voc is not in nowhere"),
        (["--data.name", "oxford_pet"], "did you mean oxford_pets"),
        (["--masks.mask_column", "mask", "--data.name", "scenes"], "masks.mask_column is of parquet files"),
        (["--masks.values", "[1]"], "masks.values is [1]"),
    ],
)
def test_data_that_are_not_there_are_one_line(words, said, tmp_path, capsys):
    assert main(["train", "--task", "segment", "--out", str(tmp_path / "run"), *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("undrawn_masks")
def test_a_run_on_parquet_files_is_evaluated_where_they_lie_now(tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    squares(tmp_path / "files")
    images, masks = (
        [{"bytes": file.read_bytes(), "path": None} for file in sorted((tmp_path / "files" / name).iterdir())]
        for name in ("images", "masks")
    )
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": images, "annotation": masks}), tmp_path / "set" / "train.parquet")
    run = tmp_path / "run"
    assert main(["train", "--data.name", str(tmp_path / "set"), "--out", str(run), *flags()]) == 0
    (tmp_path / "set").rename(tmp_path / "moved")
    assert main(["evaluate", str(run)]) == 2
    assert main(["evaluate", str(run), "--data", str(tmp_path / "moved")]) == 0
    assert json.loads((run / "evaluation.json").read_text())["images"] == 2
    table = pa.table({"image": images, "annotation": masks})
    pq.write_table(table.slice(1), tmp_path / "moved" / "train.parquet")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "moved")]) == 2
    assert "moved has changed since" in capsys.readouterr().err.splitlines()[-1]
