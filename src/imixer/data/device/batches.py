"""Training micro-batches and validation batches made on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from timm.data import auto_augment, random_erasing
from torch import Tensor

from imixer.data.config import DataConfig
from imixer.data.device.crops import CropParams, ResizedCrop, WindowCrop, training_crop, validation_crop
from imixer.data.device.erasing import Erasing, ErasingParams
from imixer.data.device.mixing import Mixing, MixingParams
from imixer.data.device.rand_augment import KNOWN, OperationParams, RandAugment
from imixer.data.device.resident import REMEDY, ResidentImages, load_resident
from imixer.data.device.transfer import BufferPool, chunks, to_device
from imixer.data.image_data import ImageData, check_channels
from imixer.data.order import build_order
from imixer.data.randomness import mixed_seed
from imixer.data.sampler import BatchOrder, BatchShard
from imixer.data.transforms import AlternatingFlips, alternating_flips, build_mixup, train_transform
from imixer.errors import InputError


class Normalise:
    """Normalisation of bytes to floats with mean 0 and standard deviation 1 per channel.

    Args:
        mean: Mean per channel, with pixel values in [0, 1].
        std: Standard deviation per channel, likewise.
        device: The device of the images.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        middle, width = (torch.tensor(each, dtype=torch.float64).view(1, -1, 1, 1) for each in (mean, std))
        self.factor = (1 / (255 * width)).to(device, torch.float32)
        self.offset = (-middle / width).to(device, torch.float32)

    def __call__(self, images: Tensor, out: Tensor) -> Tensor:
        """Write normalised images to `out`, and return it.

        Args:
            images: Bytes (B, C, H, W).
            out: Floats (B, C, H, W).
        """
        for chunk in chunks(len(images), math.prod(images.shape[1:]), images.device):
            out[chunk].copy_(images[chunk]).mul_(self.factor).add_(self.offset)
        return out


_Params = TypeVar("_Params", CropParams, OperationParams, ErasingParams)


class _Step(NamedTuple):
    """All that is random about one optimizer step, for the images and micro-batches of all processes."""

    crops: CropParams
    operations: OperationParams | None
    boxes: ErasingParams | None
    noise: Tensor | None
    mixings: list[MixingParams]


class ResidentTraining:
    """Training micro-batches cut and augmented on the device: the pipeline `device`.

    Choose it where loading images one by one would leave the device waiting: small images of one size. What happens to
    an image depends on seed, epoch and its position in the epoch, and on nothing else; but images are mixed within
    their micro-batch.

    Args:
        resident: The training images.
        order: The numbers of the images in each micro-batch.
        crop: Cuts, resizes and flips.
        augment: Applies random operations. None: no operations.
        normalise: Turns bytes into floats.
        erasing: Erases boxes. None: no boxes.
        mixing: Mixes each micro-batch with its reverse. None: no mixing.
        erase_mixed: Whether to mix first and erase then.
        flips: Decides which images are mirrored. None: the crop does.
    """

    def __init__(
        self,
        resident: ResidentImages,
        order: BatchOrder,
        crop: ResizedCrop | WindowCrop,
        augment: RandAugment | None,
        normalise: Normalise,
        erasing: Erasing | None,
        mixing: Mixing | None,
        erase_mixed: bool = False,
        flips: AlternatingFlips | None = None,
    ) -> None:
        self.resident, self.order, self.flips = resident, order, flips
        self.crop, self.augment, self.normalise, self.erasing, self.mixing = crop, augment, normalise, erasing, mixing
        self.erase_mixed = erase_mixed
        images = resident.images
        shape = (order.micro_batch_size, images.shape[1], *crop.target)
        self._bytes = torch.empty(shape, dtype=torch.uint8, device=images.device)
        self._floats = BufferPool(shape, images.device)

    def __len__(self) -> int:
        """Count the micro-batches of this process per epoch."""
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the micro-batches of an epoch, as pairs of images and targets.

        Images are normalised floats (B, C, H, W). Targets are int64 (B,), or float (B, classes) with mixing.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of the first micro-batch wanted.
        """
        shard = self.order.shard
        step = None
        for number, chosen in enumerate(self.order.epoch(epoch, start), start):
            micro_batch = number % shard.accumulate
            if step is None or micro_batch == 0:
                step = self._draw_step(epoch, number // shard.accumulate)
            yield self._make_micro_batch(chosen, epoch, step, shard.rank * shard.accumulate + micro_batch)

    def _draw_step(self, epoch: int, number: int) -> _Step:
        count, seed = self.order.batch_size, self.order.seed
        rng = np.random.default_rng((seed, epoch, number))
        crops = self.crop.draw(rng, count)
        operations = self.augment.draw(rng, count) if self.augment else None
        boxes, noise = None, None
        if self.erasing:
            boxes, values = self.erasing.draw(rng, count)
            device = self._bytes.device
            generator = torch.Generator(device).manual_seed(mixed_seed(seed, epoch, number))
            noise = torch.randn(values, generator=generator, device=device)
        micro_batches = self.order.shard.world_size * self.order.shard.accumulate
        mixings = [self.mixing.draw(rng) for _ in range(micro_batches)] if self.mixing else []
        return _Step(crops, operations, boxes, noise, mixings)

    def _make_micro_batch(self, chosen: Tensor, epoch: int, step: _Step, micro_batch: int) -> tuple[Tensor, Tensor]:
        mine = slice(micro_batch * len(chosen), (micro_batch + 1) * len(chosen))
        numbers = to_device(chosen.numpy(), self._bytes.device)
        crops = _take(step.crops, mine)
        if self.flips:
            crops = self.crop.mirrored(crops, self.flips(chosen.numpy(), epoch))
        self.crop(self.resident.images.index_select(0, numbers), crops, self._bytes)
        if self.augment and step.operations:
            self.augment(self._bytes, _take(step.operations, mine))
        images = self.normalise(self._bytes, self._floats.take())
        labels = self.resident.labels.index_select(0, numbers)
        if self.mixing and self.erase_mixed:
            labels = self.mixing(images, labels, step.mixings[micro_batch])
        if self.erasing and step.boxes and step.noise is not None:
            self.erasing(images, _take(step.boxes, mine), step.noise)
        if self.mixing and not self.erase_mixed:
            labels = self.mixing(images, labels, step.mixings[micro_batch])
        return images, labels


class ResidentValidation:
    """Validation batches of this process, made on the device: every `world_size`-th image, in order; nothing is random.

    They are pairs of images, normalised floats (B, C, H, W), and labels, int64 (B,).

    Args:
        resident: The validation images.
        batch_size: Images per batch; the last one may be smaller.
        crop: Resizes and cuts the centre out.
        normalise: Turns bytes into floats.
        shard: The images that are this process's.
    """

    def __init__(
        self, resident: ResidentImages, batch_size: int, crop: WindowCrop, normalise: Normalise, shard: BatchShard
    ) -> None:
        self.resident = ResidentImages(*(tensor[shard.rank :: shard.world_size] for tensor in resident))
        self.batch_size, self.crop, self.normalise = batch_size, crop, normalise

    def __len__(self) -> int:
        """Count the batches of this process."""
        return -(-len(self.resident.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        nothing_random = np.random.default_rng(0)
        for start in range(0, len(self.resident.labels), self.batch_size):
            images, labels = (tensor[start : start + self.batch_size] for tensor in self.resident)
            cut = images.new_empty((len(images), images.shape[1], *self.crop.target))
            self.crop(images, self.crop.draw(nothing_random, len(images)), cut)
            yield self.normalise(cut, torch.empty(cut.shape, device=cut.device)), labels


def _take(params: _Params, images: slice) -> _Params:
    """Take those params that belong to some images of the batch."""
    return type(params)._make(array[images] for array in params)


def build_resident(
    data: ImageData,
    config: DataConfig,
    input_size: tuple[int, int, int],
    *,
    num_classes: int,
    smoothing: float,
    seed: int,
    device: torch.device,
    shard: BatchShard,
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
        device: The device that images are kept and augmented on.
        shard: The images of each batch that are this process's.
        held_out_batch: Held-out images per batch.

    Returns:
        Training micro-batches and validation batches.

    Raises:
        InputError: If this pipeline lacks the policy, the images differ in size or take more memory than there is,
            channels do not match, the device lacks float64, or a setting makes no sense.
    """
    check_channels(data, input_size)
    if device.type == "mps":
        raise InputError(f"data.pipeline device needs float64, which mps lacks; {REMEDY}")
    # timm reads the settings, so that both pipelines mean the same by them
    steps = train_transform(config, input_size, data.mean, data.std).transforms
    policy = next((step for step in steps if isinstance(step, auto_augment.RandAugment)), None)
    unknown = {each.name for each in policy.ops} - KNOWN if policy else set()
    if config.auto_augment and (policy is None or unknown):
        lacking = f"lacks {', '.join(sorted(unknown))} of" if unknown else "has rand-... only, not"
        raise InputError(f"data.pipeline device {lacking} data.auto_augment {config.auto_augment!r}; {REMEDY}")
    erasing = next((step for step in steps if isinstance(step, random_erasing.RandomErasing)), None)
    order = build_order(data, config, seed, shard)
    mixup = build_mixup(config, order.micro_batch_size, num_classes, smoothing)
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
        val, held_out_batch, validation_crop(config, source, target, device), normalise, shard
    )
