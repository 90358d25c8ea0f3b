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
    """

    def __init__(self, items: Any, in_chans: int, name: str, pixels: PixelFormat = EIGHT_BITS) -> None:
        self.items = items
        self.in_chans = in_chans
        self.name = name
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> LabelledImage:
        image, label = read_item(self.items, index, self.name)
        return convert_image(image, self.in_chans, self.pixels, f"{index} of {self.name}"), label


def read_item(items: Any, index: int, name: str) -> LabelledImage:
    """Read an item in the mode it is stored in.

    Args:
        items: Pairs of a PIL image and a label.
        index: Number of the item.
        name: Name of the data set in messages.

    Raises:
        InputError: If it cannot be read; the message names it.
    """
    try:
        image, label = items[index]
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(
            f"cannot read image {index} of {name}: {error_reason(error)}; fetch the data set again"
        ) from error
    return image, int(label)
