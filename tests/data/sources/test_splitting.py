"""The held-out part."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from imixer.data.sources.splitting import require_two_classes, stratified_split
from imixer.errors import InputError

NAMES = ("cat", "dog", "emu")


def split(labels, fraction=0.2, seed=0):
    return stratified_split(np.array(labels), NAMES, fraction=fraction, seed=seed, what="pets")


def test_each_item_is_in_exactly_one_part():
    train, val = split([0, 1, 2] * 20)
    assert sorted([*train, *val]) == list(range(60))


def test_each_class_keeps_its_share():
    labels = np.array([0] * 50 + [1] * 30 + [2] * 20)
    _, val = split(labels)
    assert np.bincount(labels[val]).tolist() == [10, 6, 4]


def test_the_seed_decides():
    labels = [0, 1, 2] * 20
    assert np.array_equal(split(labels, seed=1)[1], split(labels, seed=1)[1])
    assert not np.array_equal(split(labels, seed=1)[1], split(labels, seed=2)[1])


def test_a_class_with_one_image_is_named():
    with pytest.raises(InputError, match="class 'dog' of pets has 1 image"):
        split([0] * 10 + [1] + [2] * 10)


def test_a_held_out_part_smaller_than_the_number_of_classes_is_refused_with_a_share_that_works():
    with pytest.raises(
        InputError, match=r"val_fraction 0\.1 .* leaves 2 for validation.* give a share from 0\.25 to 0\.75"
    ):
        split([0, 1, 2] * 4, fraction=0.1)
    split([0, 1, 2] * 4, fraction=0.25)
    split([0, 1, 2] * 4, fraction=0.75)


def test_a_training_part_smaller_than_the_number_of_classes_is_refused():
    with pytest.raises(InputError, match="leaves 1 for training"):
        split([0, 1, 2] * 4, fraction=0.9)


@pytest.mark.parametrize("counts", [(100, 2), (2, 100, 2), (60, 2, 31)])
def test_a_class_of_few_images_has_one_in_either_part(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    for seed in range(5):
        train, val = split(labels, seed=seed)
        assert sorted([*train, *val]) == list(range(len(labels))) and len(val) == -(-len(labels) // 5)
        assert all(np.bincount(labels[part], minlength=len(counts)).min() >= 1 for part in (train, val))
        assert np.array_equal(val, split(labels, seed=seed)[1])


def test_a_split_that_has_every_class_is_scikit_learns():
    labels = np.array([0] * 50 + [1] * 30 + [2] * 20)
    train, val = train_test_split(np.arange(100), test_size=20, random_state=3, stratify=labels)
    ours = split(labels, seed=3)
    assert np.array_equal(ours[0], np.sort(train)) and np.array_equal(ours[1], np.sort(val))


def test_a_class_left_without_training_images_is_named():
    with pytest.raises(InputError, match="without training images"):
        split([0] * 40 + [1] * 40 + [2] * 2, fraction=0.9)


def test_one_class_is_not_enough():
    with pytest.raises(InputError, match="pets has only the class 'dog'"):
        require_two_classes(np.array([1, 1]), NAMES, "pets")
