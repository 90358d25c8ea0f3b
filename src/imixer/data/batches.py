"""Batches for training and validation, by the pipeline that the configuration names."""

from __future__ import annotations

from typing import Any

import torch

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.loading import build_held_out, build_training
from imixer.data.sampler import Share


def build_batches(
    data: ImageData,
    config: DataConfig,
    input_size: tuple[int, int, int],
    *,
    smoothing: float,
    seed: int,
    device: torch.device,
    share: Share,
    held_out_batch: int,
) -> tuple[Any, Any]:
    """Training and held-out batches on a device.

    The first has `epoch(epoch, start)`, which gives the parts of an epoch from part `start` on, and as its length their
    number; the second is iterated over. Both give pairs of images, float (B, C, H, W), and targets: int64 (B,), or
    float (B, classes) where images are mixed.

    Args:
        data: The data set.
        config: Pipeline, batch size and augmentation.
        input_size: (channels, height, width) of the model's input in pixels.
        smoothing: Label smoothing, contained in mixed targets.
        seed: Training seed.
        device: Where the batches are wanted.
        share: What of each batch is this process's.
        held_out_batch: Held-out images per batch.

    Raises:
        InputError: If the data do not go with the configuration.
    """
    common: dict[str, Any] = {"device": device, "share": share}
    mixing: dict[str, Any] = {"num_classes": len(data.class_names), "smoothing": smoothing, "seed": seed}
    if config.pipeline == "device":
        from imixer.data.device import build_resident

        return build_resident(data, config, input_size, held_out_batch=held_out_batch, **mixing, **common)
    return (
        build_training(data, config, input_size, **mixing, **common),
        build_held_out(data, config, input_size, batch_size=held_out_batch, **common),
    )
