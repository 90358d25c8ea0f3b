"""Whether a model is right as often as it says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

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
