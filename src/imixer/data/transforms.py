"""Crop, flip, augment, mix and normalise images: what the settings of `DataConfig` mean, for both pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.data.transforms import ResizeKeepRatio, str_to_interp_mode
from torch import Tensor
from torchvision import transforms

from imixer.data.config import DataConfig
from imixer.errors import InputError

Transform: TypeAlias = Callable[[Image.Image], Tensor]

_POLICY = re.compile(r"(rand|augmix|v0|v0r|original|originalr|3a)(-([a-z]+\d[\d.]*|t(weights|3a|3aw)))*")
_OPERATIONS = re.compile(r"-[nwd](\d+)")  # of an image: their number, chains of them, their length
_MOST_OPERATIONS = 100


def train_transform(
    config: DataConfig, input_size: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
) -> transforms.Compose:
    """Build the training transform: crop, flip, augment, normalise and erase, in this order.

    Args:
        config: Gives `crop`, `hflip`, `auto_augment`, `random_erasing` and their settings.
        input_size: (channels, height, width) of the result in pixels.
        mean: Mean per channel to subtract, in [0, 1].
        std: Standard deviation per channel to divide by, in [0, 1].

    Returns:
        A function from an image of mode `L` or `RGB` and any size to a float tensor of shape `input_size`. Its
        `transforms` are its steps.

    Raises:
        InputError: If timm knows no such augmentation policy.
    """
    policy = config.auto_augment or None
    if policy is not None and (
        not _POLICY.fullmatch(policy) or any(int(each) > _MOST_OPERATIONS for each in _OPERATIONS.findall(policy))
    ):
        raise _policy_error(policy)
    settings: dict[str, Any] = {
        "scale": tuple(config.scale),
        "ratio": tuple(config.ratio),
        "hflip": config.hflip,
        "color_jitter": None,
        "auto_augment": policy,
        "interpolation": config.interpolation,
        "mean": tuple(mean),
        "std": tuple(std),
        "re_prob": config.random_erasing,
        "re_mode": "pixel",
    }
    try:
        crop, augment, finish = create_transform(input_size, is_training=True, separate=True, **settings)
    except (AssertionError, ValueError, KeyError) as error:
        if policy is None:
            raise
        raise _policy_error(policy) from error
    for step in augment.transforms:
        too_many = getattr(step, "choice_weights", None) is not None and step.num_layers > len(step.ops)
        if too_many or getattr(step, "alpha", 1.0) <= 0:  # which timm finds out at the first image
            raise InputError(
                f"data.auto_augment is {policy!r}, and timm mixes by an alpha above 0, and chooses by weights as many "
                "operations as there are at most; change -a or -n"
            )
    mend_posterize(augment.transforms)
    if config.crop != "resized":
        build = _center_crop if config.crop == "center" else _shifted_crop
        flip = [transforms.RandomHorizontalFlip(config.hflip)] if config.hflip else []
        crop = transforms.Compose([*build(config, input_size[1:]), *flip])
    return _flat(crop, augment, finish)


def eval_transform(
    input_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float,
    interpolation: str,
) -> Transform:
    """Build the transform for validation and prediction: resize, cut out the centre and normalise. Nothing is random.

    Args:
        input_size: (channels, height, width) of the result in pixels.
        mean: Mean per channel to subtract, in [0, 1].
        std: Standard deviation per channel to divide by, in [0, 1].
        crop_pct: Share of the resized image's side that is kept, in (0, 1].
        interpolation: `bilinear` or `bicubic`; `random`, which is for training, means `bicubic` here.

    Returns:
        A function from an image of mode `L` or `RGB` and any size to a float tensor of shape `input_size`.
    """
    transform: Transform = create_transform(
        input_size,
        is_training=False,
        crop_pct=crop_pct,
        interpolation="bicubic" if interpolation == "random" else interpolation,
        mean=tuple(mean),
        std=tuple(std),
    )
    return transform


def _shifted_crop(config: DataConfig, size: tuple[int, int]) -> list[Any]:
    filters = ("bilinear", "bicubic") if config.interpolation == "random" else (config.interpolation,)
    # torchvision leaves an image alone that has the size already
    resize = [transforms.Resize(size, interpolation=str_to_interp_mode(name)) for name in filters]
    down, right = shifts(config, size)
    mode = "reflect" if config.crop == "reflect" else "constant"
    return [
        resize[0] if len(resize) == 1 else transforms.RandomChoice(resize),
        transforms.RandomCrop(size, padding=(right, down), fill=0, padding_mode=mode),
    ]


def _center_crop(config: DataConfig, size: tuple[int, int]) -> list[Any]:
    whole = tuple(int(side / config.crop_pct) for side in size)
    return [ResizeKeepRatio(whole, interpolation=config.interpolation), transforms.CenterCrop(size)]


def _flat(*parts: transforms.Compose) -> transforms.Compose:
    # one list instead of three nested ones: fewer calls per image, and it prints better
    return transforms.Compose([step for part in parts for step in part.transforms])


def _policy_error(policy: str) -> InputError:
    return InputError(
        f"data.auto_augment {policy!r} is no policy that timm knows; write, for instance, rand-m9-mstd0.5-inc1, "
        "original-mstd0.5 or augmix-m5-w4-d2"
    )


def posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """Keep the upper bits of each pixel value; 0 bits give black, as before Pillow 13.

    Without it, `rand-m9-mstd0.5-inc1` fails after some hundred images, when the magnitude is drawn above 10.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    kept: Image.Image = auto_augment.posterize(image, bits, **settings)
    return kept


def mend_posterize(steps: Iterable[Any]) -> None:
    """Replace the posterize operation of timm's policies by the function above."""
    for step in steps:
        groups = getattr(step, "policy", None) or [getattr(step, "ops", [])]
        for operation in (each for group in groups for each in group):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize


_STREAM = 7  # keeps these draws apart from those of orders and images


def shifts(config: DataConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Compute the largest shift of the crops `pad` and `reflect`.

    Args:
        config: Gives `shift` and `crop`.
        size: (height, width) of the crop in pixels.

    Returns:
        Pixels down and to the right.

    Raises:
        InputError: If the shift is a side or more, or an image of one pixel is to be reflected.
    """
    if config.shift is not None and config.shift >= min(size):
        raise InputError(
            f"data.shift is {config.shift}, and images have {size[0]}x{size[1]} pixels; give less than a side"
        )
    down, right = (config.shift or max(1, side // 8) for side in size)
    if config.crop == "reflect" and min(size) < 2:
        raise InputError(f"data.crop is reflect, and images have {size[0]}x{size[1]} pixels; use data.crop center")
    return down, right


class AlternatingFlips:
    """The images that are mirrored in each epoch: each image in every other one.

    Choose it for short trainings. An image is then seen from both sides in any two epochs in a row, where independent
    draws repeat a side half of the time. The decision depends on seed, epoch and image number only.

    Args:
        count: Number of images.
        seed: Training seed, 0 or more.
        first: Probability that an image is mirrored in epoch 0.

    Source: Jordan, arXiv 2404.00498, section 3.6.
    """

    def __init__(self, count: int, seed: int, first: float) -> None:
        self._first = np.random.default_rng((_STREAM, seed)).random(count) < first

    def __call__(self, numbers: NDArray[np.int64], epoch: int) -> NDArray[np.bool_]:
        """Decide which images are mirrored.

        Args:
            numbers: Image numbers (B,).
            epoch: Number of the epoch, from 0.

        Returns:
            Truth values (B,).
        """
        mirrored: NDArray[np.bool_] = self._first[numbers] ^ bool(epoch % 2)
        return mirrored


def alternating_flips(config: DataConfig, count: int, seed: int) -> AlternatingFlips | None:
    """Build the decision on mirroring, or return None if every epoch draws anew."""
    return AlternatingFlips(count, seed, config.hflip) if config.flip == "alternating" else None


def build_mixup(config: DataConfig, micro_batch_size: int, num_classes: int, smoothing: float) -> Mixup | None:
    """Build timm's mixing of each micro-batch with its own reverse, or return None when both alphas are 0.

    With both alphas above 0, each micro-batch gets Mixup or CutMix by the toss of a coin. The mixer turns (images,
    labels) into (images, targets), with targets float (B, num_classes).

    Args:
        config: Gives `mixup` and `cutmix`.
        micro_batch_size: Images that are mixed at a time.
        num_classes: Number of classes.
        smoothing: Label smoothing, which the targets then contain.

    Raises:
        InputError: If the number of images is odd; they are mixed in pairs.
    """
    if config.mixup == 0 and config.cutmix == 0:
        return None
    if micro_batch_size % 2:
        whole = "" if micro_batch_size == config.batch_size else f", {micro_batch_size} images at a time"
        raise InputError(
            f"data.batch_size is {config.batch_size}{whole}; data.mixup and data.cutmix mix pairs, give an even number"
        )
    return Mixup(
        mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=smoothing, num_classes=num_classes
    )
