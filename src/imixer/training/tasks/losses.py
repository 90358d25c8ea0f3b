"""The losses of the tasks. Each is a few numbers, so that a dumped step can carry it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.data.device.transfer import to_device
from imixer.data.image_data import IGNORED


class Loss(Protocol):
    """A training loss: a frozen dataclass of numbers that is called with logits and targets."""

    task: ClassVar[str]

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of a batch, a scalar in nats."""
        ...

    def example_targets(self, images: Tensor, num_classes: int) -> Tensor:
        """Make targets of the right shape for images (B, in_chans, H, W), to measure time with."""
        ...


@dataclass(frozen=True)
class ClassificationLoss:
    """The cross entropy of classes of images.

    Args:
        smoothing: Label smoothing of class numbers.
        weights: Weight of the images of each class. None: all alike.
    """

    task: ClassVar[str] = "classify"
    smoothing: float = 0.0
    weights: tuple[float, ...] | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the cross entropy in nats.

        Args:
            logits: (B, num_classes).
            targets: Class numbers (B,), or mixed classes (B, num_classes), which are smoothed already.

        Returns:
            The mean over the batch, a scalar. With weights, the mean of the weighted losses of the images.
        """
        mixed = targets.is_floating_point()
        smoothing = 0.0 if mixed else self.smoothing
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        weights = _on_device_of(losses, self.weights)
        if not mixed:
            return (weights[targets] * losses).mean()
        unsmoothed = (targets.to(losses.dtype) - self.smoothing / targets.shape[1]) / (1 - self.smoothing)
        return (unsmoothed @ weights * losses).mean()

    def example_targets(self, images: Tensor, num_classes: int) -> Tensor:
        """Make class numbers (B,)."""
        return torch.arange(len(images), device=images.device) % num_classes


@dataclass(frozen=True)
class SegmentationLoss:
    """The cross entropy of classes of pixels, and the Dice loss of the classes' masks.

    The Dice loss is 1 - (2 sum p t + 1) / (sum p + sum t + 1), with sums over all pixels of the batch, and the mean
    over classes. Pixels of `IGNORED` count in neither.

    Args:
        smoothing: Label smoothing of the cross entropy.
        dice: Weight of the Dice loss.
        weights: Weight of each class in the cross entropy. None: all alike.

    Source: Milletari et al., V-Net, arXiv 1606.04797, section 3, with p + t for their squares.
    """

    task: ClassVar[str] = "segment"
    smoothing: float = 0.0
    dice: float = 1.0
    weights: tuple[float, ...] | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: (B, K, H, W).
            targets: Class numbers (B, H, W), `IGNORED` where nothing counts.

        Returns:
            The loss of the batch, a scalar.
        """
        weight = None if self.weights is None else _on_device_of(logits, self.weights)
        counted = targets != IGNORED
        known = targets.masked_fill(~counted, 0)
        weights = counted.to(logits.dtype) if weight is None else weight[known] * counted
        judged = targets.masked_fill(weights == 0, IGNORED)  # of the others, smoothing would have a loss
        total = F.cross_entropy(
            logits, judged, weight, ignore_index=IGNORED, label_smoothing=self.smoothing, reduction="sum"
        )
        loss = total / weights.sum().clamp(min=1e-9)
        if not self.dice:
            return loss
        chances = logits.softmax(1) * counted[:, None]
        truth = F.one_hot(known, logits.shape[1]).movedim(-1, 1).to(chances.dtype) * counted[:, None]
        shared, both = (chances * truth).sum((0, 2, 3)), (chances + truth).sum((0, 2, 3))
        return loss + self.dice * (1 - (2 * shared + 1) / (both + 1)).mean()

    def example_targets(self, images: Tensor, num_classes: int) -> Tensor:
        """Make class numbers (B, H, W)."""
        return torch.zeros(images.shape[0], *images.shape[-2:], dtype=torch.int64, device=images.device)


def _on_device_of(values: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Return weights of classes (K,) where values are, and in their dtype, without making the host wait."""
    exact = np.float64 if values.dtype == torch.float64 else np.float32
    return to_device(np.asarray(weights, exact), values.device).to(values.dtype)


_LOSSES: dict[str, type[ClassificationLoss] | type[SegmentationLoss]] = {
    loss.task: loss for loss in (ClassificationLoss, SegmentationLoss)
}


def loss_settings(loss: Loss) -> dict[str, Any]:
    """Return what builds a loss again: its task and its numbers."""
    fields: Any = loss
    return {"task": loss.task} | asdict(fields)


def build_loss(settings: dict[str, Any]) -> Loss:
    """Build a loss from what `loss_settings` returned.

    Args:
        settings: The task and the numbers.
    """
    numbers = {name: value for name, value in settings.items() if name != "task"}
    if numbers.get("weights") is not None:
        numbers["weights"] = tuple(numbers["weights"])
    return _LOSSES[settings["task"]](**numbers)
