"""Evaluate the segmentation of a finished run on its held-out images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.data.image_data import IGNORED, MaskedData
from imixer.plotting import drawn
from imixer.progress import announce, with_progress
from imixer.training.best_weights import WhichWeights
from imixer.training.evaluate import (
    EvaluationFiles,
    evaluation_files,
    image_names,
    result_kept,
    rounded,
    tell_of_test_set,
)
from imixer.training.figures import draw_confusion_matrix
from imixer.training.finished_run import FinishedRun
from imixer.training.mask_figures import MaskPanel, draw_masks
from imixer.training.mask_logits import MaskPredictor
from imixer.training.run.confusion import write_confusion
from imixer.training.segmentation_metrics import SegmentationMetrics
from imixer.writing import csv_text, json_text, write_text

_WORST = 16  # images in the picture


@dataclass(frozen=True)
class PixelClassScore:
    """The scores of one class of pixels.

    Args:
        name: The name of the class.
        pixels: The number of its pixels in the true masks.
        iou: The intersection over union. None if it is in neither masks nor predictions.
        accuracy: The share of its pixels that were recognised, its recall. None without pixels.
        precision: The share of the pixels taken for this class that are of it. None if none was.
    """

    name: str
    pixels: int
    iou: float | None
    accuracy: float | None
    precision: float | None


@dataclass(frozen=True)
class MaskEvaluation:
    """The scores of a segmentation on images with masks.

    Args:
        model: The directory of the model.
        data: The name of the data set.
        images: The number of images.
        miou: The mean IoU of the classes that are there, each over the pixels of all images.
        pixel_accuracy: The share of pixels whose most probable class is the true one.
        loss: The mean cross entropy of a pixel, in nats.
        images_per_s: The speed of loading and model together.
        device: The device that computed.
        skipped: The names of images that were left out.
        per_class: The scores of each class, in the order of the logits.
        checkpoint: Whose weights were evaluated: those of the `last` epoch, or of the `best`.
        ignored: The share of the pixels of the true masks that count for nothing.
        unsolved: The number of windows of which the inverse of a block was not found.
    """

    model: str
    data: str
    images: int
    miou: float
    pixel_accuracy: float
    loss: float
    images_per_s: float
    device: str
    skipped: Sequence[str] = ()
    per_class: list[PixelClassScore] = field(default_factory=list)
    checkpoint: WhichWeights = "last"
    ignored: float = 0.0
    unsolved: int = 0


@dataclass(frozen=True)
class _ImageScore:
    place: int
    miou: float
    accuracy: float
    loss: float


def evaluate_masks(
    run: FinishedRun, data_path: str | None = None, batch_size: int = 0, test: str | None = None
) -> tuple[MaskEvaluation, EvaluationFiles]:
    """Evaluate a segmentation at the size of the images, and write what came out into the run's outputs.

    The files are `evaluation.json`, `predictions.csv` with the worst image first, `confusion_matrix.csv` of pixels, its
    figure, and `worst_images.png`; for a test set, the same with `test_` before their names.

    Args:
        run: The run.
        data_path: The place where its data lie now. Default: where they lay in training.
        batch_size: Images of one forward pass. Default: as in training.
        test: A folder of images and masks, all of which are the test set. Default: the held-out images.

    Returns:
        The scores, and the files.

    Raises:
        InputError: If the data are not there or do not fit the run, the logits are not finite, or the files cannot be
            written.
    """
    data = run.masked_data(data_path, test)
    if test is not None:
        tell_of_test_set(test, data.left_out, data.notes)
    metrics = SegmentationMetrics(len(run.class_names), run.input_size[1:], run.config.masks.overlap)
    predictor, size = MaskPredictor(run), batch_size or run.config.micro_batch
    files = evaluation_files(run.make_outputs(), is_test=test is not None)
    files.check()
    announce(f"evaluating {len(data.val):,} images")
    scores: list[_ImageScore] = []
    pixels = ignored = 0
    began = time.perf_counter()
    starts = range(0, len(data.val), size)
    for start in with_progress(([start] for start in starts), len(starts), "evaluating batches"):
        items = [data.val[place] for place in range(start, min(start + size, len(data.val)))]
        for logits, (_, mask) in zip(predictor.logits([image for image, _ in items]), items, strict=True):
            truth = torch.from_numpy(mask).long()
            metrics.update(logits[None], truth[None])
            pixels, ignored = pixels + truth.numel(), ignored + int((truth == IGNORED).sum())
            scores.append(_score_image(len(scores), logits, truth))
    speed = len(scores) / (time.perf_counter() - began)
    whole = metrics.compute()
    assert metrics.confusion is not None and metrics.iou is not None  # set by compute
    evaluation = MaskEvaluation(
        model=run.name if run.packaged else str(run.directory.model),
        data=data.name,
        images=len(scores),
        miou=whole["miou"],
        pixel_accuracy=whole["acc"],
        loss=whole["loss"],
        images_per_s=round(speed, 1),
        device=str(run.device),
        skipped=data.skipped,
        per_class=_per_class(metrics.confusion, metrics.iou, run.class_names),
        checkpoint=run.checkpoint,
        ignored=ignored / pixels,
        unsolved=predictor.unsolved,
    )
    predictor.tell_unsolved()
    scores.sort(key=lambda score: (score.miou, -score.loss))
    names = image_names(data.val, "held-out" if test is None else "test")
    rows = [[names[s.place], *(f"{value:.6f}" for value in (s.miou, s.accuracy, s.loss))] for s in scores]
    counts = metrics.confusion
    with result_kept(f"mIoU {evaluation.miou:.2%}, accuracy of pixels {evaluation.pixel_accuracy:.2%}"):
        write_text(files.scores, json_text(rounded(asdict(evaluation))))
        write_text(files.predictions, csv_text(["image", "miou", "pixel_accuracy", "loss"], rows))
        write_confusion(counts.tolist(), run.class_names, files.confusion_counts)
    drawn(
        files.confusion_matrix,
        lambda path: draw_confusion_matrix(counts.numpy(), run.class_names, path, title=data.name, unit="pixels"),
    )
    drawn(files.worst_images, lambda path: _draw_worst(scores[:_WORST], names, data, predictor, path))
    return evaluation, files


def _draw_worst(
    worst: Sequence[_ImageScore], names: Sequence[str], data: MaskedData, predictor: MaskPredictor, path: Path
) -> None:
    panels = []
    for score in worst:
        image, truth = data.val[score.place]
        title = f"{Path(names[score.place]).name}, mIoU {score.miou:.1%}"
        panels.append(MaskPanel(image, predictor.classes([image])[0], truth, title))
    heading = f"the {len(worst)} of {len(data.val):,} images with the lowest mIoU, the worst first"
    draw_masks(panels, data.class_names, data.palette, path, heading)


def _score_image(place: int, logits: Tensor, truth: Tensor) -> _ImageScore:
    """Score an image by logits (num_classes, H, W) and its true mask (H, W)."""
    known = truth != IGNORED
    if not known.any():
        return _ImageScore(place, 1.0, 1.0, 0.0)
    predicted, classes = logits.argmax(0)[known], truth[known]
    n = len(logits)
    counts = torch.bincount(classes * n + predicted, minlength=n * n).reshape(n, n).double()
    both = counts.sum(0) + counts.sum(1) - counts.diag()
    there = both > 0
    return _ImageScore(
        place,
        float((counts.diag()[there] / both[there]).mean()),
        float((predicted == classes).double().mean()),
        float(F.cross_entropy(logits[None], truth[None], ignore_index=IGNORED)),
    )


def _per_class(counts: Tensor, iou: Tensor, names: Sequence[str]) -> list[PixelClassScore]:
    hits, true, taken = counts.diag(), counts.sum(1), counts.sum(0)
    return [
        PixelClassScore(
            name,
            int(t),
            None if bool(u.isnan()) else float(u),
            float(h / t) if t else None,
            float(h / p) if p else None,
        )
        for name, u, h, t, p in zip(names, iou, hits, true, taken, strict=True)
    ]
