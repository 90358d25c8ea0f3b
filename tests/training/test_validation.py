"""The numbers on held-out data."""

import math

import pytest
import torch
from torch import nn

from imixer.training.run.result import best_row
from imixer.training.segmentation_metrics import SegmentationMetrics
from imixer.training.validation import ValidationMetrics


def test_scores_against_plain_torch():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 7), torch.randint(7, (50,))
    batches = [(logits[start : start + 16], targets[start : start + 16]) for start in range(0, 50, 16)]
    scores = ValidationMetrics(7)
    for _ in range(2):  # nothing is left of an earlier scoring
        metrics = scores.score(nn.Identity(), batches)  # the last batch is smaller
    assert metrics == pytest.approx(
        {
            "val_loss": nn.functional.cross_entropy(logits, targets).item(),
            "val_acc": (logits.argmax(1) == targets).float().mean().item(),
            "val_acc_top5": (logits.topk(5).indices == targets[:, None]).any(1).float().mean().item(),
        }
    )
    confusion = torch.zeros(7, 7, dtype=torch.long)
    for true, predicted in zip(targets, logits.argmax(1), strict=True):
        confusion[true, predicted] += 1
    assert torch.equal(scores.confusion, confusion)


def test_an_epoch_with_logits_that_are_not_finite_has_no_finite_loss_and_is_not_the_best():
    batches = [(torch.eye(7), torch.arange(7)), (torch.full((3, 7), torch.nan), torch.zeros(3, dtype=torch.long))]
    row = ValidationMetrics(7).score(nn.Identity(), batches)
    assert math.isnan(row["val_loss"]) and row["val_acc"] > 0.7
    masks = [(logits[:, :, None, None], targets[:, None, None]) for logits, targets in batches]
    assert math.isnan(SegmentationMetrics(7, (1, 1)).score(nn.Identity(), masks)["val_loss"])
    finite = {"epoch": 1, "val_acc": 0.5, "val_loss": 1.0}
    assert best_row([finite, row | {"epoch": 2}]) == finite
    assert best_row([row | {"epoch": 2}])["epoch"] == 2


def test_five_classes_or_fewer_have_no_top5():
    assert set(ValidationMetrics(5).score(nn.Identity(), [(torch.eye(5), torch.arange(5))])) == {"val_loss", "val_acc"}
