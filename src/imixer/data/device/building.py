"""From a data set and its settings to batches made on the device."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

import torch
from timm.data import auto_augment, random_erasing

from imixer.data.config import DataConfig
from imixer.data.device.batches import ResidentTraining, ResidentValidation
from imixer.data.device.crops import training_crop, validation_crop
from imixer.data.device.erasing import Erasing
from imixer.data.device.mixing import Mixing
from imixer.data.device.normalising import Normalise
from imixer.data.device.rand_augment import KNOWN, RandAugment
from imixer.data.device.resident import REMEDY, load_resident
from imixer.data.image_data import ImageData, check_channels
from imixer.data.mixup import build_mixup
from imixer.data.sampler import BatchOrder, Share
from imixer.data.shifting import alternating_flips
from imixer.data.transforms import train_transform
from imixer.errors import InputError


def build_resident(
    data: ImageData,
    config: DataConfig,
    input_size: tuple[int, int, int],
    *,
    num_classes: int,
    smoothing: float,
    seed: int,
    device: torch.device,
    share: Share,
    held_out_batch: int,
) -> tuple[ResidentTraining, ResidentValidation]:
    """Read all images onto the device, and prepare to augment them there.

    The same settings give the same distribution as `data.pipeline timm`, but not the same random numbers.

    Args:
        data: The data set; its images share one size.
        config: Batch size and augmentation.
        input_size: (channels, height, width) of the model's input in pixels.
        num_classes: Number of classes, for mixing.
        smoothing: Label smoothing, which mixed targets contain.
        seed: Training seed, 0 or more.
        device: Where the images are kept and augmented.
        share: Which part of each batch this process trains on.
        held_out_batch: Held-out images per batch.

    Raises:
        InputError: This pipeline lacks the policy, the images differ in size or take more memory than there is,
            channels do not match, the device lacks float64, or a setting makes no sense.
    """
    check_channels(data, input_size)
    if device.type == "mps":
        raise InputError(f"data.pipeline device needs float64, which mps lacks; {REMEDY}")
    # timm reads the settings, so that both pipelines mean the same by them
    steps = cast(Any, train_transform(config, input_size, data.mean, data.std)).transforms
    policy = next((step for step in steps if isinstance(step, auto_augment.RandAugment)), None)
    unknown = {each.name for each in policy.ops} - KNOWN if policy else set()
    if config.auto_augment and (policy is None or unknown):
        lacking = f"lacks {', '.join(sorted(unknown))} of" if unknown else "has rand-... only, not"
        raise InputError(f"data.pipeline device {lacking} data.auto_augment {config.auto_augment!r}; {REMEDY}")
    erasing = next((step for step in steps if isinstance(step, random_erasing.RandomErasing)), None)
    order = BatchOrder(len(cast(Sized, data.train)), config.batch_size, seed, share)
    mixup = build_mixup(config, order.part, num_classes, smoothing)
    train, val = load_resident(data, device)
    source, target = (train.images.shape[2], train.images.shape[3]), input_size[1:]
    normalise = Normalise(data.mean, data.std, device)
    training = ResidentTraining(
        train,
        order,
        training_crop(config, source, target, device),
        RandAugment(policy, data.in_chans, device) if policy else None,
        normalise,
        Erasing(erasing, input_size) if erasing else None,
        Mixing(mixup, target) if mixup else None,
        erase_mixed=config.erase == "after_mixing",
        flips=alternating_flips(config, order.count, seed),
    )
    return training, ResidentValidation(
        val, held_out_batch, validation_crop(config, source, target, device), normalise, share
    )
