"""Crop, resize and flip against timm's and torchvision's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional as F

from imixer.data.config import DataConfig
from imixer.data.device.crops import resampling, training_crop, validation_crop
from imixer.data.transforms import eval_transform, train_transform

CPU = torch.device("cpu")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


def from_pil(image):
    pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def cut(crop, images, params):
    out = torch.empty(len(images), images.shape[1], *crop.target, dtype=torch.uint8)
    crop(images, params, out)
    return out


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("source", "target"), [(32, 224), (7, 5), (100, 9), (3, 3), (1, 6), (6, 1), (37, 38)])
def test_matrices_resample_as_pillow_does(source, target, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (40, source), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((target, 40), FILTERS[interpolation]))
    result = pixels @ resampling(source, target, interpolation).T
    np.testing.assert_array_equal(np.floor(result + 0.5).clip(0, 255), expected)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("target", [(40, 33), (9, 12), (24, 28)])
def test_a_resized_crop_equals_torchvisions_but_for_rounding(pictures, target, interpolation):
    images = pictures().repeat(8, 1, 1, 1)
    config = DataConfig(crop="resized", interpolation=interpolation, hflip=0.5)
    crop = training_crop(config, (24, 28), target, CPU)
    params = crop.draw(np.random.default_rng(0), len(images))
    expected = []
    for image, top, left, width, flip, rows in zip(images, *params[:5], strict=True):
        resized = F.resized_crop(to_pil(image), top, left, rows + 1, width, target, F.InterpolationMode(interpolation))
        expected.append(from_pil(F.hflip(resized) if flip else resized))
    away = (cut(crop, images, params).int() - torch.stack(expected).int()).abs().float()
    assert away.mean() < 0.012 if target[0] >= 24 else away.mean() < 0.1  # shrinking, Pillow may swap its two passes
    assert away.max() <= 1 or target[0] < 24


def test_a_padded_crop_is_a_window_of_the_resized_image(pictures):
    images, target = pictures().repeat(8, 1, 1, 1), (32, 40)
    crop = training_crop(DataConfig(crop="pad", hflip=0.5), (24, 28), target, CPU)
    results = cut(crop, images, crop.draw(np.random.default_rng(0), len(images)))
    high, wide = (side // 8 for side in target)
    seen = set()
    for image, result in zip(images, results, strict=True):
        resized = from_pil(F.resize(to_pil(image), target, F.InterpolationMode.BICUBIC))
        framed = torch.nn.functional.pad(resized.int(), (wide, wide, high, high))
        windows = framed.unfold(1, target[0], 1).unfold(2, target[1], 1)
        away = torch.stack([(windows - each[:, None, None]).abs().amax((0, 3, 4)) for each in (result, result.flip(2))])
        assert away.min() <= 1
        seen |= {tuple(place) for place in (away == away.min()).nonzero().tolist()}
    assert {place[0] for place in seen} == {0, 1}, "both orientations come up"
    assert {0, 2 * high} < {place[1] for place in seen} and {0, 2 * wide} < {place[2] for place in seen}


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("target", "share"), [((24, 28), 1.0), ((16, 16), 0.875), ((31, 20), 0.9), ((32, 33), 0.8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_centre_and_validation_crops_equal_the_other_pipelines(pictures, target, share, interpolation, channels):
    images = pictures(channels)
    config = DataConfig(crop="center", interpolation=interpolation, crop_pct=share)
    zero, one = (0.0,) * channels, (1.0,) * channels
    size = (channels, *target)
    pairs = (
        (training_crop, train_transform(config, size, zero, one)),
        (validation_crop, eval_transform(size, zero, one, share, interpolation)),
    )
    for build, reference in pairs:
        crop = build(config, (24, 28), target, CPU)
        expected = torch.stack([reference(to_pil(image)) for image in images]) * 255
        result = cut(crop, images, crop.draw(np.random.default_rng(0), len(images)))
        away = (result.float() - expected).abs()
        assert away.mean() < 0.04
        assert away.max() < 1.01


@pytest.mark.parametrize("target", [(17, 18), (16, 17)])
def test_a_flipped_centre_is_the_mirrored_centre(pictures, target):
    images = pictures()
    results = []
    for hflip in (0.0, 1.0):
        crop = training_crop(DataConfig(crop="center", crop_pct=0.77, hflip=hflip), (24, 28), target, CPU)
        results.append(cut(crop, images, crop.draw(np.random.default_rng(0), len(images))))
    away = (results[0].flip(3).int() - results[1].int()).abs()
    assert away.max() <= 1 and away.float().mean() < 1e-3


@pytest.mark.parametrize("source", [(32, 32), (20, 60)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (0.75, 1.3333333)), ((0.5, 1.0), (0.9, 1.1))])
def test_boxes_are_distributed_as_timms(source, scale, ratio):
    count = 4000
    config = DataConfig(crop="resized", scale=scale, ratio=ratio, hflip=0.3, interpolation="random")
    crop = training_crop(config, source, (16, 16), CPU)
    params = crop.draw(np.random.default_rng(1), count)
    rows, columns = params.rows % source[0] + 1, params.columns % source[1] + 1
    ours = np.stack([params.top, params.left, rows, columns, rows * columns, rows / columns], axis=1)
    random.seed(1)
    image = Image.new("L", source[::-1])
    boxes = np.array([RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(count)])
    theirs = np.column_stack([boxes, boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3]])
    for mine, other in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(mine, other).pvalue > 1e-3
    assert (params.width == columns).all()
    assert (params.top + rows <= source[0]).all() and (params.left + columns <= source[1]).all()
    assert abs(params.flip.mean() - 0.3) < 0.03
    assert abs((params.rows >= source[0]).mean() - 0.5) < 0.03
    assert ((params.rows >= source[0]) == (params.columns >= source[1])).all()


def test_images_of_a_few_pixels_are_cut_to_at_least_one():
    crop = training_crop(DataConfig(crop="resized"), (2, 3), (8, 8), CPU)
    params = crop.draw(np.random.default_rng(0), 500)
    assert params.width.min() == 1 and params.rows.min() == 0
    images = torch.full((500, 1, 2, 3), 50, dtype=torch.uint8)
    assert (cut(crop, images, params) == 50).all()


def test_an_autocast_region_does_not_coarsen_the_products(pictures):
    images = pictures()
    crop = training_crop(DataConfig(crop="resized"), (24, 28), (40, 40), CPU)
    params = crop.draw(np.random.default_rng(0), len(images))
    expected = cut(crop, images, params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cut(crop, images, params), expected)
