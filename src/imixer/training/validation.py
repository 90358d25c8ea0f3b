"""Validate a model: metrics on the held-out data over all processes, and calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_calibration_error

from imixer.data.image_data import ImageSet
from imixer.errors import InputError


def require_held_out(data: ImageSet, processes: int) -> None:
    """Check that each process has a held-out image to validate on.

    Args:
        data: The data set.
        processes: The number of processes.

    Raises:
        InputError: If there are fewer images than processes.
    """
    if (count := len(data.val)) < processes:
        raise InputError(
            f"{data.name} has {count:,} held-out image{'' if count == 1 else 's'} for {processes} processes; use fewer "
            "devices"
        )


class ValidationMetrics(nn.Module):
    """The metrics of validation: loss, accuracy and confusion matrix, over the images of all processes.

    Choose `imixer.training.evaluate.evaluate` for a finished run.

    Args:
        num_classes: The number of classes. Above five, the top-5 accuracy is computed too.

    Attributes:
        best_by: The metric by which an epoch is the best.
        confusion: The counts of true (row) against predicted (column) class at the last validation, int64
            (num_classes, num_classes); None before the first.
    """

    best_by: ClassVar[str] = "val_acc"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss = MeanMetric(nan_strategy=math.nan)  # a mean without them would look fine
        accuracies: dict[str, Metric | MetricCollection] = {"val_acc": MulticlassAccuracy(num_classes, average="micro")}
        if num_classes > 5:
            accuracies["val_acc_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        self.accuracies = MetricCollection(accuracies, compute_groups=False)
        self.counts = MulticlassConfusionMatrix(num_classes)
        self.confusion: Tensor | None = None

    @torch.no_grad()
    def score(
        self, model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], rounds: int = 0
    ) -> dict[str, float]:
        """Compute the metrics of a model. All processes must call it.

        Args:
            model: The model, from images (B, in_chans, H, W) to logits (B, num_classes).
            batches: This process's share of the held-out data.
            rounds: The smallest number of forward passes; those after the last batch count for nothing. A sharded model
                needs as many on each process, since it computes on all of them or on none.

        Returns:
            `val_loss` (plain cross entropy in nats), `val_acc`, and `val_acc_top5` above five classes.
        """
        metrics = (self.loss, self.accuracies, self.counts)
        for metric in metrics:
            metric.reset()
        images, done = torch.empty(0), 0
        for images, targets in batches:
            logits = model(images).float()
            self.loss.update(F.cross_entropy(logits, targets), weight=len(targets))
            self.accuracies.update(logits, targets)
            self.counts.update(logits, targets)
            done += 1
        for _ in range(done, rounds):
            model(images)
        self.confusion = self.counts.compute().cpu()
        return {"val_loss": self.loss.compute().item()} | {k: v.item() for k, v in self.accuracies.compute().items()}


BINS = 15


@dataclass(frozen=True)
class ConfidenceBin:
    """A bin of confidence, the probability of the most probable class of an image.

    It holds the images with a confidence from `lower` to below `upper`. The last one holds those of 1, too.

    Args:
        lower: The lower end, which belongs to the bin.
        upper: The upper end, which does not.
        images: The number of images.
        confidence: Their mean confidence. None without images.
        accuracy: The share of them that were recognised. None without images.
    """

    lower: float
    upper: float
    images: int
    confidence: float | None
    accuracy: float | None


def calibration_error(logits: Tensor, targets: Tensor) -> float:
    """Compute the expected calibration error: the mean of |accuracy - confidence| over bins, weighted by images.

    Args:
        logits: The logits (images, num_classes).
        targets: The true classes (images,).

    Returns:
        The error over `BINS` bins of equal width, from 0 to 1.

    Source: Guo et al., On calibration of modern neural networks, 2017, (3).
    """
    # torchmetrics would give a confidence of exactly 1 a bin of its own.
    chances = logits.softmax(1).clamp_max(1 - torch.finfo(logits.dtype).eps)
    return multiclass_calibration_error(chances, targets, logits.shape[1], n_bins=BINS, norm="l1").item()


def reliability(logits: Tensor, targets: Tensor) -> list[ConfidenceBin]:
    """Compute the reliability diagram: accuracy and mean confidence in each bin of `calibration_error`.

    Args:
        logits: The logits (images, num_classes).
        targets: The true classes (images,).

    Returns:
        The `BINS` bins, of rising confidence.

    Source: Guo et al., On calibration of modern neural networks, 2017, (1)-(2).
    """
    confidence, predicted = logits.softmax(1).max(1)
    ends = torch.linspace(0, 1, BINS + 1)
    place = torch.bucketize(confidence, ends[1:-1], right=True)
    images = torch.bincount(place, minlength=BINS)
    confidences = torch.bincount(place, confidence.double(), BINS) / images
    accuracies = torch.bincount(place, (predicted == targets).double(), BINS) / images
    return [
        ConfidenceBin(float(lower), float(upper), int(n), float(c) if n else None, float(a) if n else None)
        for lower, upper, n, c, a in zip(ends, ends[1:], images, confidences, accuracies, strict=False)
    ]
