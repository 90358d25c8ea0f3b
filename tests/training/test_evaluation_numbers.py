"""The numbers of an evaluation are those that one computes by hand from known logits."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import IGNORED, ImageData, MaskedData
from imixer.training import evaluate, evaluate_masks
from imixer.training.mask_logits import MaskPredictor
from imixer.training.run.confusion import read_confusion
from imixer.training.run.directory import RunDirectory

NAMES = ("ground", "road", "sky", "sea")
SMALL = np.array([[[0, 1], [1, 1]], [[0, 1], [2, 2]]])  # predicted by a model that sees images of 2x2
PREDICTED = [SMALL[0], SMALL[1].repeat(2, 0).repeat(2, 1)]
TRUTHS = [
    np.array([[0, 0], [1, IGNORED]], np.uint8),
    np.array([[0, 0, 0, 1], [0, 0, 1, 1], [2, 2, 1, 1], [2, 2, 1, 2]], np.uint8),
]
SMALL_LOGITS = 3.0 * np.eye(4)[SMALL]  # (image, row, column, class)
ENLARGE = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # four pixels in a row, from two
LOGITS = [SMALL_LOGITS[0], np.einsum("ij,kl,jlc->ikc", ENLARGE, ENLARGE, SMALL_LOGITS[1])]


class Items(list):
    @property
    def names(self):
        return [f"of {image.getpixel((0, 0))}" for image, _ in self]


def made_run(folder, model, items, size, kind=ImageData, **more):
    """A finished run with a model that is known, on images of one gray each."""
    data = kind("made", items, items, NAMES, 1, None, (0.5,), (0.5,), **more)
    return SimpleNamespace(
        data=lambda data_path: data,
        masked_data=lambda data_path, test: data,
        make_outputs=lambda: RunDirectory(folder),
        config=SimpleNamespace(data=DataConfig(workers=0), masks=MaskConfig(), micro_batch=2),
        directory=SimpleNamespace(model=folder / "model"),
        pretrained_cfg={"mean": (0.5,), "std": (0.5,)},
        transform=lambda image: torch.tensor(np.asarray(image) / 127.5 - 1, dtype=torch.float32)[None],
        **dict(model=model, class_names=NAMES, input_size=(1, size, size), device=torch.device("cpu")),
        **dict(name="made", packaged=False, checkpoint="last"),
    )


def segmentation(folder):
    """A run on a black image of 2x2 pixels and a white one of 4x4."""
    images = [Image.new("L", (side, side), gray) for side, gray in ((2, 0), (4, 255))]
    palette = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200))
    logits = torch.tensor(SMALL_LOGITS, dtype=torch.float32).movedim(-1, 1)
    return made_run(
        folder,
        lambda images: logits[(images.mean((1, 2, 3)) > 0).long()],
        Items(zip(images, TRUTHS, strict=True)),
        2,
        MaskedData,
        palette=palette,
    )


def test_masks_are_predicted_at_the_size_of_their_images(tmp_path):
    run = segmentation(tmp_path)
    got = MaskPredictor(run).classes([image for image, _ in run.masked_data(None, None).val])
    assert [each.tolist() for each in got] == [each.tolist() for each in PREDICTED]


def test_the_scores_of_a_segmentation_are_those_of_its_pixels(tmp_path, monkeypatch):
    drawn, panels = [], []
    monkeypatch.setattr(evaluate_masks, "draw_confusion_matrix", lambda counts, *_, **__: drawn.extend(counts.tolist()))
    monkeypatch.setattr(evaluate_masks, "draw_masks", lambda shown, *_: panels.extend(shown))
    scores, files = evaluate_masks.evaluate_masks(segmentation(tmp_path))

    counts = [[5, 2, 0, 0], [0, 4, 3, 0], [0, 0, 5, 0], [0, 0, 0, 0]]
    assert read_confusion(files.confusion_counts) == (list(NAMES), counts)
    assert drawn == counts
    losses = []
    for logits, truth in zip(LOGITS, TRUTHS, strict=True):
        known = truth != IGNORED
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        losses.append(-np.log(chances[known, truth[known]]))
    assert (scores.images, scores.pixel_accuracy) == (2, pytest.approx(14 / 19))
    assert scores.miou == pytest.approx((5 / 7 + 4 / 9 + 5 / 8) / 3)
    assert scores.loss == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
    assert [(each.name, each.pixels, each.iou, each.accuracy, each.precision) for each in scores.per_class] == [
        ("ground", 7, *map(pytest.approx, (5 / 7, 5 / 7, 5 / 5))),
        ("road", 7, *map(pytest.approx, (4 / 9, 4 / 7, 4 / 6))),
        ("sky", 5, *map(pytest.approx, (5 / 8, 5 / 5, 5 / 8))),
        ("sea", 0, None, None, None),
    ]
    assert json.loads(files.scores.read_text())["per_class"][1]["precision"] == round(4 / 6, 6)

    worst_first = list(csv.DictReader(files.predictions.open()))
    assert [row.pop("image") for row in worst_first] == ["of 0", "of 255"]
    by_hand = [(1 / 2, 2 / 3, losses[0].mean()), ((4 / 5 + 3 / 7 + 5 / 8) / 3, 12 / 16, losses[1].mean())]
    for row, expected in zip(worst_first, by_hand, strict=True):
        assert list(row) == ["miou", "pixel_accuracy", "loss"]
        assert list(map(float, row.values())) == pytest.approx(expected, abs=1e-5)
    assert [panel.title for panel in panels] == ["of 0, mIoU 50.0%", "of 255, mIoU 61.8%"]
    for panel, predicted, truth, gray in zip(panels, PREDICTED, TRUTHS, (0, 255), strict=True):
        assert panel.image.getextrema() == (gray, gray)
        assert np.array_equal(panel.predicted, predicted) and np.array_equal(panel.truth, truth)


def test_the_scores_of_a_classification_are_those_of_its_images_and_each_is_shown_beside_its_own(tmp_path, monkeypatch):
    targets, predicted, margins = [0, 0, 1, 2, 2], [0, 1, 1, 1, 0], [5.0, 1.0, 2.0, 4.0, 3.0]
    items = Items((Image.new("L", (2, 2), 50 * place), target) for place, target in enumerate(targets))
    logits = torch.tensor(margins)[:, None] * torch.eye(4)[predicted]
    run = made_run(tmp_path, lambda x: logits[((x.mean((1, 2, 3)) + 1) * 2.55).round().long()], items, 2)
    shown = []
    monkeypatch.setattr(evaluate, "load_run", lambda *_: run)
    monkeypatch.setattr(evaluate, "draw_worst_images", lambda worst, *numbers: shown.extend([*worst, numbers[:2]]))
    monkeypatch.setattr(evaluate, "draw_confusion_matrix", lambda counts, *_, **__: shown.append(counts.tolist()))
    scores, files = evaluate.evaluate("made")

    counts, *worst, numbers = shown
    assert counts == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert read_confusion(files.confusion_counts) == (list(NAMES), counts)
    assert (scores.images, scores.top1, scores.top5) == (5, pytest.approx(2 / 5), None)
    assert [(each.name, each.images, each.accuracy, each.precision) for each in scores.per_class] == [
        ("ground", 2, 1 / 2, 1 / 2),
        ("road", 1, 1.0, pytest.approx(1 / 3)),
        ("sky", 2, 0.0, None),
        ("sea", 0, None, None),
    ]
    chance = [np.exp(margin) / (np.exp(margin) + 3) for margin in margins]
    true = [c if target == p else (1 - c) / 3 for c, target, p in zip(chance, targets, predicted, strict=True)]
    assert scores.loss == pytest.approx(-np.log(true).mean(), rel=1e-5)
    order = [3, 4, 1, 2, 0]  # the largest loss first
    rows = list(csv.DictReader(files.predictions.open()))
    assert [row["image"] for row in rows] == [f"of {50 * place}" for place in order]
    for row, place, each in zip(rows, order, worst, strict=True):
        truth, taken = NAMES[targets[place]], NAMES[predicted[place]]
        assert (row["true_class"], row["predicted_class"], row["correct"]) == (truth, taken, str(int(truth == taken)))
        said = [float(row[name]) for name in ("confidence", "probability_of_true_class", "loss")]
        assert said == pytest.approx([chance[place], true[place], -np.log(true[place])], abs=1e-5)
        assert each.image.getextrema() == (50 * place, 50 * place)
        assert (each.name, each.truth, each.predicted) == (f"of {50 * place}", truth, taken)
        assert each.confidence == pytest.approx(chance[place])
    assert numbers == (3, 5)
