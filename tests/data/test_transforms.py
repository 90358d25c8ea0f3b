"""From images to tensors."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, AugmentOp

from imixer.data.config import DataConfig
from imixer.data.transforms import eval_transform, posterize, train_transform
from imixer.errors import InputError

POSTERIZE = {"Posterize", "PosterizeIncreasing", "PosterizeOriginal"}
CROPS = ["pad", "resized", "center"]
GRAY, COLOUR = ((0.5,), (0.25,)), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def stats(channels):
    return GRAY if channels == 1 else COLOUR


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize(("crop", "interpolation"), [("pad", "random"), ("resized", "bilinear"), ("center", "bicubic")])
@pytest.mark.parametrize("size", [(1, 8, 8), (3, 64, 64), (3, 12, 20), (1, 20, 12), (1, 1, 1)])
def test_every_crop_gives_the_input_size_from_any_image(make_image, crop, size, interpolation):
    config = DataConfig(crop=crop, interpolation=interpolation, hflip=0.5, random_erasing=0.5)
    train = train_transform(config, size, *stats(size[0]))
    validate = eval_transform(size, *stats(size[0]), 0.9, interpolation)
    for image_size in ((8, 8), (30, 41), (300, 7)):
        image = make_image(size=image_size, mode="L" if size[0] == 1 else "RGB")
        assert (train(image).shape, train(image).dtype, validate(image).shape) == (size, torch.float32, size)


def test_values_are_normalised_with_mean_and_deviation(make_image):
    image = make_image(1)
    expected = (np.asarray(image) / 255 - COLOUR[0]) / COLOUR[1]
    for transform in (
        eval_transform((3, 8, 8), *COLOUR, 1.0, "bicubic"),
        train_transform(DataConfig(crop="center"), (3, 8, 8), *COLOUR),
    ):
        np.testing.assert_allclose(transform(image).permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_pad_crop_shifts_by_at_most_an_eighth_of_the_side_and_fills_with_black():
    image = Image.fromarray(np.arange(1, 129, dtype=np.uint8).reshape(8, 16))
    transform = train_transform(DataConfig(crop="pad"), (1, 8, 16), (0.0,), (1.0,))
    padded = np.pad(np.asarray(image), ((1, 1), (2, 2)))
    windows = {padded[y : y + 8, x : x + 16].tobytes(): (y, x) for y in range(3) for x in range(5)}
    seen = {windows[(transform(image) * 255).round().byte().numpy().tobytes()] for _ in range(300)}
    assert seen == set(windows.values())


def test_pad_crop_shifts_tiny_images_by_one_pixel():
    image = Image.fromarray(np.arange(1, 17, dtype=np.uint8).reshape(4, 4))
    transform = train_transform(DataConfig(crop="pad"), (1, 4, 4), (0.0,), (1.0,))
    assert len({transform(image).numpy().tobytes() for _ in range(200)}) == 9


def test_center_crop_without_flip_is_not_random(make_image):
    image = make_image(size=(20, 30))
    transform = train_transform(DataConfig(crop="center", crop_pct=0.875), (3, 16, 16), *COLOUR)
    assert torch.equal(transform(image), transform(image))
    torch.testing.assert_close(transform(image), eval_transform((3, 16, 16), *COLOUR, 0.875, "bicubic")(image))


@pytest.mark.parametrize("crop", CROPS)
def test_a_flip_with_probability_one_mirrors(make_image, crop):
    image = make_image(size=(16, 16))
    results = []
    for hflip in (0.0, 1.0):
        config = DataConfig(crop=crop, hflip=hflip, scale=(1.0, 1.0), ratio=(1.0, 1.0))
        if crop == "pad":
            image = Image.new("RGB", (16, 16))
            image.paste((255, 0, 0), (0, 0, 8, 16))
        results.append(train_transform(config, (3, 16, 16), *COLOUR)(image))
    left, right = (result[0, 4:12, 4:7].mean() for result in results)
    if crop == "pad":
        assert left > right
    else:
        torch.testing.assert_close(results[1], results[0].flip(2))


def test_random_erasing_writes_noise_pixel_by_pixel():
    config = DataConfig(random_erasing=1.0, crop="center")
    seed_all(0)
    erased = train_transform(config, (1, 16, 16), (0.0,), (1.0,))(Image.new("L", (16, 16)))
    noise = erased[erased != 0]
    assert 1 < len(noise) < 256
    assert len(noise.unique()) == len(noise)


@pytest.mark.parametrize("crop", CROPS)
def test_the_global_seed_decides_the_augmentation(make_image, crop):
    config = DataConfig(crop=crop, hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    transform = train_transform(config, (3, 32, 32), *COLOUR)
    runs = []
    for seed in (1, 1, 2):
        seed_all(seed)
        runs.append(torch.stack([transform(make_image(size=(40, 40))) for _ in range(8)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m5-n3-p0.9-tweights", "original-mstd0.5", "v0", "augmix-m5-w4-d2", "3a"]
)
@pytest.mark.parametrize(("size", "mode"), [((1, 8, 8), "L"), ((3, 16, 16), "RGB")])
def test_policies_work_on_gray_and_colour_images(make_image, policy, size, mode):
    transform = train_transform(DataConfig(auto_augment=policy), size, *stats(size[0]))
    image = make_image(size=size[1:], mode=mode)
    seed_all(0)
    results = torch.stack([transform(image) for _ in range(20)])
    assert results.shape == (20, *size)
    assert results.isfinite().all()
    assert len({result.numpy().tobytes() for result in results}) > 10


@pytest.mark.parametrize("magnitude", [0, 5, 10])
def test_every_operation_of_timm_works_on_gray_images(make_image, magnitude):
    hparams: dict[str, Any] = {"translate_const": 3, "img_mean": (78,)}
    for operation in sorted(set(LEVEL_TO_ARG) - POSTERIZE):
        result = AugmentOp(operation, prob=1.0, magnitude=magnitude, hparams=hparams)(make_image(mode="L"))
        assert (result.mode, result.size) == ("L", (8, 8)), operation


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_posterize_keeps_the_upper_bits_and_none_is_black(make_image, mode):
    image = make_image(mode=mode)
    for bits in range(9):
        mask = 256 - 2 ** (8 - bits)
        assert np.array_equal(posterize(image, bits), np.asarray(image) & mask)


@pytest.mark.parametrize("policy", ["rand-m10-p1.0-n15-inc1", "rand-m0-p1.0-n15", "v0", "v0r", "augmix-m10-d9"])
def test_policies_posterize_at_any_magnitude(make_image, policy):
    transform = train_transform(DataConfig(auto_augment=policy), (3, 8, 8), *COLOUR)
    groups = [group for step in transform.transforms for group in getattr(step, "policy", [getattr(step, "ops", [])])]
    operations = [each for group in groups for each in group if each.name in POSTERIZE]
    assert operations
    for operation in operations:
        operation.prob, operation.magnitude_std = 1.0, 0
        for magnitude in range(13):
            operation.magnitude = magnitude
            assert operation(make_image()).size == (8, 8)


@pytest.mark.parametrize(
    "policy", ["randaugment", "rand-m9-foo", "rand-mx", "v9", "rand m9", "rand-q3", "rand-mmax0.5"]
)
def test_an_unknown_policy_is_refused_at_construction(policy):
    with pytest.raises(InputError, match=r"data\.auto_augment .* is no policy"):
        train_transform(DataConfig(auto_augment=policy), (3, 32, 32), *COLOUR)


@pytest.mark.parametrize("policy", ["augmix-a0", "augmix-m5-a0.0", "rand-n16-tweights"])
def test_a_policy_that_would_fail_at_the_first_image_is_refused_at_construction(policy):
    with pytest.raises(InputError, match=r"data\.auto_augment is .*; change -a or -n"):
        train_transform(DataConfig(auto_augment=policy), (3, 32, 32), *COLOUR)


@pytest.mark.parametrize(
    ("field", "value"), [("scale", (0.9, 0.1)), ("scale", (0.0, 1.0)), ("scale", (0.5, 2.0)), ("ratio", (2.0, 1.0))]
)
def test_a_crop_range_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=rf"data\.{field} is \["):
        train_transform(DataConfig(crop="resized", **{field: value}), (3, 32, 32), *COLOUR)


@pytest.mark.parametrize("crop", CROPS)
def test_transforms_travel_to_worker_processes(crop):
    config = DataConfig(crop=crop, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25, hflip=0.5)
    pickle.loads(pickle.dumps(train_transform(config, (3, 32, 32), *COLOUR)))
    pickle.loads(pickle.dumps(eval_transform((3, 32, 32), *COLOUR, 0.875, "bicubic")))
