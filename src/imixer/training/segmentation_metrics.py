"""Validate a segmentation: mIoU, the accuracy of pixels, and windows over images larger than the model's input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from imixer.data.image_data import IGNORED


class SegmentationMetrics(nn.Module):
    """The metrics of validation by masks, over the pixels of all processes.

    Choose `imixer.training.evaluate_masks.evaluate_masks` for a finished run.

    Args:
        num_classes: The number of classes.
        window: The size (height, width) of the model's input; larger images are seen by windows.
        overlap: The share of a window that the next one shares.

    Attributes:
        best_by: The metric by which an epoch is the best.
        confusion: The counts of true (row) against predicted (column) class of pixels at the last validation, int64
            (num_classes, num_classes); None before the first.
        iou: The IoU of each class at the last validation, NaN for classes in neither masks nor predictions; None before
            the first.
    """

    best_by: ClassVar[str] = "val_miou"

    def __init__(self, num_classes: int, window: tuple[int, int], overlap: float = 0.5) -> None:
        super().__init__()
        self.window, self.overlap = window, overlap
        self.loss = MeanMetric(nan_strategy=math.nan)  # a mean without them would look fine
        self.metrics = MetricCollection(
            {
                "acc": MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORED),
                "counts": MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED),
                "iou": MulticlassJaccardIndex(num_classes, average="none", ignore_index=IGNORED),
            }
        )
        self.confusion: Tensor | None = None
        self.iou: Tensor | None = None

    @torch.no_grad()
    def score(
        self, model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], rounds: int = 0
    ) -> dict[str, float]:
        """Compute the metrics of a model. All processes must call it.

        Args:
            model: The model, from images (B, in_chans, H, W) to logits (B, num_classes, H, W).
            batches: This process's share of the held-out data, with masks (B, H, W).
            rounds: The smallest number of forward passes; those after the last batch count for nothing. A sharded model
                needs as many on each process, since it computes on all of them or on none.

        Returns:
            `val_loss` (plain cross entropy in nats), `val_acc` (the share of pixels) and `val_miou` (the mean over the
            classes that are there).
        """
        self.loss.reset()
        self.metrics.reset()
        images, done = torch.empty(0), 0
        for images, masks in batches:
            logits = sliding_logits(model, images, self.window, self.overlap)
            self.update(logits, masks)
            done += 1
        for _ in range(done, rounds):
            sliding_logits(model, images, self.window, self.overlap)
        return {f"val_{name}": value for name, value in self.compute().items()}

    def update(self, logits: Tensor, masks: Tensor) -> None:
        """Count in logits (B, num_classes, H, W) and true masks (B, H, W)."""
        counted = int((masks != IGNORED).sum())
        if counted:
            total = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
            self.loss.update(total / counted, weight=counted)
            self.metrics.update(logits.argmax(1), masks)

    def compute(self) -> dict[str, float]:
        """Compute loss, accuracy and mIoU over all that was counted in."""
        computed = self.metrics.compute()
        counts = computed["counts"].cpu()
        there = (counts.sum(0) + counts.sum(1)) > 0
        self.confusion, self.iou = counts, computed["iou"].cpu().where(there, torch.nan)
        return {
            "loss": self.loss.compute().item(),
            "acc": computed["acc"].item(),
            "miou": self.iou.nanmean().item(),
        }


def sliding_logits(
    model: Callable[[Tensor], Tensor], images: Tensor, window: tuple[int, int], overlap: float
) -> Tensor:
    """Compute the logits of images of any size by windows of the size that a model takes.

    Where windows overlap, logits are averaged. Images smaller than a window are extended by zeros, the mean colour.

    Args:
        model: The model, from images (B, in_chans, *window) to logits (B, K, *window).
        images: (B, in_chans, H, W).
        window: Height and width of the model's input.
        overlap: The share of a window that the next one shares at least, from 0, below 1.

    Returns:
        Logits (B, K, H, W), float32.
    """
    height, width = images.shape[-2:]
    if (height, width) == tuple(window):
        return model(images).float()
    padded = F.pad(images, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    sides = padded.shape[-2:]
    total = torch.zeros(0)
    counts = torch.zeros(sides, device=images.device)
    for top in window_starts(sides[0], window[0], overlap):
        for left in window_starts(sides[1], window[1], overlap):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            logits = model(padded[..., rows, columns].contiguous()).float()
            if not len(total):
                total = logits.new_zeros(*logits.shape[:2], *sides)
            total[..., rows, columns] += logits
            counts[rows, columns] += 1
    return (total / counts)[..., :height, :width]


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """List where windows start along a side, so that they cover it and share at least `overlap` of their length."""
    if side <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(side - window) // step) + 1
    return [round(number * (side - window) / (count - 1)) for number in range(count)]
