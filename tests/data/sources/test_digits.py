"""The built-in digits."""

from __future__ import annotations

import numpy as np
import pytest

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sources.open import open_dataset


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_dataset(DataConfig())


def pixels(items):
    return np.stack([np.asarray(items[i][0]) for i in range(len(items))])


def labels(items):
    return np.array([items[i][1] for i in range(len(items))])


def test_a_fifth_of_the_1797_digits_is_held_out(digits):
    assert (len(digits.train), len(digits.val)) == (1437, 360)


def test_images_are_gray_eight_by_eight_over_the_full_range(digits):
    image, label = digits.train[0]
    assert (image.mode, image.size, type(label)) == ("L", (8, 8), int)
    assert (digits.in_chans, digits.native_size, digits.name) == (1, (8, 8), "digits")
    assert (pixels(digits.train).min(), pixels(digits.train).max()) == (0, 255)
    assert set(np.unique(pixels(digits.train))) == {round(value * 255 / 16) for value in range(17)}


def test_classes_are_the_ten_digits_in_even_shares(digits):
    assert digits.class_names == tuple("0123456789")
    assert all(35 <= count <= 37 for count in np.bincount(labels(digits.val)))


def test_mean_and_deviation_are_those_of_the_training_part(digits):
    assert digits.mean == pytest.approx([pixels(digits.train).mean() / 255])
    assert digits.std == pytest.approx([pixels(digits.train).std() / 255])


def test_the_split_depends_on_its_seed_only(digits):
    again, other = open_dataset(DataConfig()), open_dataset(DataConfig(split_seed=1))
    assert np.array_equal(pixels(digits.val), pixels(again.val))
    assert not np.array_equal(pixels(digits.val), pixels(other.val))


def test_val_fraction_sets_the_share():
    assert len(open_dataset(DataConfig(val_fraction=0.5)).val) == 899
