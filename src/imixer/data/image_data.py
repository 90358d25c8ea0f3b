"""The form that every data set takes: two lists of images and targets, and what building loaders takes to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imixer.data.sampler import Windows
from imixer.errors import InputError

_T_co = TypeVar("_T_co", covariant=True)


class SizedDataset(Protocol[_T_co]):
    """A data set with a length and items by number, which torch's `Dataset` does not promise.

    Ask for it wherever items are counted or drawn. Any list, `Subset`, or data set of torchvision fits.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> _T_co: ...


LabelledImage: TypeAlias = "tuple[Image.Image, int]"
LabelledImages: TypeAlias = "SizedDataset[LabelledImage]"
IGNORED = 255  # the class of pixels that count for nothing
MaskedImage: TypeAlias = "tuple[Image.Image, NDArray[np.uint8]]"
MaskedImages: TypeAlias = "SizedDataset[MaskedImage]"


@runtime_checkable
class StreamedImages(Protocol):
    """Images that are fetched by groups into a cache. Ask for it to fetch ahead of those who read them."""

    def hold(self, group: int, /) -> None:
        """Fetch a group into the cache if it is not there."""
        ...


@dataclass(frozen=True)
class ImageSet:
    """A data set of any task with a training split and a validation split, before any transform.

    Choose `ImageData` for classes of images and `MaskedData` for classes of pixels, which say what a target is.

    Args:
        name: Short name, usable in a folder name.
        train: Training items, each an image of mode `L` or `RGB` and its target.
        val: Held-out items, likewise.
        class_names: Name of each label.
        in_chans: 1 when images come in mode `L`, 3 when in `RGB`.
        native_size: (height, width) in pixels when the images are known to share it.
        mean: Mean of each channel, with pixel values in [0, 1].
        std: Standard deviation of each channel, likewise; never 0.
        skipped: Names of unreadable images that were left out.
        sources: Where the training split and the held-out split come from, in words.
        notes: What was decided that the data do not say themselves, a sentence each.
        left_out: Folders and files that are not used.
        value_range: Stored values that become black and white. None: all images have 8 bits.
        split: The data set's own name for the split that `val` is, such as `test`. None: it has none, and `val` was
            taken from its training images.
        windows: The groups that training images are fetched in, where they are streamed. None: all are at hand.
        fingerprint: What tells streamed data from others of as many images and classes. Empty: they are not streamed.
        origin: URL of streamed data, and what tells its objects from others of their names. Empty: they are files.
    """

    name: str
    train: SizedDataset[tuple[Image.Image, Any]]
    val: SizedDataset[tuple[Image.Image, Any]]
    class_names: tuple[str, ...]
    in_chans: int
    native_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[str, ...] = ()
    sources: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    split: str | None = None
    windows: Windows | None = None
    fingerprint: str = ""
    origin: tuple[str, str] = ("", "")


def training_labels(data: ImageData, what: str) -> NDArray[np.int64]:
    """Return the label of each training image (images,).

    Args:
        data: The data set.
        what: What needs them, in messages.

    Raises:
        InputError: If the data set tells them only image by image.
    """
    labels = getattr(data.train, "labels", None)
    if labels is None:
        raise InputError(f"{what}, and {data.name} does not tell its labels at once; use a folder or parquet files")
    return np.asarray(labels, dtype=np.int64)


@dataclass(frozen=True)
class ImageData(ImageSet):
    """A data set of images with one class each.

    Choose it to train on a data set that `open_dataset` does not know: build one, and give it to `build_batches`. The
    target of an item is its label, from 0. Takes the arguments of `ImageSet`.
    """

    train: LabelledImages
    val: LabelledImages


@dataclass(frozen=True)
class MaskedData(ImageSet):
    """A data set of images with a class for each pixel.

    Choose it for segmentation. The target of an item is its mask, uint8 (height, width) of the image's size: classes
    from 0, and `IGNORED`. Takes the arguments of `ImageSet`, and the following.

    Args:
        pixels: Pixels of each class in the training masks.
        palette: Colour (red, green, blue) of each class, to draw it with.
        smallest: Name of the smallest image, and its (height, width). None: all have `native_size`.
    """

    train: MaskedImages
    val: MaskedImages
    pixels: tuple[int, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    smallest: tuple[str, int, int] | None = None


def check_channels(data: ImageSet, input_size: tuple[int, int, int]) -> None:
    """Check that a model takes images with as many channels as a data set has.

    Args:
        data: The data set.
        input_size: (channels, height, width) of the model's input.

    Raises:
        InputError: If the numbers of channels differ.
    """
    if input_size[0] != data.in_chans:
        raise InputError(
            f"{data.name} has {data.in_chans}-channel images, but the model takes {input_size[0]} channels; "
            f"build the model with in_chans={data.in_chans}"
        )
