"""Images of one size, as tensors and as a data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imixer.data.config import DataConfig
from imixer.data.device import ResidentTraining, ResidentValidation, build_resident
from imixer.data.image_data import ImageData
from imixer.data.sampler import BatchShard

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def smooth(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Bytes that look a little like photographs: soft edges, clipped lights."""
    coarse = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse * 1.4 - 0.2, (height, width), mode="bicubic")
    return fine.clamp(0, 1).mul(255).byte()


class Items:
    """Some of a tensor's images as a data set."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return to_pil(self.images[index]), index % 5


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    """Smooth images, pure noise and one of a single colour, as bytes."""

    def make(channels: int = 3, height: int = 24, width: int = 28) -> Tensor:
        noise = torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, (3, channels, height, width), dtype=np.uint8)
        )
        flat = torch.full((1, channels, height, width), 77, dtype=torch.uint8)
        return torch.cat([smooth(4, channels, height, width), noise, flat])

    return make


@pytest.fixture
def make_data() -> Callable[..., ImageData]:
    """A data set of smooth images."""

    def make(train: int = 24, val: int = 10, size: tuple[int, int] = (16, 20), channels: int = 3) -> ImageData:
        parts = (Items(smooth(count, channels, *size, seed=seed)) for seed, count in enumerate((train, val)))
        return ImageData("set", *parts, tuple("abcde"), channels, size, MEAN[:channels], STD[:channels])

    return make


@pytest.fixture
def build(make_data) -> Callable[..., tuple[ResidentTraining, ResidentValidation]]:
    """Training parts and validation batches of such a data set."""

    def make(
        size: tuple[int, int] = (16, 16),
        *,
        seed: int = 0,
        shard: BatchShard | None = None,
        data: ImageData | None = None,
        **config,
    ) -> tuple[ResidentTraining, ResidentValidation]:
        data = data or make_data()
        return build_resident(
            data,
            DataConfig(**{"batch_size": 8, **config}),
            (data.in_chans, *size),
            num_classes=5,
            smoothing=0.1,
            seed=seed,
            device=torch.device("cpu"),
            shard=shard or BatchShard(),
            held_out_batch=8,
        )

    return make
