"""Folders with one subfolder of images per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData, LabelledImage
from imixer.data.sources.decoding import (
    EIGHT_BITS,
    SKIP_REMEDY,
    PixelFormat,
    convert_image,
    decode_file,
    decode_header,
    find_unreadable,
    pixel_format,
    read_image_file,
)
from imixer.data.sources.image_files import (
    EXTENSIONS,
    FolderListing,
    count_by_extension,
    images_under,
    list_folder,
    require_disjoint,
)
from imixer.data.sources.layout import class_folders, find_layout, left_out_beside, letters_in_both_cases
from imixer.data.sources.shard_files import parquet_files
from imixer.data.sources.splitting import held_out_share, require_two_classes, split_role, stratified_split
from imixer.data.sources.statistics import DepthObserver, MinMaxObserver, usable_statistics
from imixer.errors import InputError
from imixer.escaping import few_names, middle_cut

_FULL_CHECK_UP_TO = 20_000
_EXTENSIONS_READ = " ".join(sorted(EXTENSIONS))


class FolderImages(Dataset[LabelledImage]):
    """Image files, decoded when asked for.

    Choose it for files with labels of your own; `open_folder` takes labels from the folders' names.

    Args:
        paths: The files.
        labels: Label of each file (files,).
        in_chans: 1 converts to mode `L`, 3 to `RGB`.
        pixels: How stored pixel values become bytes.
    """

    def __init__(
        self, paths: Sequence[Path], labels: NDArray[np.int64], in_chans: int, pixels: PixelFormat = EIGHT_BITS
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = labels
        self.in_chans = in_chans
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> LabelledImage:
        path = self.paths[index]
        image = convert_image(read_image_file(path, SKIP_REMEDY), self.in_chans, self.pixels, path)
        return image, int(self.labels[index])


class _ClassFolders:
    """The images of one split, with the name of the class each belongs to."""

    def __init__(self, folder: Path, *, test: bool = False) -> None:
        self.folder = folder
        self.paths: list[Path] = []
        self.classes: list[str] = []
        self.listings: dict[str, FolderListing] = {}
        for class_folder in class_folders(folder):
            listing = self.listings[class_folder.name] = list_folder(class_folder)
            if not listing.images:
                held = count_by_extension(listing.other_files)
                there = (
                    f"; it holds {held}, of which none is an image that is read ({_EXTENSIONS_READ})" if held else ""
                )
                raise InputError(f"class folder {class_folder} holds no images{there}; add some or remove the folder")
            self.paths += listing.images
            self.classes += [class_folder.name] * len(listing.images)
        if not self.paths:
            raise InputError(_no_images_message(folder, test))
        require_disjoint({f"class {name!r}": listing for name, listing in self.listings.items()}, folder)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Files in the folder that are not used, in words."""
        other_files = sum((listing.other_files for listing in self.listings.values()), Counter[str]())
        beside = left_out_beside(self.folder)
        inside = f"{count_by_extension(other_files)} in the class folders of {self.folder.name}"
        return (*beside, inside) if other_files else beside

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions on the folder, a sentence each."""
        nested = [f"{name}/{inner}" for name, listing in self.listings.items() for inner in listing.subfolders]
        merged = f"folders inside class folders belong to the class they lie in: {few_names(nested)}" if nested else ""
        if len(alike := {tuple(listing.subfolders) for listing in self.listings.values()}) == 1 and nested:
            merged += f". All hold {few_names(alike.pop())}: if these are the classes, call the others train and val"
        return tuple(filter(None, (merged, letters_in_both_cases(list(self.listings)))))

    def labels(self, class_names: Sequence[str]) -> NDArray[np.int64]:
        """Label the images with the positions of their classes among `class_names`."""
        number = {name: label for label, name in enumerate(class_names)}
        return np.array([number[name] for name in self.classes], dtype=np.int64)

    def drop(self, bad: set[Path]) -> None:
        """Leave out unreadable images."""
        before = set(self.classes)
        kept = [(path, name) for path, name in zip(self.paths, self.classes, strict=True) if path not in bad]
        self.paths = [path for path, _ in kept]
        self.classes = [name for _, name in kept]
        emptied = sorted(before - set(self.classes))
        if emptied:
            raise InputError(f"no image of class {emptied[0]!r} in {self.folder} is readable; replace them")


def _no_images_message(folder: Path, test: bool) -> str:
    """Explain why a folder to train on, or a test set, has no images of classes."""
    option = "test" if test else "data.name"
    if images_under(folder):
        return f"{option}: {folder} holds images but no class folders; put the images of each class in a folder"
    wanted = "no class folders with images" if test else "neither class folders with images nor .parquet or .tar files"
    return f"{option}: {folder} holds {wanted}; give another folder"


def _require_same_classes(train: _ClassFolders, val: _ClassFolders) -> None:
    """Require that both splits have the same class folders."""
    train_names, val_names = set(train.classes), set(val.classes)
    for name in sorted(train_names ^ val_names):
        has, lacks = (train, val) if name in train_names else (val, train)
        close = next((each for each in lacks.listings if each.casefold() == name.casefold()), None)
        there = f", where there is {close!r}" if close else ""
        raise InputError(
            f"class {name!r} is in {has.folder} but not in {lacks.folder}{there}; both parts need the same class "
            "folders"
        )


def _check(
    paths: Sequence[Path],
    root: Path,
    config: DataConfig,
    observer: MinMaxObserver | None = None,
    depth: DepthObserver | None = None,
) -> dict[Path, str]:
    """Check image files as `config.check` says, and return the unreadable ones, by their path below `root`."""
    how = config.check
    if how == "auto":
        how = "full" if len(paths) <= _FULL_CHECK_UP_TO else "header"
    if how == "off":
        return {}

    def work(path: Path) -> None:
        if how == "header":
            header = decode_header(path)
            if depth is not None:
                depth.observe_header(header, path)
            return
        image = decode_file(path)
        if observer is not None:
            observer.observe(image)
        if depth is not None:
            depth.observe(image, path)

    bad = find_unreadable(paths, work, str, skip_bad=config.skip_bad)
    return {path: str(path.relative_to(root)) for path in bad}


class TestFolder(NamedTuple):
    """A folder of images to test a model on.

    Args:
        images: All images in it.
        skipped: Names of those that cannot be read.
        left_out: Folders and files that are not used.
        notes: What was seen, a sentence each.
    """

    images: FolderImages
    skipped: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()


def open_test_folder(root: Path, class_names: Sequence[str], in_chans: int, config: DataConfig) -> TestFolder:
    """Open all images of a folder of class folders, to test a model on, read as in training.

    Args:
        root: The folder. It need not have a folder for every class.
        class_names: The classes that the model knows, in the order of their labels.
        in_chans: Channels that the model takes.
        config: How images are checked and read, and whether unreadable ones are skipped.

    Raises:
        InputError: If there are no images, a class that the model does not know, or an unreadable image that the check
            finds.
    """
    if not os.path.isdir(root):
        raise InputError(f"test: no folder {middle_cut(str(root), 80)}; correct the path")
    if parquet_files(root):
        raise InputError(f"test: {root} holds parquet files; give a folder with a folder of images for each class")
    listing = _ClassFolders(root, test=True)
    for name in sorted(set(listing.classes) - set(class_names)):
        close = next((each for each in class_names if each.casefold() == name.casefold()), None)
        knows = f"it knows {close!r}" if close else f"it knows {few_names(class_names)}"
        raise InputError(
            f"test: {root} has the class folder {name!r}, which the model does not know; {knows}. "
            "Give the folder that holds the class folders"
        )
    pixels = pixel_format(config)
    depth = DepthObserver(pixels)
    bad = _check(listing.paths, root, config, depth=depth)
    listing.drop(set(bad))
    images = FolderImages(listing.paths, listing.labels(class_names), in_chans, pixels)
    return TestFolder(images, tuple(bad.values()), listing.left_out, depth.notes(f"the images of {root}"))


def open_folder(root: Path, config: DataConfig) -> ImageData:
    """Open the images of a folder of class folders, or of its folders for training and validation or testing.

    `find_layout` tells which folders are splits, in any case and in the usual words. Without a held-out folder,
    `val_fraction` of each class is held out. Classes are sorted by name.

    Args:
        root: The folder.
        config: How images are split, checked and read.

    Raises:
        InputError: If there are no images, one class only, classes that differ between the splits, a folder whose split
            is uncertain, an unreadable image that the check finds, images that are all alike, or too few to split.
    """
    layout = find_layout(root)
    train = _ClassFolders(layout.train)
    val = _ClassFolders(layout.val) if layout.val else None
    if val:
        _require_same_classes(train, val)
        folders = {layout.train: train.listings, val.folder: val.listings}
        parts = {folder.relative_to(root).as_posix(): listings for folder, listings in folders.items()}
        require_disjoint({name: _merged(listings) for name, listings in parts.items()}, root)
    class_names = tuple(sorted(set(train.classes)))
    require_two_classes(train.labels(class_names), class_names, str(layout.train))

    observer = MinMaxObserver()
    bad = _check(train.paths + (val.paths if val else []), root, config, observer)
    if bad:
        train.drop(set(bad))
        if val:
            val.drop(set(bad))

    train_paths, train_labels = train.paths, train.labels(class_names)
    if val:
        val_paths, val_labels = val.paths, val.labels(class_names)
        sources = (_display_path(layout.train, root), _display_path(val.folder, root))
    else:
        kept, held_out = stratified_split(
            train_labels, class_names, fraction=config.val_fraction, seed=config.split_seed, what=str(layout.train)
        )
        val_paths, val_labels = [train_paths[i] for i in held_out], train_labels[held_out]
        train_paths, train_labels = [train_paths[i] for i in kept], train_labels[kept]
        sources = (_display_path(layout.train, root), held_out_share(config))

    statistics = usable_statistics(
        lambda index: read_image_file(train_paths[index], SKIP_REMEDY), len(train_paths), config, str(root), observer
    )
    return ImageData(
        name=root.resolve().name or "images",
        train=FolderImages(train_paths, train_labels, statistics.in_chans, statistics.pixels),
        val=FolderImages(val_paths, val_labels, statistics.in_chans, statistics.pixels),
        class_names=class_names,
        in_chans=statistics.in_chans,
        native_size=statistics.native_size,
        mean=statistics.mean,
        std=statistics.std,
        skipped=tuple(bad.values()),
        sources=sources,
        notes=layout.notes + train.notes + statistics.notes,
        left_out=layout.left_out + train.left_out + (val.left_out if val else ()),
        value_range=statistics.pixels.value_range,
        split=_split_name(val.folder, root) if val else None,
    )


def _split_name(folder: Path, root: Path) -> str:
    """Return the name of the folder of a split, in which its class folders may lie deeper."""
    return next((part for part in folder.relative_to(root).parts if split_role(part)), folder.name)


def _merged(listings: dict[str, FolderListing]) -> FolderListing:
    """Merge the listings of a split's classes, as far as links are concerned."""
    merged = FolderListing([])
    for listing in listings.values():
        merged.real_folders += listing.real_folders
        merged.linked_images |= listing.linked_images
    return merged


def _display_path(folder: Path, root: Path) -> str:
    """Write where class folders lie, as a path below the data set's folder."""
    return f"{folder.relative_to(root).as_posix()}/" if folder != root else f"the folders of {root}"
