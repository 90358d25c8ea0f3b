"""The weights of the best epoch, beside those of the last."""

import json
import shutil

import pytest
import torch

from imixer.cli import main
from imixer.training.finished_run import load_run
from imixer.training.run.checkpoints import Checkpoints
from imixer.training.run.result import best_row
from imixer.training.validation import ValidationMetrics


@pytest.fixture(scope="module")
def falling(train_quick, tmp_path_factory):
    """Train runs whose accuracy falls after the first of three epochs: of plain weights, and of averaged ones."""
    score = ValidationMetrics.score
    accuracies = iter([0.5, 0.25, 0.125] * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ValidationMetrics, "score", lambda *a: score(*a) | {"val_acc": next(accuracies)})
        folder = tmp_path_factory.mktemp("falling")
        return {
            "plain": train_quick(folder / "plain", "--epochs", "3"),
            "averaged": train_quick(folder / "averaged", "--epochs", "3", "--ema", "0.9"),
        }


@pytest.mark.parametrize("kind", ["plain", "averaged"])
def test_the_best_weights_are_those_of_the_best_epoch(falling, kind):
    run = falling[kind]
    state = Checkpoints(run / "checkpoints").best()
    assert [row["epoch"] for row in state["rows"]] == [1]
    expected = state["model" if kind == "plain" else "ema"]
    best, last = load_run(str(run), "cpu", "best"), load_run(str(run), "cpu")
    for name, tensor in best.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    pairs = zip(best.model.parameters(), last.model.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_the_best_epoch_is_named_beside_the_last(falling, tmp_path, capsys):
    result = json.loads((falling["plain"] / "result.json").read_text())
    assert (result["best"]["epoch"], result["best"]["val_acc"]) == (1, 0.5)
    assert (result["last"]["epoch"], result["last"]["val_acc"]) == (3, 0.125)
    capsys.readouterr()
    assert main(["train", "--resume", str(falling["plain"])]) == 0
    shown = capsys.readouterr().out
    assert "12.50% of 360 held-out images" in shown
    assert "1 of 3, with 50.00%; --checkpoint best takes its weights" in shown


def test_of_equal_epochs_the_first_is_the_best():
    assert best_row([{"val_acc": 0.5, "epoch": 1}, {"val_acc": 0.7, "epoch": 2}, {"val_acc": 0.7, "epoch": 3}]) == {
        "val_acc": 0.7,
        "epoch": 2,
    }


def test_what_the_best_weights_give_is_kept_apart(falling, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(falling["plain"], run)
    assert main(["evaluate", str(run)]) == 0
    before = {file: file.read_bytes() for file in run.glob("*.json")}
    words = (["evaluate", str(run)], ["predict", str(run)], ["analyze", "weights", str(run)])
    for word in words:
        assert main([*word, "--checkpoint", "best"]) == 0
    assert main(["export", str(run), "--format", "torch", "--checkpoint", "best"]) == 0
    assert "those of epoch 1, the best" in capsys.readouterr().err
    there = {str(file.relative_to(run / "best")) for file in (run / "best").rglob("*") if file.is_file()}
    assert {"evaluation.json", "predictions.csv", "prediction.png", "analysis/weights.json", "model.pt2"} <= there
    assert {file: file.read_bytes() for file in run.glob("*.json")} == before and not (run / "analysis").exists()
    scores = json.loads((run / "best" / "evaluation.json").read_text())
    assert scores["checkpoint"] == "best" and scores["loss"] != json.loads(before[run / "evaluation.json"])["loss"]


def test_a_package_of_the_best_weights_says_of_which_epoch_it_is(falling, tmp_path):
    run = shutil.copytree(falling["plain"], tmp_path / "run")
    assert main(["export", str(run), "--format", "package", "--checkpoint", "best"]) == 0
    folder = run / "best" / "imixer_t2_8.digits"
    result, scores = (json.loads((folder / name).read_text()) for name in ("result.json", "evaluation.json"))
    assert (result["last"]["epoch"], result["best"], scores["checkpoint"]) == (1, None, "last")
    assert "the same after epoch 1 of 3" in (folder / "README.md").read_text()
    best = load_run(str(run), "cpu", "best").model
    packaged = dict(load_run(str(folder), "cpu").model.named_parameters())
    assert all(torch.equal(packaged[name], value.half().float()) for name, value in best.named_parameters())


@pytest.mark.parametrize(
    ("command", "harm"),
    [
        (["evaluate"], "gone"),
        (["predict"], "none best"),
        (["analyze", "weights"], "damaged"),
        (["export"], "gone"),
    ],
)
def test_a_run_without_best_weights_is_refused_in_a_line(falling, tmp_path, capsys, command, harm):
    run = tmp_path / "run"
    shutil.copytree(falling["plain"], run)
    index = run / "checkpoints" / "index.json"
    entries = json.loads(index.read_text())
    best = next(entry for entry in entries if entry["best"])
    if harm == "gone":
        shutil.rmtree(run / "checkpoints")
    elif harm == "none best":
        index.write_text(json.dumps([entry | {"best": False} for entry in entries]))
    else:
        (run / "checkpoints" / best["file"]).write_bytes(b"no checkpoint")
    before = sorted(run.rglob("*"))
    assert main([*command, str(run), "--checkpoint", "best"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imixer: ") and "best epoch" in line and "--checkpoint last" in line
    assert sorted(run.rglob("*")) == before
