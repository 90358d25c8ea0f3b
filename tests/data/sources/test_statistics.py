"""Channels, size, mean and deviation from a sample."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imixer.data.sources.statistics import dataset_statistics


def test_mean_and_deviation_are_those_of_the_pixels(make_image):
    images = [make_image(number) for number in range(20)]
    statistics = dataset_statistics(lambda i: images[i], 20)
    pixels = np.stack([np.asarray(image) for image in images]) / 255
    assert statistics.mean == pytest.approx(pixels.mean((0, 1, 2)))
    assert statistics.std == pytest.approx(pixels.std((0, 1, 2)))
    assert statistics.in_chans == 3


def test_gray_images_have_one_channel(make_image):
    images = [make_image(number, mode="L") for number in range(5)]
    statistics = dataset_statistics(lambda i: images[i], 5)
    assert statistics.in_chans == 1
    assert statistics.mean == pytest.approx([np.mean([np.asarray(image) for image in images]) / 255])


def test_one_colour_image_among_gray_ones_makes_three_channels(make_image):
    images = [make_image(0, mode="L"), make_image(1), make_image(2, mode="L")]
    statistics = dataset_statistics(lambda i: images[i], 3)
    assert statistics.in_chans == 3
    expected = np.mean([np.asarray(image.convert("RGB")) for image in images], axis=(0, 1, 2)) / 255
    assert statistics.mean == pytest.approx(expected)


def test_the_native_size_is_height_and_width_when_all_share_it(make_image):
    assert dataset_statistics(lambda i: make_image(i, size=(4, 9)), 5).native_size == (4, 9)
    assert dataset_statistics(lambda i: make_image(i, size=(4 + i, 9)), 5).native_size is None


def test_constant_images_do_not_give_a_deviation_of_zero():
    assert dataset_statistics(lambda i: Image.new("L", (4, 4), 7), 3).std == (1 / 255,)


@pytest.mark.parametrize(("side", "at_most"), [(4, 2000), (200, 500)])
def test_the_sample_is_bounded_and_always_the_same(side, at_most):
    image = Image.new("L", (side, side), 7)
    seen: list[list[int]] = [[], []]
    for indices in seen:
        dataset_statistics(lambda i, indices=indices: indices.append(i) or image, 5000)  # type: ignore[misc, func-returns-value]
    assert len(set(seen[0])) == at_most
    assert seen[0] == seen[1]
