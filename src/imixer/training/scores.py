"""How good the model is on the held-out data, over all processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_calibration_error


class Scores(nn.Module):
    """Loss, accuracy and confusion on held-out data.

    Args:
        num_classes: Number of classes. Above five, the top-5 accuracy is scored too.

    Attributes:
        confusion: Counts of true (row) against predicted (column) class at the last scoring, int64 (classes, classes).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss = MeanMetric()
        accuracies: dict[str, Metric | MetricCollection] = {"val_acc": MulticlassAccuracy(num_classes, average="micro")}
        if num_classes > 5:
            accuracies["val_acc_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        self.accuracies = MetricCollection(accuracies, compute_groups=False)
        self.counts = MulticlassConfusionMatrix(num_classes)
        self.confusion: Tensor | None = None

    @torch.no_grad()
    def score(self, model: Any, batches: Iterable[tuple[Tensor, Tensor]], rounds: int = 0) -> dict[str, float]:
        """`val_loss` (plain cross entropy, nats), `val_acc` and perhaps `val_acc_top5`, over all processes' images.

        Args:
            model: Images -> logits.
            batches: This process's share of the held-out data.
            rounds: How often the model is called at least, for nothing after the last batch: a sharded model computes
                on all processes or on none.
        """
        metrics = (self.loss, self.accuracies, self.counts)
        for metric in metrics:
            metric.reset()
        images, done = None, 0
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
    """The images whose most probable class has a probability from `lower` to below `upper`; 1 is in the last bin.

    Args:
        lower: Lower end.
        upper: Upper end.
        images: Number of images.
        confidence: Mean of that probability. None without images.
        accuracy: Share of the images recognised. None without images.
    """

    lower: float
    upper: float
    images: int
    confidence: float | None
    accuracy: float | None


def calibration_error(logits: Tensor, targets: Tensor) -> float:
    """Expected calibration error: |accuracy - confidence| of `BINS` equal bins of confidence, weighted by images.

    Args:
        logits: (images, classes).
        targets: True classes (images,).

    Source: Guo et al., On calibration of modern neural networks, 2017, (3).
    """
    # torchmetrics would give a confidence of exactly 1 a bin of its own.
    chances = logits.softmax(1).clamp_max(1 - torch.finfo(logits.dtype).eps)
    return multiclass_calibration_error(chances, targets, logits.shape[1], n_bins=BINS, norm="l1").item()


def reliability(logits: Tensor, targets: Tensor) -> list[ConfidenceBin]:
    """The bins of `calibration_error`, of rising confidence.

    Args:
        logits: (images, classes).
        targets: True classes (images,).
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
