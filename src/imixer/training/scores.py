"""How good the model is on the held-out data, over all processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix


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
