"""Items of another library's data set, brought to one form."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from imixer.data.image_data import LabelledImage
from imixer.data.sources.decoding import EIGHT_BITS, PixelFormat, convert_image, error_reason
from imixer.errors import InputError


class WrappedDataset(Dataset[LabelledImage]):
    """Pairs of an image and a label, as mode `L` or `RGB` and a plain int.

    Args:
        items: Anything with a length and items (PIL image, label).
        in_chans: 1 delivers mode `L`, 3 delivers `RGB`.
        name: What to call the data set in a message.
        pixels: How stored pixels become bytes.
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
    """An item as it is stored. Raises InputError naming it when it cannot be read."""
    try:
        image, label = items[index]
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(
            f"cannot read image {index} of {name}: {error_reason(error)}; fetch the data set again"
        ) from error
    return image, int(label)
