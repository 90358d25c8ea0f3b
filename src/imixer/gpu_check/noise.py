"""Make images of smooth noise, for what needs images and not what is on them."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn

from imixer.data.image_data import ImageData


class NoiseImages:
    """Colour images of smooth noise, the same each time.

    Args:
        count: Number of images.
        size: Height and width in pixels.
        classes: Number of classes, which come in turn.
    """

    def __init__(self, count: int, size: tuple[int, int] = (32, 32), classes: int = 10) -> None:
        coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
        images = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).mul(255).byte()
        self.images, self.classes = images.permute(0, 2, 3, 1).contiguous().numpy(), classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), index % self.classes


def noise_data(training: int, held_out: int, size: tuple[int, int] = (32, 32), classes: int = 10) -> ImageData:
    """Make a data set of noise.

    Args:
        training: Number of training images.
        held_out: Number of held-out images.
        size: Height and width in pixels.
        classes: Number of classes.
    """
    train, val = (NoiseImages(count, size, classes) for count in (training, held_out))
    names = tuple(map(str, range(classes)))
    return ImageData("noise", train, val, names, 3, size, (0.5,) * 3, (0.25,) * 3)
