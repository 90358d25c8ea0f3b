"""Folders of images beside folders of masks."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from imixer.data.config import DataConfig, MaskConfig, parse_colour
from imixer.data.image_data import IGNORED, MaskedData, MaskedImage
from imixer.data.sources.decoding import (
    EIGHT_BITS,
    SKIP_REMEDY,
    PixelFormat,
    UnreadableImage,
    convert_image,
    decode_file,
    find_unreadable,
    read_image_file,
)
from imixer.data.sources.image_files import images_under
from imixer.data.sources.layout import subfolders
from imixer.data.sources.masks import MaskCoding, coding_of, default_palette
from imixer.data.sources.splitting import split_role
from imixer.data.sources.statistics import MinMaxObserver, usable_statistics
from imixer.errors import InputError
from imixer.escaping import few_names
from imixer.reading import read_text

_IMAGES = ("images", "imgs", "image", "img", "jpegimages")
_MASKS = ("masks", "mask", "annotations", "labels", "segmentationclass", "segmentations", "gt")
_ENDINGS = ("", "_mask", "_gt", "_labels", "_label")  # of a mask's name after the image's
_STREAM = 12  # keeps the draw of held-out images apart from others


class FolderMasks(Dataset[MaskedImage]):
    """Image files with a mask file each, decoded when asked for.

    Args:
        pairs: Image and mask of each item.
        coding: What values of masks mean.
        in_chans: 1 converts images to mode `L`, 3 to `RGB`.
        pixels: How stored pixel values of images become bytes.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        coding: MaskCoding,
        in_chans: int,
        pixels: PixelFormat = EIGHT_BITS,
    ) -> None:
        self.paths = [str(image) for image, _ in pairs]
        self.masks = [str(mask) for _, mask in pairs]
        self.coding, self.in_chans, self.pixels = coding, in_chans, pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> MaskedImage:
        path = self.paths[index]
        image = convert_image(read_image_file(path, SKIP_REMEDY), self.in_chans, self.pixels, path)
        try:
            return image, self.coding.decode(decode_file(self.masks[index]))
        except UnreadableImage as error:
            raise InputError(f"cannot read image {path}: {error}; {SKIP_REMEDY}") from None


class _Counts:
    """What was seen on pairs of images and masks. Several threads may feed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pixels: dict[Path, NDArray[np.int64]] = {}
        self.sizes: dict[Path, tuple[int, int]] = {}

    def add(self, path: Path, classes: NDArray[np.uint8]) -> None:
        """Count a mask in."""
        counts = np.bincount(classes.ravel(), minlength=256)
        with self._lock:
            self.pixels[path], self.sizes[path] = counts, (classes.shape[0], classes.shape[1])


def open_mask_folder(root: Path, config: DataConfig, masks: MaskConfig, smallest_side: int = 1) -> MaskedData:
    """Open a folder of `images` and `masks`, or of splits that hold these, or of these with splits inside.

    A mask has the name of its image, whatever the suffix, or that and `_mask`. All pairs are decoded beforehand.

    Args:
        root: The folder.
        config: How images are split and read, and whether unreadable ones are skipped.
        masks: What masks mean.
        smallest_side: Pixels of a side below which an image is of no use, such as a patch of the model.

    Raises:
        InputError: If there are no images or no masks, a mask is missing, has another size or a value of no class,
            stores colours without a palette, or there are fewer than two classes.
    """
    train_folders, val_folders = _find_folders(root)
    names = _class_names(root, masks)
    coding = coding_of(masks, len(names) if names else None)
    bad: dict[Path, str] = {}
    train, missing = _pairs(*train_folders)
    val, missing_val = _pairs(*val_folders) if val_folders else ([], [])
    for image in missing + missing_val:
        if not config.skip_bad:
            at = (train_folders[1] if image in missing else val_folders[1]) if val_folders else train_folders[1]
            rest = len(missing + missing_val) - 1
            more = f" (and {rest} more like it)" if rest else ""
            raise InputError(
                f"image {image} has no mask {image.stem}.png in {at}{more}; add it, or pass --data.skip_bad true"
            )
        bad[image] = str(image.relative_to(root))
    counts, observer = _Counts(), MinMaxObserver()
    mask_of = dict(train + val)

    def check(path: Path) -> None:
        image = decode_file(path)
        if min(image.size) < smallest_side:
            raise UnreadableImage(
                f"it has {image.height}x{image.width} pixels, less than the model's patch of "
                f"{smallest_side}x{smallest_side}"
            )
        observer.observe(image)
        try:
            mask = decode_file(mask_of[path])
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask {mask_of[path].name}: {error}") from None
        if mask.size != image.size:
            raise UnreadableImage(
                f"its mask has {mask.height}x{mask.width} pixels, and it has {image.height}x{image.width}"
            )
        counts.add(path, coding.decode(mask))

    bad |= {
        path: str(path.relative_to(root))
        for path in find_unreadable(list(mask_of), check, str, skip_bad=config.skip_bad)
    }
    train, val = ([pair for pair in part if pair[0] not in bad] for part in (train, val))
    if not train:
        raise InputError(f"data.name: no image with its mask in {train_folders[0]} can be used; look at the masks")
    source = f"{_below(train_folders[0], root)} with {_below(train_folders[1], root)}"
    held_out = f"{_below(val_folders[0], root)}" if val_folders else f"{config.val_fraction:.0%} of them"
    if val_folders is None:
        train, val = _split(train, config)
    if not val:
        raise InputError(f"data.name: {root} leaves no image for validation; add some")
    pixels = sum((counts.pixels[image] for image, _ in train), np.zeros(256, np.int64))
    most = max(int(np.flatnonzero(counts.pixels[path][:IGNORED]).max(initial=-1)) for path in counts.pixels)
    class_names = names or tuple(map(str, range(most + 1)))
    if len(class_names) < 2:
        raise InputError(
            f"the masks of {root} have only one class; if one is stored as {masks.ignore_index}, which is ignored, "
            'pass --masks.palette \'{background: "#000000", object: "#ffffff"}\''
        )
    statistics = usable_statistics(
        lambda index: read_image_file(train[index][0], SKIP_REMEDY), len(train), config, str(root), observer
    )
    sizes = {path: counts.sizes[path] for path, _ in train + val}
    least = min(sizes, key=lambda path: min(sizes[path]))
    native = next(iter(sizes.values())) if len(set(sizes.values())) == 1 else None
    palette = coding.palette or default_palette(len(class_names))
    coding = MaskCoding(len(class_names), coding.palette, coding.ignored)
    channels, stored = statistics.in_chans, statistics.pixels
    return MaskedData(
        name=root.resolve().name or "images",
        train=FolderMasks(train, coding, channels, stored),
        val=FolderMasks(val, coding, channels, stored),
        class_names=class_names,
        in_chans=statistics.in_chans,
        native_size=native,
        mean=statistics.mean,
        std=statistics.std,
        skipped=tuple(bad.values()),
        sources=(source, held_out),
        notes=statistics.notes,
        value_range=statistics.pixels.value_range,
        split="val" if val_folders else None,
        pixels=tuple(pixels[: len(class_names)].tolist()),
        palette=palette,
        smallest=(str(least.relative_to(root)), *sizes[least]),
    )


def _find_folders(root: Path) -> tuple[tuple[Path, Path], tuple[Path, Path] | None]:
    """Find the folders of images and masks of the training split, and of the held-out one if there is one."""
    by_role = {role: folder for folder in subfolders(root) if (role := split_role(folder.name))}
    if "train" in by_role and _named(by_role["train"], _IMAGES):
        held_out = by_role.get("val") or by_role.get("test")
        return _beside(by_role["train"]), _beside(held_out) if held_out else None
    images, masks = _beside(root)
    inside = {role: folder for folder in subfolders(images) if (role := split_role(folder.name))}
    if "train" not in inside:
        return (images, masks), None
    theirs = {role: folder for folder in subfolders(masks) if (role := split_role(folder.name))}
    role = next((role for role in ("val", "test") if role in inside), None)
    for wanted in filter(None, ("train", role)):
        if wanted not in theirs:
            raise InputError(f"data.name: {masks} has no folder for the masks of {inside[wanted]}; add one")
    train = inside["train"], theirs["train"]
    return train, (inside[role], theirs[role]) if role else None


def _beside(folder: Path) -> tuple[Path, Path]:
    """Return the folders of images and of masks in a folder."""
    images, masks = _named(folder, _IMAGES), _named(folder, _MASKS)
    if images is None or masks is None:
        lacking = "images" if images is None else "masks"
        there = few_names([each.name for each in subfolders(folder)]) or "no folder"
        raise InputError(f"data.name: {folder} has no folder {lacking}/, it holds {there}; put images and masks there")
    return images, masks


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    by_name = {each.name.lower(): each for each in subfolders(folder)}
    return next((by_name[name] for name in names if name in by_name), None)


def _pairs(images: Path, masks: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pair images with masks; return the pairs, and the images without a mask."""
    by_name = {path.relative_to(masks).with_suffix("").as_posix(): path for path in images_under(masks)}
    if not (there := images_under(images)):
        raise InputError(f"data.name: no images in folder {images}; add some")
    pairs, missing = [], []
    for path in there:
        name = path.relative_to(images).with_suffix("").as_posix()
        mask = next((by_name[name + ending] for ending in _ENDINGS if name + ending in by_name), None)
        if mask is None:
            missing.append(path)
        else:
            pairs.append((path, mask))
    return pairs, missing


def _class_names(root: Path, masks: MaskConfig) -> tuple[str, ...] | None:
    """Return the names of the classes, if anything says them."""
    if masks.palette is not None:
        for name, text in masks.palette.items():
            parse_colour(name, text)
        return tuple(masks.palette)
    if masks.classes is not None:
        return tuple(masks.classes)
    file = root / "classes.txt"
    if not os.path.isfile(file):
        return None
    names = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not 2 <= len(set(names)) == len(names) <= IGNORED:
        raise InputError(f"{file} names {len(names)} classes; give 2 to {IGNORED}, each once, a name a line")
    return names


def _split(
    pairs: list[tuple[Path, Path]], config: DataConfig
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """Hold out a share of the pairs."""
    count = round(config.val_fraction * len(pairs))
    if not 0 < max(1, count) < len(pairs):
        raise InputError(f"data.val_fraction {config.val_fraction:g} of {len(pairs)} images leaves none; add images")
    held_out = set(
        np.random.default_rng((_STREAM, config.split_seed)).permutation(len(pairs))[: max(1, count)].tolist()
    )
    return (
        [pair for number, pair in enumerate(pairs) if number not in held_out],
        [pair for number, pair in enumerate(pairs) if number in held_out],
    )


def _below(folder: Path, root: Path) -> str:
    return f"{folder.relative_to(root).as_posix()}/"
