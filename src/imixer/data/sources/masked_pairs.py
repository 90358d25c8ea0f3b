"""Pairs of an image and a mask, wherever their bytes lie, and the data set that they make."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import IGNORED, MaskedData, MaskedImage
from imixer.data.sources.decoding import (
    EIGHT_BITS,
    SKIP_REMEDY,
    PixelFormat,
    UnreadableImage,
    convert_image,
    decode_bytes,
    decode_file,
    find_unreadable,
    pixel_format,
)
from imixer.data.sources.masks import MaskCoding, coding_of, default_palette
from imixer.data.sources.rows import NO_BYTES
from imixer.data.sources.statistics import DepthObserver, MinMaxObserver, usable_statistics
from imixer.errors import InputError
from imixer.escaping import few_names

PatchSide: TypeAlias = "Callable[[tuple[int, int] | None], int]"
_STREAM = 12  # keeps the draw of held-out images apart from others


class Pair(Protocol):
    """An image and its mask. It is hashable, and cheap to send to loader processes."""

    @property
    def name(self) -> str:
        """Its name in lists, short."""
        ...

    @property
    def place(self) -> str:
        """Where the image lies, for messages."""
        ...

    def image(self) -> Image.Image:
        """Decode the image, in the mode it is stored in.

        Raises:
            UnreadableImage: If it cannot be decoded.
        """
        ...

    def mask(self) -> Image.Image:
        """Decode the mask, in the mode it is stored in.

        Raises:
            UnreadableImage: If it cannot be decoded, or is not there.
        """
        ...


@dataclass(frozen=True)
class FilePair:
    """An image file and a mask file.

    Args:
        image_file: The image.
        mask_file: The mask.
        root: The folder that the name is told from.
    """

    image_file: Path
    mask_file: Path
    root: Path

    @property
    def name(self) -> str:
        """The image's path below the folder."""
        return str(self.image_file.relative_to(self.root))

    @property
    def place(self) -> str:
        """The image's path."""
        return str(self.image_file)

    def image(self) -> Image.Image:
        """Decode the image file."""
        return decode_file(self.image_file)

    def mask(self) -> Image.Image:
        """Decode the mask file."""
        try:
            return decode_file(self.mask_file)
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask {self.mask_file.name}: {error}") from None


@dataclass(frozen=True, eq=False)
class RowPair:
    """A row of a shard with an encoded image and an encoded mask.

    Args:
        file: The shard.
        row: Number of the row in it.
        encoded_image: Bytes of the image. None: the row has none.
        encoded_mask: Bytes of the mask, likewise.
    """

    file: str
    row: int
    encoded_image: bytes | None
    encoded_mask: bytes | None

    @property
    def name(self) -> str:
        """Name of the shard, and number of the row."""
        return f"{Path(self.file).name} row {self.row}"

    @property
    def place(self) -> str:
        """Path of the shard, and number of the row."""
        return f"{self.file} row {self.row}"

    def image(self) -> Image.Image:
        """Decode the image."""
        if self.encoded_image is None:
            raise UnreadableImage(NO_BYTES)
        return decode_bytes(self.encoded_image)

    def mask(self) -> Image.Image:
        """Decode the mask."""
        if self.encoded_mask is None:
            raise UnreadableImage("the row has no mask")
        try:
            return decode_bytes(self.encoded_mask)
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask: {error}") from None


@dataclass(frozen=True)
class Incomplete:
    """An image without a mask, or a mask without an image.

    Args:
        name: Its name in lists, short.
        place: What it is and where it lies, for messages.
        reason: What it lacks, in words that follow the place.
    """

    name: str
    place: str
    reason: str


@dataclass(frozen=True)
class Pairs:
    """The pairs of a data set, and what is known about them before they are decoded.

    Args:
        name: Name of the data set.
        place: Where it lies, for messages.
        train: Pairs to train on.
        val: Pairs that are held out. None: some of the others are.
        sources: Where both come from, in words; the second is empty where `val` is None.
        split: The data set's own name for the split that `val` is.
        class_names: Names of the classes. None: numbers, as many as the largest index takes.
        incomplete: Each image that lacks a mask, and each mask that lacks an image.
        notes: What was decided, a sentence each.
        left_out: Files and folders that are not used.
    """

    name: str
    place: str
    train: Sequence[Pair]
    val: Sequence[Pair] | None
    sources: tuple[str, str]
    split: str | None = None
    class_names: tuple[str, ...] | None = None
    incomplete: Sequence[Incomplete] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class StoredMasks(Dataset[MaskedImage]):
    """Images with masks that are decoded when asked for.

    Args:
        pairs: Image and mask of each item.
        coding: What values of masks mean.
        in_chans: 1 converts images to mode `L`, 3 to `RGB`.
        pixels: How stored pixel values of images become bytes.
    """

    def __init__(
        self, pairs: Sequence[Pair], coding: MaskCoding, in_chans: int, pixels: PixelFormat = EIGHT_BITS
    ) -> None:
        self.pairs = list(pairs)
        self.coding, self.in_chans, self.pixels = coding, in_chans, pixels

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> MaskedImage:
        pair = self.pairs[index]
        try:
            image = convert_image(pair.image(), self.in_chans, self.pixels, pair.place)
            return image, self.coding.decode(pair.mask())
        except UnreadableImage as error:
            raise InputError(f"cannot read image {pair.place}: {error}; {SKIP_REMEDY}") from None

    @property
    def paths(self) -> list[str]:
        """Where each image lies."""
        return [pair.place for pair in self.pairs]


class _Counts:
    """What was seen on pairs. Several threads may feed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pixels: dict[Pair, NDArray[np.int64]] = {}
        self.sizes: dict[Pair, tuple[int, int]] = {}

    def add(self, pair: Pair, classes: NDArray[np.uint8]) -> None:
        """Count a mask in."""
        counts = np.bincount(classes.ravel(), minlength=256)
        with self._lock:
            self.pixels[pair], self.sizes[pair] = counts, (classes.shape[0], classes.shape[1])


def open_pairs(
    pairs: Pairs,
    config: DataConfig,
    masks: MaskConfig,
    patch_side: PatchSide | None = None,
    *,
    whole: bool = False,
) -> MaskedData:
    """Decode all pairs of a data set once, leave out or refuse those that do not fit, and split the others.

    Args:
        pairs: The pairs.
        config: How images are split and read, and whether pairs that do not fit are skipped.
        masks: What values of masks mean.
        patch_side: From the size (height, width) that all images share, or None, to the side of a patch of the model
            in pixels, below which an image is of no use.
        whole: Whether all pairs are a test set: both splits then hold all of them.

    Raises:
        InputError: If a pair is incomplete or unreadable, its sizes differ, a mask has a value of no class or no pixel
            that counts, an image is smaller than a patch, or fewer than two classes have pixels to train on; of a test
            set, if all pixels are of the first class or ignored.
    """
    if pairs.incomplete and not config.skip_bad:
        first, rest = pairs.incomplete[0], len(pairs.incomplete) - 1
        more = f" (and {rest} more like it)" if rest else ""
        raise InputError(f"{first.place} {first.reason}{more}; mend or remove it, or train with --data.skip_bad true")
    coding = coding_of(masks, len(pairs.class_names) if pairs.class_names else None)
    every = [*pairs.train, *(pairs.val or ())]
    counts, observer, depth = _Counts(), MinMaxObserver(), DepthObserver(pixel_format(config))

    def check(pair: Pair) -> None:
        image = pair.image()
        observer.observe(image)
        if whole:
            depth.observe(image, pair.place)
        mask = pair.mask()
        if mask.size != image.size:
            raise UnreadableImage(
                f"its mask has {mask.height}x{mask.width} pixels, and it has {image.height}x{image.width}"
            )
        classes = coding.decode(mask)
        if (classes == IGNORED).all():
            raise UnreadableImage("its mask has no pixel that counts, all are ignored")
        counts.add(pair, classes)

    unfit: dict[Pair, str] = find_unreadable(every, check, lambda pair: pair.place, skip_bad=config.skip_bad)
    sizes = counts.sizes
    native = next(iter(sizes.values())) if len(set(sizes.values())) == 1 else None
    if patch_side is not None:
        unfit |= _too_small(sizes, patch_side(native), skip_bad=config.skip_bad)
    train, val = ([pair for pair in part if pair not in unfit] for part in (pairs.train, pairs.val or ()))
    if not train:
        raise InputError(f"data.name: no image with its mask in {pairs.place} can be used; look at the masks")
    if whole:
        train = val = [*train, *val]
    elif pairs.val is None:
        train, val = _split(train, config)
    if not val:
        raise InputError(f"data.name: {pairs.place} leaves no image for validation; add some")
    pixels = sum((counts.pixels[pair] for pair in train), np.zeros(256, np.int64))
    most = max(int(np.flatnonzero(counts.pixels[pair][:IGNORED]).max(initial=-1)) for pair in [*train, *val])
    class_names = pairs.class_names or tuple(map(str, range(most + 1)))
    if problem := _too_few_classes(pixels, coding, whole=whole):
        raise InputError(f"the masks of {pairs.place} {problem}")
    statistics = usable_statistics(lambda index: train[index].image(), len(train), config, pairs.place, observer)
    sizes = {pair: sizes[pair] for pair in [*train, *val]}
    least = min(sizes, key=lambda pair: min(sizes[pair]))
    # the range that was measured is of no use for a test set, which is read as in training
    notes = depth.notes(f"the images of {pairs.place}") if whole else statistics.notes
    coding = MaskCoding(len(class_names), coding.palette, coding.ignored, coding.values)
    common: Any = (coding, statistics.in_chans, statistics.pixels)
    return MaskedData(
        name=pairs.name,
        train=StoredMasks(train, *common),
        val=StoredMasks(val, *common),
        class_names=class_names,
        in_chans=statistics.in_chans,
        native_size=next(iter(sizes.values())) if len(set(sizes.values())) == 1 else None,
        mean=statistics.mean,
        std=statistics.std,
        skipped=(*(each.name for each in pairs.incomplete), *(pair.name for pair in unfit)),
        sources=(pairs.sources[0], pairs.sources[1] or f"{config.val_fraction:.0%} of them"),
        notes=(*pairs.notes, *_pixel_notes(pixels, class_names, train, counts, coding, whole=whole), *notes),
        left_out=pairs.left_out,
        value_range=statistics.pixels.value_range,
        split=pairs.split,
        pixels=tuple(pixels[: len(class_names)].tolist()),
        palette=coding.palette or default_palette(class_names),
        smallest=(least.name, *sizes[least]),
    )


def _too_few_classes(pixels: NDArray[np.int64], coding: MaskCoding, *, whole: bool) -> str:
    """Explain why the pixels of each class (256,) are of too few classes; empty if they are not.

    A test set may have a single class. One that has the first class and ignored pixels alone is most likely stored as
    0 and 255, where another class was meant.
    """
    there = np.flatnonzero(pixels[:IGNORED]).tolist()
    ignored = coding.palette is None and bool(pixels[IGNORED])
    if len(there) > 1 or (whole and not (ignored and there == [0])):
        return ""
    (only,) = there
    stored = coding.values[only] if coding.values else only
    if whole:
        return (
            f"hold {stored} and {coding.ignored} alone, and {coding.ignored} is ignored; store the indices that the "
            "run was trained on"
        )
    if ignored:
        return (
            f"have only one class; if one is stored as {coding.ignored}, which is ignored, pass --masks.values "
            f'"[{stored}, {coding.ignored}]"'
        )
    return "have only one class in the images to train on; look whether they hold what you think"


def _pixel_notes(
    pixels: NDArray[np.int64],
    class_names: Sequence[str],
    pairs: Sequence[Pair],
    counts: _Counts,
    coding: MaskCoding,
    *,
    whole: bool,
) -> tuple[str, ...]:
    """Write which classes have no pixel, and how many pixels count for nothing, a sentence each."""
    notes, which = [], "test" if whole else "training"
    absent = [name for name, count in zip(class_names, pixels[: len(class_names)], strict=True) if not count]
    if absent:
        notes.append(f"no pixel of the {which} masks is of {few_names(absent)}")
    if pixels[IGNORED]:
        first = next(pair for pair in pairs if counts.pixels[pair][IGNORED])
        colour = coding.unknown_colour(first.mask())
        what = f"are {coding.ignored}" if colour is None else f"have colours of no class, first {colour}"
        share = f"{pixels[IGNORED] / pixels.sum():.2%} of the pixels of the {which} masks"
        notes.append(f"{share} {what}, and count for nothing")
    return tuple(notes)


def _too_small(sizes: dict[Pair, tuple[int, int]], patch: int, *, skip_bad: bool) -> dict[Pair, str]:
    """Find the images that are smaller than a patch of the model."""
    small = [pair for pair, size in sizes.items() if min(size) < patch]
    if small and not skip_bad:
        height, width = sizes[small[0]]
        rest = f" (and {len(small) - 1} more like it)" if len(small) > 1 else ""
        raise InputError(
            f"image {small[0].place} has {height}x{width} pixels, less than the model's patch of {patch}x{patch}{rest}"
            "; remove it, or train with a smaller model.patch_size or --data.skip_bad true"
        )
    return {pair: pair.place for pair in small}


def _split(pairs: list[Pair], config: DataConfig) -> tuple[list[Pair], list[Pair]]:
    """Hold out a share of the pairs."""
    count = max(1, round(config.val_fraction * len(pairs)))
    if count >= len(pairs):
        raise InputError(f"data.val_fraction {config.val_fraction:g} of {len(pairs)} images leaves none; add images")
    order = np.random.default_rng((_STREAM, config.split_seed)).permutation(len(pairs))
    held_out = set(order[:count].tolist())
    return (
        [pair for number, pair in enumerate(pairs) if number not in held_out],
        [pair for number, pair in enumerate(pairs) if number in held_out],
    )
