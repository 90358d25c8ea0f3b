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
from imixer.data.image_data import ImageData, Item, few_names, shortened
from imixer.data.sources.decoding import (
    EIGHT_BITS,
    SKIP_REMEDY,
    PixelFormat,
    check_header,
    decode_file,
    deliver,
    find_bad,
    pixel_format,
    read_file,
)
from imixer.data.sources.image_files import EXTENSIONS, Tree, few_extensions, images_under, walk
from imixer.data.sources.layout import class_folders, find_layout, left_out_beside, letters_in_both_cases
from imixer.data.sources.parquet import parquet_files
from imixer.data.sources.splitting import held_out_share, require_two_classes, stratified_split
from imixer.data.sources.statistics import Extremes, survey_usable
from imixer.errors import InputError

_FULL_CHECK_UP_TO = 20_000
_READ = " ".join(sorted(EXTENSIONS))


class FolderImages(Dataset[Item]):
    """Image files, decoded when asked for.

    Args:
        paths: The files.
        labels: Label of each.
        in_chans: 1 delivers mode `L`, 3 delivers `RGB`.
        pixels: How stored pixels become bytes.
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

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index]
        image = deliver(read_file(path, SKIP_REMEDY), self.in_chans, self.pixels, path)
        return image, int(self.labels[index])


class _Listing:
    """Images of one part, with the name of the class each belongs to."""

    def __init__(self, part: Path) -> None:
        self.part = part
        self.paths: list[Path] = []
        self.classes: list[str] = []
        self.trees: dict[str, Tree] = {}
        for folder in class_folders(part):
            tree = self.trees[folder.name] = walk(folder)
            if not tree.images:
                held = few_extensions(tree.others)
                there = f"; it holds {held}, of which none is an image that is read ({_READ})" if held else ""
                raise InputError(f"class folder {folder} holds no images{there}; add some or remove the folder")
            self.paths += tree.images
            self.classes += [folder.name] * len(tree.images)
        if not self.paths:
            raise InputError(_why_nothing(part))
        require_apart({f"class {name!r}": tree for name, tree in self.trees.items()}, part)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What lies in the part and is not used."""
        others = sum((tree.others for tree in self.trees.values()), Counter[str]())
        inside = (f"{few_extensions(others)} in the class folders of {self.part.name}",) if others else ()
        return left_out_beside(self.part) + inside

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided on the part, a sentence each."""
        nested = [f"{name}/{inner}" for name, tree in self.trees.items() for inner in tree.inside]
        merged = f"folders inside class folders belong to the class they lie in: {few_names(nested)}" if nested else ""
        if len(alike := {tuple(tree.inside) for tree in self.trees.values()}) == 1 and nested:
            merged += f". All hold {few_names(alike.pop())}: if these are the classes, call the others train and val"
        return tuple(filter(None, (merged, letters_in_both_cases(list(self.trees)))))

    def labels(self, class_names: Sequence[str]) -> NDArray[np.int64]:
        number = {name: label for label, name in enumerate(class_names)}
        return np.array([number[name] for name in self.classes], dtype=np.int64)

    def drop(self, bad: set[Path]) -> None:
        before = set(self.classes)
        kept = [(path, name) for path, name in zip(self.paths, self.classes, strict=True) if path not in bad]
        self.paths = [path for path, _ in kept]
        self.classes = [name for _, name in kept]
        emptied = sorted(before - set(self.classes))
        if emptied:
            raise InputError(f"no image of class {emptied[0]!r} in {self.part} is readable; replace them")


def _why_nothing(folder: Path) -> str:
    if images_under(folder):
        return f"data.name: {folder} holds images but no class folders; put the images of each class in a folder"
    return f"data.name: {folder} holds neither class folders with images nor .parquet files; give another folder"


def require_apart(trees: dict[str, Tree], part: Path) -> None:
    """Raises InputError if links lead from two classes, or from two parts, to the same folder or image."""
    owner: dict[str, str] = {}
    for name, tree in trees.items():
        for place in tree.places:
            if (other := owner.setdefault(place, name)) != name:
                raise _shared(other, name, part, place)
    for name, tree in trees.items():
        for place in tree.links:
            if (other := owner.setdefault(place, owner.get(os.path.dirname(place), name))) != name:
                raise _shared(other, name, part, place)


def _shared(one: str, other: str, part: Path, place: str) -> InputError:
    return InputError(
        f"{one} and {other} of {part} share {place}, by a link; an image can belong to one only; remove the link"
    )


def _require_same_classes(train: _Listing, val: _Listing) -> None:
    train_names, val_names = set(train.classes), set(val.classes)
    for name in sorted(train_names ^ val_names):
        has, lacks = (train, val) if name in train_names else (val, train)
        close = next((each for each in lacks.trees if each.casefold() == name.casefold()), None)
        there = f", where there is {close!r}" if close else ""
        raise InputError(
            f"class {name!r} is in {has.part} but not in {lacks.part}{there}; both parts need the same class folders"
        )


def _check(paths: Sequence[Path], root: Path, config: DataConfig, extremes: Extremes | None = None) -> dict[Path, str]:
    how = config.check
    if how == "auto":
        how = "full" if len(paths) <= _FULL_CHECK_UP_TO else "header"
    if how == "off":
        return {}
    seen = extremes or Extremes()
    work = (lambda path: seen.see(decode_file(path))) if how == "full" else check_header
    bad = find_bad(paths, work, str, skip_bad=config.skip_bad)
    return {path: str(path.relative_to(root)) for path in bad}


class TestFolder(NamedTuple):
    """A folder to test a model on.

    Args:
        images: All images in it.
        skipped: Names of those that cannot be read.
        left_out: Folders and files that are not used.
    """

    images: FolderImages
    skipped: tuple[str, ...]
    left_out: tuple[str, ...]


def open_test_folder(root: Path, class_names: Sequence[str], in_chans: int, config: DataConfig) -> TestFolder:
    """Open all images of a folder of class folders, to test a model on, read as in training.

    Args:
        root: The folder. It need not have a folder for every class.
        class_names: The classes that the model knows, in the order of their labels.
        in_chans: Channels that the model takes.
        config: How images are checked and read, and whether unreadable ones are skipped.

    Raises:
        InputError: There are no images, a class that the model does not know, or an unreadable image that the check
            found.
    """
    if not os.path.isdir(root):
        raise InputError(f"test: no folder {shortened(str(root))}; correct the path")
    if parquet_files(root):
        raise InputError(f"test: {root} holds parquet files; give a folder with a folder of images for each class")
    listing = _Listing(root)
    for name in sorted(set(listing.classes) - set(class_names)):
        close = next((each for each in class_names if each.casefold() == name.casefold()), None)
        knows = f"it knows {close!r}" if close else f"it knows {few_names(class_names)}"
        raise InputError(
            f"test: {root} has the class folder {name!r}, which the model does not know; {knows}. "
            "Give the folder that holds the class folders"
        )
    bad = _check(listing.paths, root, config)
    listing.drop(set(bad))
    images = FolderImages(listing.paths, listing.labels(class_names), in_chans, pixel_format(config))
    return TestFolder(images, tuple(bad.values()), listing.left_out)


def open_folder(root: Path, config: DataConfig) -> ImageData:
    """Open the images of a folder of class folders, or of its folders for training and validation or testing.

    Which folders are called like parts, in any case and in the usual words, `find_layout` says. Without a held-out
    folder, `val_fraction` of each class is held out. Classes are sorted by name.

    Raises:
        InputError: There are no images, one class only, classes that differ between the parts, a folder whose part is
            uncertain, an unreadable image that the check found, images that are all alike, or too few to split.
    """
    layout = find_layout(root)
    train = _Listing(layout.train)
    val = _Listing(layout.val) if layout.val else None
    if val:
        _require_same_classes(train, val)
        parts = {layout.train.name: train.trees, val.part.name: val.trees}
        require_apart({name: _joined(trees) for name, trees in parts.items()}, root)
    class_names = tuple(sorted(set(train.classes)))
    require_two_classes(train.labels(class_names), class_names, str(layout.train))

    extremes = Extremes()
    bad = _check(train.paths + (val.paths if val else []), root, config, extremes)
    if bad:
        train.drop(set(bad))
        if val:
            val.drop(set(bad))

    train_paths, train_labels = train.paths, train.labels(class_names)
    if val:
        val_paths, val_labels = val.paths, val.labels(class_names)
        sources = (_place(layout.train, root), _place(val.part, root))
    else:
        kept, held_out = stratified_split(
            train_labels, class_names, fraction=config.val_fraction, seed=config.split_seed, what=str(layout.train)
        )
        val_paths, val_labels = [train_paths[i] for i in held_out], train_labels[held_out]
        train_paths, train_labels = [train_paths[i] for i in kept], train_labels[kept]
        sources = (_place(layout.train, root), held_out_share(config))

    facts = survey_usable(
        lambda index: read_file(train_paths[index], SKIP_REMEDY), len(train_paths), config, str(root), extremes
    )
    return ImageData(
        name=root.resolve().name or "images",
        train=FolderImages(train_paths, train_labels, facts.in_chans, facts.pixels),
        val=FolderImages(val_paths, val_labels, facts.in_chans, facts.pixels),
        class_names=class_names,
        in_chans=facts.in_chans,
        native_size=facts.native_size,
        mean=facts.mean,
        std=facts.std,
        skipped=tuple(bad.values()),
        sources=sources,
        notes=layout.notes + train.notes + facts.notes,
        left_out=layout.left_out + train.left_out + (val.left_out if val else ()),
        value_range=facts.pixels.value_range,
        split=val.part.name if val else None,
    )


def _joined(trees: dict[str, Tree]) -> Tree:
    joined = Tree([])
    for tree in trees.values():
        joined.places += tree.places
        joined.links |= tree.links
    return joined


def _place(folder: Path, root: Path) -> str:
    return f"{folder.relative_to(root).as_posix()}/" if folder != root else f"the folders of {root}"
