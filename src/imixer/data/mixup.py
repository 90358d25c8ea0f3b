"""Mixup and CutMix, from timm."""

from __future__ import annotations

from timm.data import Mixup

from imixer.data.config import DataConfig
from imixer.errors import InputError


def build_mixup(config: DataConfig, part: int, num_classes: int, smoothing: float) -> Mixup | None:
    """Mixing of each batch with its own reverse, or None when both alphas are 0.

    With both alphas above 0, each batch gets one of the two by the toss of a coin. The mixer turns
    (images, labels) into (images, targets), and the targets have shape (batch, `num_classes`).

    Args:
        config: Gives `mixup` and `cutmix`.
        part: Images that come at a time.
        num_classes: Number of classes.
        smoothing: Label smoothing, which the targets then contain.

    Raises:
        InputError: The number of images is odd; they are mixed in pairs.
    """
    if config.mixup == 0 and config.cutmix == 0:
        return None
    if part % 2:
        whole = "" if part == config.batch_size else f", {part} images at a time"
        raise InputError(
            f"data.batch_size is {config.batch_size}{whole}; data.mixup and data.cutmix mix pairs, give an even number"
        )
    return Mixup(
        mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=smoothing, num_classes=num_classes
    )
