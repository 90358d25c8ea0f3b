"""Shifts with reflection, and alternating flips, in both pipelines."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from imixer.data.batches import TrainingImages
from imixer.data.config import DataConfig
from imixer.data.device.batches import Normalise, ResidentTraining
from imixer.data.device.crops import training_crop
from imixer.data.device.resident import ResidentImages
from imixer.data.sampler import BatchOrder
from imixer.data.transforms import AlternatingFlips, alternating_flips, shifts, train_transform
from imixer.errors import InputError

CPU = torch.device("cpu")
REFLECT = {"crop": "reflect", "shift": 2}


@pytest.mark.parametrize("crop", ["pad", "reflect"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_shift_on_the_device_is_torchvisions_pad_and_crop(crop, flip):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (25, 3, 7, 9), dtype=np.uint8))
    made = training_crop(DataConfig(crop=crop, shift=2), (7, 9), (7, 9), CPU)
    draws = made.draw(np.random.default_rng(0), 25)
    offsets = [(i, j) for i in range(5) for j in range(5)]
    draws = draws._replace(rows=np.array([i for i, _ in offsets]), columns=np.array([j for _, j in offsets]))
    draws = made.mirrored(draws, np.full(25, flip))
    out = torch.empty_like(images)
    made(images, draws, out)
    padded = F.pad(images, [2, 2, 2, 2], padding_mode="reflect" if crop == "reflect" else "constant")
    for image, whole, (i, j) in zip(out, padded, offsets, strict=True):
        expected = whole[:, i : i + 7, j : j + 9]
        assert torch.equal(image, expected.flip(2) if flip else expected)


def test_both_pipelines_shift_alike():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    transform = train_transform(DataConfig(**REFLECT), (3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    torch.manual_seed(0)
    theirs = {(transform(Image.fromarray(image)) * 127.5 + 127.5).round().byte().numpy().tobytes() for _ in range(400)}
    crop = training_crop(DataConfig(**REFLECT), (8, 8), (8, 8), CPU)
    images = torch.from_numpy(image).permute(2, 0, 1).repeat(400, 1, 1, 1)
    out = torch.empty_like(images)
    crop(images, crop.draw(np.random.default_rng(0), 400), out)
    assert {each.numpy().tobytes() for each in out} == theirs
    assert len(theirs) == 25


def test_an_image_turns_round_from_each_epoch_to_the_next():
    flips, numbers = AlternatingFlips(1000, seed=3, first=0.5), np.arange(1000)
    first = flips(numbers, 0)
    assert 400 < first.sum() < 600
    for epoch in range(6):
        assert (flips(numbers, epoch) == (first ^ (epoch % 2 == 1))).all()
        assert (flips(numbers[::-1], epoch) == flips(numbers, epoch)[::-1]).all()
    assert (AlternatingFlips(1000, 3, 0.5)(numbers, 0) == first).all()
    assert (AlternatingFlips(1000, 4, 0.5)(numbers, 0) != first).any()


def test_independent_flips_are_left_to_the_crop():
    assert alternating_flips(DataConfig(hflip=0.5), 10, 0) is None


def resident(config, count=40, batch_size=8, seed=5):
    """Batches of images that show their number, and whether they are mirrored."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4)
    images[:, :, :, 0] = 255
    labels = torch.arange(count)
    crop = training_crop(config, (4, 4), (4, 4), CPU)
    order = BatchOrder(count, batch_size, seed)
    normalise = Normalise((0.0,), (1 / 255,), CPU)
    flips = alternating_flips(config, count, seed)
    return ResidentTraining(ResidentImages(images, labels), order, crop, None, normalise, None, None, flips=flips)


def seen(batches, epoch, start=0):
    """Image number -> whether it was mirrored."""
    return {
        int(label): bool(image[0, 0, -1] == 255)
        for images, labels in batches.epoch(epoch, start)
        for image, label in zip(images, labels, strict=True)
    }


def test_the_device_pipeline_alternates_by_image_wherever_an_epoch_is_entered():
    config = DataConfig(crop="center", hflip=0.5, flip="alternating")
    batches = resident(config)
    first, second = seen(batches, 0), seen(batches, 1)
    assert 0 < sum(first.values()) < 40
    assert {number: not flip for number, flip in first.items()} == second
    assert seen(batches, 2) == first
    assert seen(batches, 0, start=3).items() <= first.items()


def test_the_other_pipeline_mirrors_the_same_images():
    config = DataConfig(crop="center", hflip=0.5, flip="alternating")
    expected = {epoch: seen(resident(config), epoch) for epoch in (0, 1)}
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[:, 0] = 255
    items = [(Image.fromarray(pixels), number) for number in range(40)]
    transform = train_transform(DataConfig(crop="center"), (1, 4, 4), (0.0,), (1.0,))
    images = TrainingImages(items, transform, 5, alternating_flips(config, 40, 5))
    for epoch in (0, 1):
        assert {n: bool(images[n, epoch][0][0, 0, -1]) for n in range(40)} == expected[epoch]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 0}, "data.shift is 0"),
        ({"shift": 2, "crop": "resized"}, "data.shift is 2 and data.crop resized"),
        ({"flip": "alternating"}, "data.hflip 0.5"),
        ({"flip": "alternating", "hflip": 1.0}, "data.hflip 1, by which all images"),
        (
            {"scale": (0.9, 0.2)},
            r"data.scale is \[0.9, 0.2\]; give two numbers above 0, up to 1, the smaller one first",
        ),
        ({"scale": (-1.0, 0.5)}, r"data.scale is \[-1, 0.5\]"),
        ({"scale": (0.0, 0.0)}, r"data.scale is \[0, 0\]"),
        ({"scale": (2.0, 3.0)}, r"data.scale is \[2, 3\]"),
        ({"scale": (math.nan, 1.0)}, r"data.scale is \[nan, 1\]"),
        ({"ratio": (0.0, 1.0)}, r"data.ratio is \[0, 1\]; give two numbers above 0, the smaller one first"),
        ({"ratio": (1.0, math.inf)}, r"data.ratio is \[1, inf\]"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**settings)


def test_a_shift_beyond_the_image_is_refused():
    assert shifts(DataConfig(shift=7), (8, 8)) == (7, 7)
    assert shifts(DataConfig(), (32, 64)) == (4, 8)
    with pytest.raises(InputError, match=r"data\.shift is 8, and images have 8x8"):
        shifts(DataConfig(shift=8), (8, 8))
