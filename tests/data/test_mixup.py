"""Mixup and CutMix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imixer.data.config import DataConfig
from imixer.data.transforms import build_mixup
from imixer.errors import InputError


def test_no_mixing_by_default():
    assert build_mixup(DataConfig(), 64, 10, 0.1) is None


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_distributions_over_the_classes(mixup, cutmix):
    np.random.seed(0)
    mixer = build_mixup(DataConfig(mixup=mixup, cutmix=cutmix), 4, 3, 0.1)
    assert mixer is not None
    images, targets = mixer(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    assert images.shape == (4, 1, 8, 8)
    assert targets.shape == (4, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_label_smoothing_is_part_of_the_targets():
    mixer = build_mixup(DataConfig(mixup=0.8), 2, 4, 0.2)
    assert mixer is not None
    _, targets = mixer(torch.rand(2, 1, 8, 8), torch.tensor([3, 3]))
    torch.testing.assert_close(targets[0], torch.tensor([0.05, 0.05, 0.05, 0.85]))


def test_an_odd_batch_is_refused_by_name():
    with pytest.raises(InputError, match=r"data\.batch_size is 33.*even"):
        build_mixup(DataConfig(mixup=0.8, batch_size=33), 33, 10, 0.0)
    assert build_mixup(DataConfig(batch_size=33), 33, 10, 0.0) is None
