"""Batches for training and validation, by the pipeline that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData, LabelledImages, StreamedImages, check_channels
from imixer.data.order import build_order
from imixer.data.prefetch import Prefetcher
from imixer.data.randomness import mixed_seed, seed_globally
from imixer.data.sampler import BatchOrder, BatchShard
from imixer.data.transforms import (
    AlternatingFlips,
    Transform,
    alternating_flips,
    build_mixup,
    eval_transform,
    train_transform,
)
from imixer.errors import InputError

Batch: TypeAlias = "tuple[Tensor, Tensor]"
_ERASING = 2  # keeps the randomness of erasing micro-batches apart from that of images and of mixing


def build_batches(
    data: ImageData,
    config: DataConfig,
    input_size: tuple[int, int, int],
    *,
    smoothing: float,
    seed: int,
    device: torch.device,
    shard: BatchShard,
    held_out_batch: int,
) -> tuple[Any, Any]:
    """Build the training batches and the held-out batches on a device.

    The training batches have `epoch(epoch, start)`, which yields the micro-batches of an epoch from number `start` on,
    and a length, the number of micro-batches per epoch. The held-out batches are iterated over. Both yield pairs of
    images and targets. Images are float (B, C, H, W). Targets are int64 (B,), or float (B, classes) where images are
    mixed.

    Args:
        data: The data set.
        config: Pipeline, batch size and augmentation.
        input_size: (channels, height, width) of the model's input in pixels.
        smoothing: Label smoothing, which mixed targets contain.
        seed: Training seed, 0 or more.
        device: The device that the batches are wanted on.
        shard: The images of each batch that are this process's.
        held_out_batch: Held-out images per batch.

    Raises:
        InputError: If the channels differ from the model's, an augmentation setting makes no sense, a batch is larger
            than the data set, images are to be mixed and cannot be paired, or the pipeline `device` cannot serve the
            data.
    """
    common: dict[str, Any] = {"device": device, "shard": shard}
    mixing: dict[str, Any] = {"num_classes": len(data.class_names), "smoothing": smoothing, "seed": seed}
    if config.pipeline == "device" and data.windows is not None:
        raise InputError(
            "data.pipeline device keeps all images in memory, and these are streamed; pass --data.pipeline timm, or "
            "--data.streaming never if they fit"
        )
    if config.pipeline == "device":
        from imixer.data.device import build_resident

        return build_resident(data, config, input_size, held_out_batch=held_out_batch, **mixing, **common)
    return (
        build_training(data, config, input_size, **mixing, **common),
        build_held_out(data, config, input_size, batch_size=held_out_batch, **common),
    )


Draw: TypeAlias = "tuple[int, int] | tuple[int, int, int]"  # number, epoch, and how often it was drawn before in it


class AugmentedImages(Protocol):
    """Augmented items, indexed by (number, epoch) or (number, epoch, turn), with what they are made of."""

    items: Any
    seed: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: Draw, /) -> tuple[Tensor, Any]: ...


class TrainingImages(Dataset["tuple[Tensor, int]"]):
    """Augmented training images, indexed by (number, epoch) or (number, epoch, turn).

    What augmentation draws depends on number, epoch, turn and seed only, whichever loader process draws it. The turn
    says how often the image came before in the epoch.

    Args:
        items: Pairs of an image and a label.
        transform: From an image to a tensor; it may draw from the generators of random, numpy and torch.
        seed: Training seed, 0 or more.
        flips: Decides which images are mirrored. None: the transform does.
    """

    def __init__(
        self, items: LabelledImages, transform: Transform, seed: int, flips: AlternatingFlips | None = None
    ) -> None:
        self.items = items
        self.transform = transform
        self.seed = seed
        self.flips = flips

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Draw) -> tuple[Tensor, int]:
        number, epoch = index[:2]
        image, label = self.items[number]
        if self.flips and self.flips(np.array([number]), epoch)[0]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        seed_draw(self.seed, index)
        return self.transform(image), label


def seed_draw(seed: int, draw: Draw) -> None:
    """Seed the global generators for the augmentation of an image.

    Args:
        seed: Training seed, 0 or more.
        draw: Number of the image, epoch, and turn.
    """
    number, epoch, *turn = draw
    seed_globally(seed, epoch, number, *filter(None, turn), devices=False)


class HeldOutImages(Dataset["tuple[Tensor, int]"]):
    """Held-out images as tensors: every `world_size`-th one, from number `rank` on.

    Args:
        items: Pairs of an image and a label.
        transform: From an image to a tensor.
        shard: The images that are this process's.
    """

    def __init__(self, items: LabelledImages, transform: Transform, shard: BatchShard) -> None:
        self.items = items
        self.transform = transform
        self.numbers = range(shard.rank, len(items), shard.world_size)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.items[self.numbers[index]]
        return self.transform(image), label


class _EpochSampler(Sampler[list[Draw]]):
    """The indices (number, epoch, turn) that a `DataLoader` fetches: the rest of the epoch that is set."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return len(self.order) - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        for numbers, turns in self.order.epoch_with_turns(self.epoch, self.start):
            yield [(number, self.epoch, turn) for number, turn in zip(numbers.tolist(), turns.tolist(), strict=True)]


class TrainingBatches:
    """Augmented micro-batches on a device, loaded and augmented image by image: the pipeline `timm`.

    Choose it for images of any size and any policy of timm's. The pipeline `device` is faster for small images of one
    size.

    Args:
        images: The images.
        order: The numbers of the images in each micro-batch.
        mixup: timm's `Mixup`, or None.
        device: The device that the micro-batches are wanted on.
        erasing: timm's `RandomErasing`, for mixed images, or None.
        loading: Further arguments of the `DataLoader`.
    """

    def __init__(
        self,
        images: AugmentedImages,
        order: BatchOrder,
        mixup: Any,
        device: torch.device,
        erasing: Any = None,
        **loading: Any,
    ) -> None:
        self.order = order
        self.mixup, self.erasing = mixup, erasing
        self.device = device
        self.images = images
        self._sampler = _EpochSampler(order)
        self._loader = DataLoader(cast(Any, images), batch_sampler=self._sampler, **loading)

    def __len__(self) -> int:
        """Count the micro-batches of this process per epoch."""
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of an epoch, as pairs of images and targets.

        Images are float (B, C, H, W). Targets are int64 (B,), or float (B, classes) if images are mixed.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of the first micro-batch wanted.
        """
        self._sampler.epoch, self._sampler.start = epoch, start
        loaded = iter(self._loader)  # starts its processes, before the thread of the prefetcher
        windows = self.order.windows
        if windows is None or not isinstance(self.images.items, StreamedImages):
            yield from self._on_device(loaded, epoch, start)
            return
        prefetcher = Prefetcher(self.images.items.hold, windows.group_windows(self.images.seed, epoch))
        ends = windows.ends(self.images.seed, epoch)

        def window(number: int) -> int:
            images_before = number // self.order.shard.accumulate * self.order.batch_size
            return int(np.searchsorted(ends, images_before, side="right"))

        prefetcher.start(window(start))
        try:
            for number, batch in enumerate(self._on_device(loaded, epoch, start), start):
                yield batch
                prefetcher.reach(window(number))
        finally:
            prefetcher.stop()

    def _on_device(self, loaded: Iterator[Batch], epoch: int, start: int) -> Iterator[Batch]:
        shard = self.order.shard
        for number, (images, labels) in enumerate(loaded, start):
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            step, part = divmod(number, shard.accumulate)
            position = (self.images.seed, epoch, step, shard.rank * shard.accumulate + part)  # on any devices
            if self.mixup is not None:
                np.random.seed(mixed_seed(*position))
                images, labels = self.mixup(images, labels)
            if self.erasing is not None:
                seed_globally(_ERASING, *position)
                images = self.erasing(images)
            yield images, labels


class HeldOutBatches:
    """Batches of this process's held-out images, in order, on a device.

    Args:
        images: The images.
        device: The device that the batches are wanted on.
        loading: Further arguments of the `DataLoader`.
    """

    def __init__(self, images: Dataset[Any], device: torch.device, **loading: Any) -> None:
        self.device = device
        self._loader = DataLoader(images, **loading)

    def __len__(self) -> int:
        """Count the batches of this process."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self._loader:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def build_training(
    data: ImageData,
    config: DataConfig,
    input_size: tuple[int, int, int],
    *,
    num_classes: int,
    smoothing: float,
    seed: int,
    device: torch.device,
    shard: BatchShard = BatchShard(),  # noqa: B008
) -> TrainingBatches:
    """Build the shuffled and augmented training batches of the pipeline `timm`.

    Args:
        data: The data set.
        config: Batch size, workers and augmentation.
        input_size: (channels, height, width) of the model's input in pixels.
        num_classes: Number of classes.
        smoothing: Label smoothing, which the targets contain if images are mixed.
        seed: Training seed, 0 or more.
        device: The device that the images are wanted on.
        shard: The images of each batch that are this process's.

    Raises:
        InputError: If channels do not match, an augmentation setting makes no sense, a batch is larger than the data
            set, or images are to be mixed and cannot be paired.
    """
    check_channels(data, input_size)
    flips = alternating_flips(config, len(data.train), seed)
    drawn = config if flips is None else replace(config, flip="random", hflip=0.0)
    transform: Any = train_transform(drawn, input_size, data.mean, data.std)
    order = build_order(data, config, seed, shard)
    mixup = build_mixup(config, order.micro_batch_size, num_classes, smoothing)
    erasing = None
    if mixup is not None and config.random_erasing and config.erase == "after_mixing":
        erasing = transform.transforms.pop()  # timm erases last
        erasing.device = device
    images = TrainingImages(data.train, transform, seed, flips)
    return TrainingBatches(images, order, mixup, device, erasing, **loading_options(config, seed, device))


def build_held_out(
    data: ImageData,
    config: DataConfig,
    input_size: tuple[int, int, int],
    *,
    device: torch.device,
    batch_size: int,
    shard: BatchShard = BatchShard(),  # noqa: B008
) -> HeldOutBatches:
    """Build the held-out batches of the pipeline `timm`: in order, never augmented.

    Args:
        data: The data set.
        config: Workers, `crop_pct` and interpolation.
        input_size: (channels, height, width) of the model's input in pixels.
        device: The device that the images are wanted on.
        batch_size: Images per batch.
        shard: The images that are this process's.

    Raises:
        InputError: If channels do not match.
    """
    check_channels(data, input_size)
    transform = eval_transform(input_size, data.mean, data.std, config.crop_pct, config.interpolation)
    return batches_in_order(data.val, transform, config, device=device, batch_size=batch_size, shard=shard)


def batches_in_order(
    items: LabelledImages,
    transform: Transform,
    config: DataConfig,
    *,
    device: torch.device,
    batch_size: int,
    shard: BatchShard = BatchShard(),  # noqa: B008
) -> HeldOutBatches:
    """Build batches of any labelled images, in order.

    Args:
        items: Pairs of an image and a label.
        transform: From an image to what the model takes.
        config: Workers.
        device: The device that the images are wanted on.
        batch_size: Images per batch.
        shard: The images that are this process's.
    """
    return HeldOutBatches(
        HeldOutImages(items, transform, shard), device, batch_size=batch_size, **loading_options(config, 0, device)
    )


def loading_options(config: DataConfig, seed: int, device: torch.device) -> dict[str, Any]:
    """Return the arguments of a `DataLoader` for a number of workers, with a generator of its own."""
    return {
        "num_workers": config.workers,
        "persistent_workers": config.workers > 0,
        "pin_memory": device.type == "cuda",  # it would wake a GPU that trains nothing
        # of its own, so that starting a loader leaves the global one untouched
        "generator": torch.Generator().manual_seed(seed),
    }


def worker_message(error: InputError) -> str:
    """Strip the traceback that a loader process wraps an InputError in; return its own line."""
    marker = f"{InputError.__module__}.{InputError.__qualname__}: "
    text = str(error)
    return text.rpartition(marker)[2].splitlines()[0] if text.startswith("Caught ") and marker in text else text
