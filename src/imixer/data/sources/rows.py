"""Rows of shards, each an encoded image and a label, wherever their bytes lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from imixer.data.image_data import LabelledImage
from imixer.data.sources.decoding import (
    EIGHT_BITS,
    SKIP_REMEDY,
    PixelFormat,
    UnreadableImage,
    convert_image,
    decode_bytes,
)
from imixer.errors import InputError

NO_BYTES = "the row has no image bytes"


class Rows(ABC):
    """Encoded images by number, with their labels.

    Args:
        labels: Label of each row (rows,).
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def encoded(self, row: int) -> Any:
        """Return the encoded image of a row, as bytes or a buffer of them. None: it has none."""

    @abstractmethod
    def name(self, row: int) -> str:
        """Name a row by file and number, for messages."""

    @abstractmethod
    def without_bytes(self) -> list[int]:
        """List the rows that are known to have no image."""

    def hold(self, group: int) -> None:  # noqa: B027 - those in memory are there
        """Fetch a group of rows if they are streamed.

        Args:
            group: Number of the group.
        """

    def decode(self, row: int) -> Image.Image:
        """Decode the image of a row, in the mode it is stored in.

        Raises:
            UnreadableImage: If the row has no image, or one that cannot be decoded.
        """
        encoded = self.encoded(row)
        if encoded is None:
            raise UnreadableImage(NO_BYTES)
        return decode_bytes(encoded)

    def read(self, row: int) -> Image.Image:
        """Decode the image of a row, in the mode it is stored in, and name the row if that fails.

        Raises:
            InputError: If the row has no image, or one that cannot be decoded.
        """
        try:
            return self.decode(row)
        except UnreadableImage as error:
            raise InputError(f"cannot read image {self.name(row)}: {error}; {SKIP_REMEDY}") from None


class ShardImages(Dataset[LabelledImage]):
    """Rows of shards, decoded when asked for.

    Args:
        rows: The shards.
        chosen: Numbers of the rows that are used, in order.
        in_chans: 1 converts to mode `L`, 3 to `RGB`.
        pixels: How stored pixel values become bytes.
    """

    def __init__(self, rows: Rows, chosen: NDArray[np.int64], in_chans: int, pixels: PixelFormat = EIGHT_BITS) -> None:
        self.rows = rows
        self.chosen = chosen
        self.in_chans = in_chans
        self.pixels = pixels

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each item."""
        return self.rows.labels[self.chosen]

    @property
    def names(self) -> list[str]:
        """Name of each item, by file and number or key."""
        return [self.rows.name(int(row)) for row in self.chosen]

    def hold(self, group: int) -> None:
        """Fetch a group of rows if they are streamed.

        Args:
            group: Number of the group.
        """
        self.rows.hold(group)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> LabelledImage:
        row = int(self.chosen[index])
        image = convert_image(self.rows.read(row), self.in_chans, self.pixels, self.rows.name(row))
        return image, int(self.rows.labels[row])
