"""What was computed is written before anything is drawn, and no name of a class or a file can undo it."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imixer.cli import main
from imixer.plotting import drawn
from imixer.training import figures
from imixer.training.finished_run import load_run
from imixer.training.run.confusion import read_confusion, write_confusion
from imixer.training.tasks import classification

HOSTILE = [
    r"$\foo$",
    "[bold]b[",
    "=1+1",
    "\x1b[31mred",
    "_under",
    "<b>&amp;%{x}",
    "n" * 120 + "1",
    "n" * 120 + "2",
    "two\nlines",
]


@pytest.fixture(scope="module")
def hostile(train_quick: Callable[..., Path], tmp_path_factory) -> Path:
    """A run on a folder whose classes have such names."""
    folder = tmp_path_factory.mktemp("hostile") / "$images$ [bold]"
    draw = np.random.default_rng(0)
    for name in HOSTILE:
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i} $\\x$ [red].png")
    out = tmp_path_factory.mktemp("runs") / "$run$ [i]"
    flags = ["--data.name", str(folder), "--data.image_size", "16", "--model.name", "imixer_t4_32"]
    return train_quick(out, *flags, "--data.batch_size", "16", pictures=True)


def test_a_run_on_hostile_classes_is_whole(hostile, capsys):
    assert {"learning_curves.png", "confusion_matrix.png", "confusion_matrix.csv", "metrics.csv"} <= {
        file.name for file in hostile.iterdir()
    }
    assert sorted(load_run(str(hostile), "cpu").class_names) == sorted(HOSTILE)
    names, counts = read_confusion(hostile / "confusion_matrix.csv")
    assert len(names) == len(counts) == len(HOSTILE)
    assert set(names) == set(HOSTILE)


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate"],
        ["predict", "--csv"],
        ["report"],
        ["analyze", "energy"],
        ["analyze", "features"],
        ["analyze", "ood", "--ood_dataset", "noise"],
        ["train", "--resume"],
    ],
    ids=" ".join,
)
def test_every_command_takes_the_names_for_names(words, hostile, capsys, tmp_path):
    name, *more = words
    if name == "train":
        words = ["train", "--resume", str(hostile)]
    elif name == "predict":
        words = ["predict", str(hostile), "--csv", str(tmp_path / "p.csv")]
    else:
        words = [name, *more[:1], str(hostile), *more[1:]]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "not drawn" not in err
    assert "[i]" in out.replace("\n", "")  # in the path, as it is
    if name == "evaluate":
        assert r"$\foo$" in out and r"\x1b[31mred" in out
    if name == "predict":
        for row in csv.DictReader((tmp_path / "p.csv").open(newline="", encoding="utf-8")):
            assert not row["class"].startswith("=")
    if name == "report":
        page = (hostile / "report.html").read_text(encoding="utf-8")
        assert "<b>&amp;%{x}" not in page and "\x1b" not in page


# A picture that cannot be drawn


def fail(*args, **kwargs):
    raise RuntimeError("no\n\x1b[31mink")


@pytest.fixture
def no_ink(monkeypatch):
    """No figure can be written."""
    monkeypatch.setattr(figures.Figure, "savefig", fail)


def test_training_without_ink_gives_a_model_and_all_numbers(no_ink, train_quick, tmp_path, capsys):
    run = train_quick(tmp_path / "run", pictures=True)
    err = capsys.readouterr().err
    for picture in ("learning_curves.png", "confusion_matrix.png"):
        assert not (run / picture).exists()
        assert f"{picture} was not drawn (RuntimeError: no \\x1b[31mink); all else is written" in err
    assert {"model", "metrics.csv", "result.json", "confusion_matrix.csv"} <= {file.name for file in run.iterdir()}
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0


@pytest.mark.parametrize("what", ["energy", "contraction", "inverse", "convergence", "features", "weights", "ood"])
def test_an_analysis_without_ink_is_shown_and_written(what, no_ink, run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "analysis").mkdir(exist_ok=True)
    (copy / "analysis" / f"{what}.png").write_bytes(b"of an earlier time")
    more = ["--images", "4"] if what not in ("features", "weights") else []
    assert main(["analyze", what, str(copy), *more]) == 0
    out, err = capsys.readouterr()
    assert f"{what}.png was not drawn" in err and f"{what}.json" in out and f"{what}.png" not in out
    json.loads((copy / "analysis" / f"{what}.json").read_text())
    assert not (copy / "analysis" / f"{what}.png").exists()


def test_predictions_and_memories_without_ink(no_ink, run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert main(["predict", str(copy), "--csv", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.csv").exists() and "picture:" not in capsys.readouterr().out
    assert main(["recall", "--out", str(tmp_path / "memory")]) == 0
    out, err = capsys.readouterr()
    assert (tmp_path / "memory" / "recall.csv").exists() and "recall.png was not drawn" in err
    assert "recall.png" not in out


def test_the_model_is_written_before_anything_is_drawn(monkeypatch, train_quick, tmp_path):
    there = []
    out = tmp_path / "run"

    def look(path, draw):
        there.append({name for name in ("model", "result.json", "confusion_matrix.csv") if (out / name).exists()})

    monkeypatch.setattr(classification, "drawn", look)
    train_quick(out, pictures=True)
    assert there == [{"model", "result.json", "confusion_matrix.csv"}] * 2


def test_ctrl_c_while_drawing_is_no_failure_of_the_picture(tmp_path):
    def interrupt(path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path / "x.png", interrupt)


def test_class_names_come_back_from_the_counts(tmp_path):
    names = ["=1+1", "-2", "'=x", "'", "a,b", 'q"q', "+1", "plain", "two\nlines", "@x"]
    write_confusion(np.eye(len(names), dtype=int).tolist(), names, tmp_path / "counts.csv")
    assert read_confusion(tmp_path / "counts.csv") == (names, np.eye(len(names), dtype=int).tolist())
