"""Folders with one subfolder of images per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from imixer.data.checking import find_bad
from imixer.data.config import DataConfig
from imixer.data.decoding import SKIP_REMEDY, check_header, decode_file, read_file, to_channels
from imixer.data.image_data import ImageData, Item, few_names
from imixer.data.image_files import images_under, subfolders
from imixer.data.splitting import require_two_classes, stratified_split
from imixer.data.survey import survey
from imixer.errors import InputError

_VAL_FOLDERS = ("val", "validation", "test")
_FULL_CHECK_UP_TO = 20_000


class FolderImages(Dataset[Item]):
    """Image files, decoded when asked for.

    Args:
        paths: The files.
        labels: Label of each.
        in_chans: 1 delivers mode `L`, 3 delivers `RGB`.
    """

    def __init__(self, paths: Sequence[Path], labels: NDArray[np.int64], in_chans: int) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = labels
        self.in_chans = in_chans

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        image = read_file(self.paths[index], SKIP_REMEDY)
        return to_channels(image, self.in_chans), int(self.labels[index])


class _Listing:
    """Images of one part, with the name of the class each belongs to."""

    def __init__(self, part: Path) -> None:
        self.part = part
        self.paths: list[Path] = []
        self.classes: list[str] = []
        for folder in subfolders(part):
            images = images_under(folder)
            if not images:
                raise InputError(f"class folder {folder} holds no images; add some or remove the folder")
            self.paths += images
            self.classes += [folder.name] * len(images)
        if not self.paths:
            raise InputError(_why_nothing(part))

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


def _parts(root: Path) -> tuple[Path, Path | None]:
    train = root / "train"
    if not train.is_dir() or not subfolders(train):  # "train" may be a class: cars, buses, trains
        return root, None
    return train, next((root / name for name in _VAL_FOLDERS if (root / name).is_dir()), None)


def _require_same_classes(train: _Listing, val: _Listing) -> None:
    train_names, val_names = set(train.classes), set(val.classes)
    for name in sorted(train_names ^ val_names):
        has, lacks = (train.part, val.part) if name in train_names else (val.part, train.part)
        raise InputError(f"class {name!r} is in {has} but not in {lacks}; both parts need the same class folders")


def _check(paths: Sequence[Path], root: Path, config: DataConfig) -> dict[Path, str]:
    how = config.check
    if how == "auto":
        how = "full" if len(paths) <= _FULL_CHECK_UP_TO else "header"
    if how == "off":
        return {}
    bad = find_bad(paths, decode_file if how == "full" else check_header, str, skip_bad=config.skip_bad)
    return {path: str(path.relative_to(root)) for path in bad}


def open_test_folder(
    root: Path, class_names: Sequence[str], in_chans: int, config: DataConfig
) -> tuple[FolderImages, tuple[str, ...]]:
    """All images of a folder of class folders, to test a model on.

    Args:
        root: The folder. It need not have a folder for every class.
        class_names: The classes that the model knows, in the order of their labels.
        in_chans: Channels that the model takes.
        config: How images are checked, and whether unreadable ones are skipped.

    Returns:
        The images, and the names of those that were skipped.

    Raises:
        InputError: There are no images, a class that the model does not know, or an unreadable image that the check
            found.
    """
    if not root.is_dir():
        raise InputError(f"test: no folder {root}; correct the path")
    listing = _Listing(root)
    for name in sorted(set(listing.classes) - set(class_names)):
        raise InputError(
            f"test: {root} has the class folder {name!r}, which the model does not know; it knows "
            f"{few_names(class_names)}. Give the folder that holds the class folders"
        )
    bad = _check(listing.paths, root, config)
    listing.drop(set(bad))
    return FolderImages(listing.paths, listing.labels(class_names), in_chans), tuple(bad.values())


def open_folder(root: Path, config: DataConfig) -> ImageData:
    """Images of a folder of class folders, or of its `train` and `val`, `validation` or `test` folders.

    Without a held-out folder, `val_fraction` of each class is held out. Classes are sorted by name.

    Raises:
        InputError: There are no images, one class only, classes that differ between the parts, an unreadable
            image that the check found, or too few images to split.
    """
    train_folder, val_folder = _parts(root)
    train = _Listing(train_folder)
    val = _Listing(val_folder) if val_folder else None
    if val:
        _require_same_classes(train, val)
    class_names = tuple(sorted(set(train.classes)))
    require_two_classes(train.labels(class_names), class_names, str(train_folder))

    bad = _check(train.paths + (val.paths if val else []), root, config)
    if bad:
        train.drop(set(bad))
        if val:
            val.drop(set(bad))

    train_paths, train_labels = train.paths, train.labels(class_names)
    if val:
        val_paths, val_labels = val.paths, val.labels(class_names)
    else:
        kept, held_out = stratified_split(
            train_labels, class_names, fraction=config.val_fraction, seed=config.split_seed, what=str(train_folder)
        )
        val_paths, val_labels = [train_paths[i] for i in held_out], train_labels[held_out]
        train_paths, train_labels = [train_paths[i] for i in kept], train_labels[kept]

    facts = survey(lambda index: read_file(train_paths[index], SKIP_REMEDY), len(train_paths))
    return ImageData(
        name=root.resolve().name or "images",
        train=FolderImages(train_paths, train_labels, facts.in_chans),
        val=FolderImages(val_paths, val_labels, facts.in_chans),
        class_names=class_names,
        in_chans=facts.in_chans,
        native_size=facts.native_size,
        mean=facts.mean,
        std=facts.std,
        skipped=tuple(bad.values()),
        split=val_folder.name if val_folder else None,
    )
