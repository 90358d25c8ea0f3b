"""Data sets of other libraries, brought to one form."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from imixer.data.image_data import LabelledImage
from imixer.data.sources.decoding import EIGHT_BITS, PixelFormat, convert_image, error_reason
from imixer.errors import InputError


class WrappedDataset(Dataset[LabelledImage]):
    """Another library's data set, as pairs of an image of mode `L` or `RGB` and a plain int.

    Choose it for data sets that already give PIL images, such as those of torchvision.

    Args:
        items: Pairs of a PIL image and a label.
        in_chans: 1 converts to mode `L`, 3 to `RGB`.
        name: Name of the data set in messages.
        pixels: How stored pixel values become bytes.
        classes: Number of classes, from 0 to which labels must be. None: they are taken as they are.
    """

    def __init__(
        self,
        items: Any,
        in_chans: int,
        name: str,
        pixels: PixelFormat = EIGHT_BITS,
        classes: int | None = None,
    ) -> None:
        self.items = items
        self.in_chans = in_chans
        self.name = name
        self.pixels = pixels
        self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> LabelledImage:
        image, label = read_item(self.items, index, self.name, self.classes)
        return convert_image(image, self.in_chans, self.pixels, f"{index} of {self.name}"), label


def read_item(items: Any, index: int, name: str, classes: int | None = None) -> LabelledImage:
    """Read an item in the mode it is stored in.

    Args:
        items: Pairs of a PIL image and a label.
        index: Number of the item.
        name: Name of the data set in messages.
        classes: See `WrappedDataset`.

    Raises:
        InputError: If it cannot be read, or its label is of no class; the message names it.
    """
    try:
        image, label = items[index]
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(
            f"cannot read image {index} of {name}: {error_reason(error)}; fetch the data set again"
        ) from error
    return image, known_label(label, index, name, classes)


def known_label(label: Any, index: int, name: str, classes: int | None) -> int:
    """Return a label as a plain int, and refuse one that is hidden, as -1 or None.

    Args:
        label: The label.
        index: Number of the item.
        name: Name of the data set in messages.
        classes: See `WrappedDataset`.

    Raises:
        InputError: If it is none of a class.
    """
    try:
        number = int(label)
    except (TypeError, ValueError):
        number = None
    if number is None or (classes is not None and not 0 <= number < classes):
        wanted = "a number" if classes is None else f"from 0 to {classes - 1}"
        raise InputError(
            f"image {index} of {name} has the label {label!r}, and those of classes are {wanted}; save the images "
            "whose labels are known in a folder for each class, and give the folder above as data.name"
        )
    return number
