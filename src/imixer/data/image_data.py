"""What every data set becomes: two lists of labelled images and the facts needed to build loaders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image
from torch.utils.data import Dataset

from imixer.errors import InputError

Item: TypeAlias = "tuple[Image.Image, int]"


@dataclass(frozen=True)
class ImageData:
    """A data set with a training and a validation part, and no transform yet.

    Args:
        name: Short name, usable in a folder name.
        train: Training items, each an image of mode `L` or `RGB` and its label, from 0.
        val: Held-out items, likewise.
        class_names: Name of each label.
        in_chans: 1 when images are delivered as mode `L`, 3 when as `RGB`.
        native_size: (height, width) in pixels when the images are known to share it.
        mean: Mean of each channel, with pixel values in [0, 1].
        std: Standard deviation of each channel, likewise; never 0.
        skipped: Names of unreadable images that were left out.
        split: The data set's own name for the part that `val` is, such as `test`; None where it has none, and `val` was
            taken from its training images.
    """

    name: str
    train: Dataset[Item]
    val: Dataset[Item]
    class_names: tuple[str, ...]
    in_chans: int
    native_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[str, ...] = ()
    split: str | None = None


def few_names(class_names: Sequence[str]) -> str:
    """The first classes, and how many there are."""
    shown = ", ".join(class_names[:5])
    return f"{shown}, ... ({len(class_names)})" if len(class_names) > 5 else shown


def check_channels(data: ImageData, input_size: tuple[int, int, int]) -> None:
    """See that a model takes the images of a data set.

    Args:
        data: The data set.
        input_size: (channels, height, width) of the model's input.

    Raises:
        InputError: The channels differ.
    """
    if input_size[0] != data.in_chans:
        raise InputError(
            f"{data.name} has {data.in_chans}-channel images, but the model takes {input_size[0]} channels; "
            f"build the model with in_chans={data.in_chans}"
        )
