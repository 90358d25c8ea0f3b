"""What a step is made of: the loss, the length of its gradient, and the number that the average is told."""

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from timm.data.mixup import mixup_target
from torch import nn

from imixer.training.run.config import OptimConfig, TrainConfig
from imixer.training.tasks.classification import inverse_class_sizes
from imixer.training.tasks.losses import ClassificationLoss
from imixer.training.train_state import TrainState, WeightEMA


def batch(classes=4):
    torch.manual_seed(1)
    return torch.randn(6, classes), torch.arange(6) % classes


def test_labels_are_smoothed_unless_mixing_has_made_them_probabilities():
    logits, labels = batch()
    log_p = logits.log_softmax(1)
    smoothed = -(0.9 * log_p[torch.arange(6), labels] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(ClassificationLoss(0.1)(logits, labels), smoothed)
    mixed = torch.rand(6, 4).softmax(1)
    torch.testing.assert_close(ClassificationLoss(0.1)(logits, mixed), -(mixed * log_p).sum(1).mean())


@pytest.mark.parametrize("limit", [None, 0.01, 1e3])
def test_a_gradient_longer_than_the_limit_is_cut_to_it(limit):
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    state = TrainState(fabric, TrainConfig(optim=OptimConfig(clip_grad=limit)), model, steps_per_epoch=5)
    loss, skipped = state.gradient([batch()], 0)
    free = torch.autograd.grad(state.loss(model(batch()[0]), batch()[1]), model.parameters())
    scale = min(1.0, (limit or 1e9) / torch.cat([g.flatten() for g in free]).norm().item())
    for parameter, gradient in zip(model.parameters(), free, strict=True):
        torch.testing.assert_close(parameter.grad, scale * gradient, rtol=1e-4, atol=1e-9)
    assert not skipped and loss > 0


def test_the_average_counts_steps_from_1_over_epochs(train_quick, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(WeightEMA, "update", lambda self, model, step: told.append(step))
    train_quick(tmp_path / "run", "--ema", "0.9", "--data.batch_size", "512")
    assert told == [1, 2, 3, 4]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_without_images_has_a_finite_weight_and_leaves_mixed_losses_finite(smoothing):
    weights = inverse_class_sizes(np.array([0, 0, 0, 1]), 3)
    assert weights == pytest.approx((4 / 6, 2.0, 1.0))
    labels = torch.tensor([0, 0, 1, 1])
    loss = ClassificationLoss(smoothing, weights)
    for targets in (labels, mixup_target(labels, 3, 0.7, smoothing)):
        assert loss(torch.randn(4, 3), targets).isfinite()


def test_weights_of_classes_weigh_the_loss_of_their_images():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
    weights = inverse_class_sizes(labels.numpy(), 3)
    assert weights == pytest.approx((6 / 9, 1.0, 2.0))
    alike, weighted = ClassificationLoss(0.1), ClassificationLoss(0.1, weights)
    each = torch.stack([alike(logits[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(weighted(logits, labels), (torch.tensor(weights)[labels] * each).mean())
    alone = mixup_target(labels, 3, 1.0, 0.1)  # smoothed, as mixing gives them
    torch.testing.assert_close(weighted(logits, alone), weighted(logits, labels))
    half = mixup_target(labels, 3, 0.5, 0.1)  # with the image at the other end
    both = (weighted.weights[labels[i]] / 2 + weighted.weights[labels[5 - i]] / 2 for i in range(6))
    torch.testing.assert_close(
        weighted(logits, half), sum(w * alike(logits[i : i + 1], half[i : i + 1]) for i, w in enumerate(both)) / 6
    )
