"""RandAugment's operations against Pillow's, by way of timm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP

from imixer.data.device import color, geometry
from imixer.data.transforms import posterize

COLOR_OPERATIONS = {
    "AutoContrast": (color.auto_contrast, [None]),
    "Equalize": (color.equalize, [None]),
    "Invert": (color.solarize, [None]),
    "Solarize": (color.solarize, [0, 1, 100, 255, 256]),
    "SolarizeAdd": (color.solarize_add, [0, 5, 110, 128]),
    "Posterize": (color.posterize, [*range(9)]),
    "Brightness": (color.brightness, [0.1, 0.63, 1.0, 1.9]),
    "Contrast": (color.contrast, [0.1, 0.63, 1.0, 1.9]),
    "Color": (color.color, [0.1, 0.63, 1.0, 1.9]),
    "Sharpness": (color.sharpness, [0.1, 0.63, 1.0, 1.9]),
}
GEOMETRIC_OPERATIONS = {
    "ShearX": (geometry.shear_x, [-0.3, 0.0, 0.123, 0.3]),
    "ShearY": (geometry.shear_y, [-0.3, 0.0, 0.123, 0.3]),
    "TranslateXRel": (geometry.translate_x, [-0.45, -0.01, 0.0, 0.123, 0.45]),
    "TranslateYRel": (geometry.translate_y, [-0.45, -0.01, 0.0, 0.123, 0.45]),
    "Rotate": (geometry.rotate, [-30.0, -2.7, 0.0, 11.0, 30.0]),
}
FILL = (10, 200, 90)


def ours(operation, images, value, *more):
    arguments = torch.full((len(images), 1, 1, 1), float(value or 0), dtype=torch.float64)
    before = images.clone()
    result = operation(images, arguments, *more)
    assert torch.equal(images, before), "the operation wrote to its input"
    assert (result.shape, result.dtype) == (images.shape, torch.uint8)
    return result.int()


def pillows(name, images, value, **more):
    operation = posterize if name == "Posterize" else NAME_TO_OP[name]
    arguments = () if value is None else (value,)
    results = []
    for image in images.permute(0, 2, 3, 1).squeeze(3).numpy():
        pixels = np.array(operation(Image.fromarray(image), *arguments, **more))
        results.append(torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1))
    return torch.stack(results).int()


@pytest.mark.parametrize(("channels", "size"), [(1, (24, 28)), (3, (24, 28)), (3, (2, 9)), (1, (1, 1))])
@pytest.mark.parametrize("name", COLOR_OPERATIONS)
def test_operations_on_values_equal_pillows_to_the_byte(pictures, name, channels, size):
    operation, values = COLOR_OPERATIONS[name]
    images = pictures(channels, *size)
    for value in values:
        assert torch.equal(ours(operation, images, value), pillows(name, images, value))


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_tables_equal_pillows_for_every_range_of_values(name):
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(0, 256, (300, 2)), axis=1)
    pixels = [rng.integers(low, high + 1, (1, 19, 23), dtype=np.uint8) for low, high in ends]
    images = torch.from_numpy(np.stack(pixels))
    assert torch.equal(ours(COLOR_OPERATIONS[name][0], images, None), pillows(name, images, None))


@pytest.mark.parametrize(("kind", "filter_"), [(False, Image.Resampling.BILINEAR), (True, Image.Resampling.BICUBIC)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", GEOMETRIC_OPERATIONS)
def test_moves_equal_pillows_but_for_rounding(pictures, name, channels, kind, filter_):
    operation, values = GEOMETRIC_OPERATIONS[name]
    images = pictures(channels)
    fill = torch.tensor(FILL[:channels], dtype=torch.uint8).view(1, -1, 1, 1)
    for value in values:
        expected = pillows(name, images, value, resample=filter_, fillcolor=FILL[:channels])
        away = (ours(operation, images, value, kind, fill) - expected).abs().float()
        smooth, noise = away[:4], away[4:7]
        assert smooth.max() <= 1 and smooth.mean() < 0.06
        assert noise.mean() < (0.6 if name == "Rotate" and kind else 0.06)
        assert not away[7].any(), "an even area changed its value"


@pytest.mark.parametrize("kind", [False, True])
@pytest.mark.parametrize("name", GEOMETRIC_OPERATIONS)
def test_moves_fill_what_pillow_fills(name, kind):
    operation, values = GEOMETRIC_OPERATIONS[name]
    images = torch.full((1, 1, 24, 28), 77, dtype=torch.uint8)
    fill = torch.full((1, 1, 1, 1), 200, dtype=torch.uint8)
    for value in values:
        expected = pillows(name, images, value, resample=Image.Resampling.BICUBIC, fillcolor=(200,))
        assert torch.equal(ours(operation, images, value, kind, fill), expected)


def test_each_image_of_a_batch_has_its_own_argument(pictures):
    images = pictures()
    values = torch.linspace(-30, 30, len(images), dtype=torch.float64).view(-1, 1, 1, 1)
    fill = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    batch = geometry.rotate(images, values, True, fill)
    single = [geometry.rotate(images[i : i + 1], values[i : i + 1], True, fill) for i in range(len(images))]
    assert torch.equal(batch, torch.cat(single))
    factors = values.abs() / 20
    batch = color.contrast(images, factors)
    assert torch.equal(
        batch, torch.cat([color.contrast(x[None], f[None]) for x, f in zip(images, factors, strict=True)])
    )
