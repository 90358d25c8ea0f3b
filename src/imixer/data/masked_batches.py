"""Batches of images and masks that are cropped, mirrored and resized together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import RandomResizedCrop, v2

from imixer.data.batches import Draw, HeldOutBatches, TrainingBatches, loading_options, seed_draw
from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import IGNORED, MaskedData, MaskedImages, check_channels
from imixer.data.sampler import BatchOrder, BatchShard
from imixer.data.transforms import shifts
from imixer.errors import InputError

Pair: TypeAlias = "tuple[Tensor, Tensor]"
JointTransform: TypeAlias = "Callable[[Image.Image, NDArray[np.uint8]], Pair]"


def build_masked_batches(
    data: MaskedData,
    config: DataConfig,
    masks: MaskConfig,
    input_size: tuple[int, int, int],
    *,
    seed: int,
    device: torch.device,
    shard: BatchShard,
    held_out_batch: int,
) -> tuple[Any, Any]:
    """Build the training batches and the held-out batches of images and masks.

    Both yield pairs of images, float (B, C, H, W), and masks, int64 (B, H, W).

    Args:
        data: The data set.
        config: Batch size, workers and augmentation.
        masks: Gives `fit` and `jitter`.
        input_size: (channels, height, width) of the model's input in pixels.
        seed: Training seed, 0 or more.
        device: The device that the batches are wanted on.
        shard: The images of each batch that are this process's.
        held_out_batch: Held-out images per batch. With `fit: window` and images of several sizes it is 1.

    Raises:
        InputError: If the channels differ from the model's, a setting has no meaning for masks, or a batch is larger
            than the data set.
    """
    check_channels(data, input_size)
    require_masks_allow(config)
    order = BatchOrder(len(data.train), config.batch_size, seed, shard, fill=config.last_batch == "fill")
    images = MaskedTrainingImages(data.train, joint_transform(data, config, masks, input_size, train=True), seed)
    training = TrainingBatches(images, order, None, device, **loading_options(config, seed, device))
    several_sizes = masks.fit == "window" and data.native_size is None
    held_out = masks_in_order(
        data.val,
        joint_transform(data, config, masks, input_size, train=False),
        config,
        device=device,
        batch_size=1 if several_sizes else held_out_batch,
        shard=shard,
    )
    return training, held_out


def masks_in_order(
    items: MaskedImages,
    transform: JointTransform,
    config: DataConfig,
    *,
    device: torch.device,
    batch_size: int,
    shard: BatchShard = BatchShard(),  # noqa: B008
) -> HeldOutBatches:
    """Build batches of any images with masks, in order.

    Args:
        items: Pairs of an image and a mask.
        transform: From both to tensors.
        config: Workers.
        device: The device that the batches are wanted on.
        batch_size: Images per batch.
        shard: The images that are this process's.
    """
    images = HeldOutMasks(items, transform, shard)
    return HeldOutBatches(images, device, batch_size=batch_size, **loading_options(config, 0, device))


class MaskedTrainingImages(Dataset[Pair]):
    """Augmented training images with masks, indexed by (number, epoch) or (number, epoch, turn).

    What augmentation draws depends on number, epoch, turn and seed only, whichever loader process draws it. The turn
    says how often the image came before in the epoch.

    Args:
        items: Pairs of an image and a mask.
        transform: From both to tensors; it may draw from the generators of random, numpy and torch.
        seed: Training seed, 0 or more.
    """

    def __init__(self, items: MaskedImages, transform: JointTransform, seed: int) -> None:
        self.items, self.transform, self.seed = items, transform, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Draw) -> Pair:
        seed_draw(self.seed, index)
        return self.transform(*self.items[index[0]])


class HeldOutMasks(Dataset[Pair]):
    """Held-out images with masks as tensors: every `world_size`-th one, from number `rank` on.

    Args:
        items: Pairs of an image and a mask.
        transform: From both to tensors.
        shard: The images that are this process's.
    """

    def __init__(self, items: MaskedImages, transform: JointTransform, shard: BatchShard) -> None:
        self.items, self.transform = items, transform
        self.numbers = range(shard.rank, len(items), shard.world_size)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Pair:
        return self.transform(*self.items[self.numbers[index]])


def joint_transform(
    data: MaskedData, config: DataConfig, masks: MaskConfig, input_size: tuple[int, int, int], *, train: bool
) -> JointTransform:
    """Build the transform of an image with its mask, by torchvision's v2 transforms.

    Args:
        data: Gives mean and standard deviation.
        config: Gives `crop`, `shift`, `scale`, `ratio`, `hflip` and `interpolation`.
        masks: Gives `fit` and `jitter`.
        input_size: (channels, height, width) of the model's input in pixels.
        train: Whether to augment. Without, images are resized with `fit: resize`, and left at their size otherwise.

    Returns:
        A function from an image and the classes of its pixels (height, width) to float (C, H, W) and int64 (H, W).
    """
    size = input_size[1:]
    steps: list[Any] = []
    if masks.fit == "resize":
        steps = _resized(config, size, augment=train)
    elif train:
        mean = [round(255 * value) for value in data.mean]  # as windows are padded afterwards
        steps = [v2.RandomCrop(size, pad_if_needed=True, fill=_fill(mean))]
    if train and config.hflip:
        steps.append(v2.RandomHorizontalFlip(config.hflip))
    if train and masks.jitter:
        steps.append(v2.ColorJitter(masks.jitter, masks.jitter, masks.jitter if input_size[0] == 3 else 0.0))
    return _Joint(steps, data.mean, data.std)


class _Joint:
    """Transforms of an image and its mask, which end in tensors. It can be sent to loader processes."""

    def __init__(self, steps: Sequence[Any], mean: Sequence[float], std: Sequence[float]) -> None:
        self.steps = list(steps)
        self.mean = torch.tensor(mean)[:, None, None] * 255
        self.std = torch.tensor(std)[:, None, None] * 255

    def __call__(self, image: Image.Image, mask: NDArray[np.uint8]) -> Pair:
        pixels: Any = tv_tensors.Image(image)
        classes: Any = tv_tensors.Mask(torch.from_numpy(np.array(mask)))
        for step in self.steps:
            pixels, classes = step(pixels, classes)
        plain = pixels.as_subclass(Tensor).float()
        return (plain - self.mean) / self.std, classes.as_subclass(Tensor).long()


def _resized(config: DataConfig, size: tuple[int, int], *, augment: bool) -> list[Any]:
    bilinear = config.interpolation == "bilinear"
    mode = v2.InterpolationMode.BILINEAR if bilinear else v2.InterpolationMode.BICUBIC
    if augment and config.crop == "resized":
        return [_ScaledCrop(size, mode, config.scale, config.ratio)]
    whole: list[Any] = [_Scaled(size, mode)]
    if not augment or config.crop == "center":
        return whole
    down, right = shifts(config, size)
    padding = {"fill": _fill(), "padding_mode": "constant"} if config.crop == "pad" else {"padding_mode": "reflect"}
    return [*whole, v2.RandomCrop(size, padding=[right, down], **padding)]


def _fill(image: int | list[int] = 0) -> dict[Any, Any]:
    return {tv_tensors.Image: image, tv_tensors.Mask: IGNORED}


class _Scaled:
    """Scale an image to (height, width) by a filter, and its mask by the pixels nearest to the middles of the new ones.

    torchvision would take their upper left ones, which moves a mask against its image.
    """

    def __init__(self, size: tuple[int, int], mode: v2.InterpolationMode) -> None:
        self.size, self.mode = size, mode

    def __call__(self, image: Any, mask: Any) -> tuple[Any, Any]:
        scaled = v2.functional.resize(image, list(self.size), interpolation=self.mode, antialias=True)
        rows, columns = (_nearest(there, here) for there, here in zip(mask.shape, self.size, strict=True))
        return scaled, tv_tensors.Mask(mask.as_subclass(Tensor)[rows[:, None], columns])


class _ScaledCrop(_Scaled):
    """Scale a random part of an image and its mask, drawn as torchvision's `RandomResizedCrop` does."""

    def __init__(
        self, size: tuple[int, int], mode: v2.InterpolationMode, scale: Sequence[float], ratio: Sequence[float]
    ) -> None:
        super().__init__(size, mode)
        self.scale, self.ratio = list(scale), list(ratio)

    def __call__(self, image: Any, mask: Any) -> tuple[Any, Any]:
        part = RandomResizedCrop.get_params(image, self.scale, self.ratio)
        return super().__call__(*(v2.functional.crop(each, *part) for each in (image, mask)))


def _nearest(there: int, here: int) -> Tensor:
    """Return the numbers of the `there` pixels in a row that are nearest to the middles of `here` that replace them."""
    return ((torch.arange(here) + 0.5) * there / here).long()


def require_masks_allow(config: DataConfig) -> None:
    """Refuse settings of `DataConfig` that have no meaning for masks.

    Raises:
        InputError: If there is one.
    """
    off: dict[str, Any] = {
        "auto_augment": None,
        "mixup": 0,
        "cutmix": 0,
        "random_erasing": 0,
        "crop_pct": 1.0,
        "pipeline": "timm",
        "flip": "random",
        "streaming": "auto",
        "balance": "none",
        "keep_decoded": False,
    }
    for name, value in off.items():
        given = getattr(config, name)
        if given != value and not (name == "auto_augment" and not given) and (name, given) != ("streaming", "never"):
            raise InputError(
                f"data.{name} is {given}, and task segment knows of data.crop, data.hflip, masks.jitter and "
                "segment.class_weights instead; leave it out"
            )
