"""Parts of training batches, and validation batches, made on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from imixer.data.device.crops import CropDraws, ResizedCrop, WindowCrop
from imixer.data.device.erasing import Erasing, ErasingDraws
from imixer.data.device.mixing import Mixing, MixingDraw
from imixer.data.device.normalising import Normalise
from imixer.data.device.rand_augment import OperationDraws, RandAugment
from imixer.data.device.resident import ResidentImages
from imixer.data.device.transfer import BufferPool, to_device
from imixer.data.randomness import mixed_seed
from imixer.data.sampler import BatchOrder, Share
from imixer.data.shifting import AlternatingFlips

_Draws = TypeVar("_Draws", bound=NamedTuple)


class _Step(NamedTuple):
    """All that is random about one step, for the images and parts of all processes."""

    crops: CropDraws
    operations: OperationDraws | None
    boxes: ErasingDraws | None
    noise: Tensor | None
    mixings: list[MixingDraw]


class ResidentTraining:
    """Training parts: (images, targets), normalised floats (part, channels, height, width) and either labels `int64`
    (part,) or, with mixing, floats (part, classes).

    What happens to an image depends on the seed, the epoch and its place in the epoch, and on nothing else; but images
    are mixed within their part.

    Args:
        resident: The training images.
        order: Which of them make up each part.
        crop: Cuts, resizes and flips.
        augment: Applies random operations, or None.
        normalise: Turns bytes into floats.
        erasing: Erases boxes, or None.
        mixing: Mixes each part with its reverse, or None.
        erase_mixed: Whether to mix first and erase then.
        flips: Decides which images are mirrored, or None: the crop does.
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
        shape = (order.part, images.shape[1], *crop.target)
        self._bytes = torch.empty(shape, dtype=torch.uint8, device=images.device)
        self._floats = BufferPool(shape, images.device)

    def __len__(self) -> int:
        """Parts per epoch of this process."""
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of an epoch, from part number `start` on."""
        share = self.order.share
        step = None
        for number, chosen in enumerate(self.order.epoch(epoch, start), start):
            part = number % share.accumulate
            if step is None or part == 0:
                step = self._draw(epoch, number // share.accumulate)
            yield self._make(chosen, epoch, step, share.rank * share.accumulate + part)

    def _draw(self, epoch: int, number: int) -> _Step:
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
        parts = self.order.share.world * self.order.share.accumulate
        mixings = [self.mixing.draw(rng) for _ in range(parts)] if self.mixing else []
        return _Step(crops, operations, boxes, noise, mixings)

    def _make(self, chosen: Tensor, epoch: int, step: _Step, part: int) -> tuple[Tensor, Tensor]:
        mine = slice(part * len(chosen), (part + 1) * len(chosen))
        numbers = to_device(chosen.numpy(), self._bytes.device)
        crops = _cut(step.crops, mine)
        if self.flips:
            crops = self.crop.mirrored(crops, self.flips(chosen.numpy(), epoch))
        self.crop(self.resident.images.index_select(0, numbers), crops, self._bytes)
        if self.augment and step.operations:
            self.augment(self._bytes, _cut(step.operations, mine))
        images = self.normalise(self._bytes, self._floats.take())
        labels = self.resident.labels.index_select(0, numbers)
        if self.mixing and self.erase_mixed:
            labels = self.mixing(images, labels, step.mixings[part])
        if self.erasing and step.boxes and step.noise is not None:
            self.erasing(images, _cut(step.boxes, mine), step.noise)
        if self.mixing and not self.erase_mixed:
            labels = self.mixing(images, labels, step.mixings[part])
        return images, labels


class ResidentValidation:
    """Validation batches of this process: (images, labels), normalised floats (batch, channels, height, width) and
    `int64` (batch,). Every `world`-th image in order, and nothing is random.

    Args:
        resident: The validation images.
        batch_size: Images per batch; the last one may be smaller.
        crop: Resizes and cuts the centre out.
        normalise: Turns bytes into floats.
        share: Whose images to take.
    """

    def __init__(
        self, resident: ResidentImages, batch_size: int, crop: WindowCrop, normalise: Normalise, share: Share
    ) -> None:
        self.resident = ResidentImages(*(tensor[share.rank :: share.world] for tensor in resident))
        self.batch_size, self.crop, self.normalise = batch_size, crop, normalise

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-len(self.resident.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        nothing_random = np.random.default_rng(0)
        for start in range(0, len(self.resident.labels), self.batch_size):
            images, labels = (tensor[start : start + self.batch_size] for tensor in self.resident)
            cut = images.new_empty((len(images), images.shape[1], *self.crop.target))
            self.crop(images, self.crop.draw(nothing_random, len(images)), cut)
            yield self.normalise(cut, torch.empty(cut.shape, device=cut.device)), labels


def _cut(params: _Draws, images: slice) -> _Draws:
    cut: _Draws = cast(Any, params)._make(each[images] for each in params)
    return cut
