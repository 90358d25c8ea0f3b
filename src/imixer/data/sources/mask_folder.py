"""Folders of images beside folders of masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import IGNORED, MaskedData
from imixer.data.sources.image_files import images_under
from imixer.data.sources.layout import subfolders
from imixer.data.sources.masked_pairs import FilePair, Incomplete, Pairs, PatchSide, open_pairs
from imixer.data.sources.masks import given_classes
from imixer.data.sources.splitting import split_role
from imixer.errors import InputError
from imixer.escaping import few_names
from imixer.reading import read_text

_IMAGES = ("images", "imgs", "image", "img", "jpegimages")
_MASKS = ("masks", "mask", "annotations", "labels", "segmentationclass", "segmentations", "gt")
_ENDINGS = ("", "_mask", "_gt", "_labels", "_label")  # of a mask's name after the image's


def open_mask_folder(
    root: Path, config: DataConfig, masks: MaskConfig, patch_side: PatchSide | None = None, *, whole: bool = False
) -> MaskedData:
    """Open a folder of `images` and `masks`, or of splits that hold these, or of these with splits inside.

    A mask has the name of its image, whatever the suffix, or that and `_mask`. All pairs are decoded beforehand.

    Args:
        root: The folder.
        config: How images are split and read, and whether unreadable ones are skipped.
        masks: What masks mean.
        patch_side: See `open_pairs`.
        whole: See `open_pairs`.

    Raises:
        InputError: If there are no images or no masks, one is without the other, or `open_pairs` refuses a pair.
    """
    train_folders, val_folders = _find_folders(root)
    train, incomplete = pair_files(*train_folders, root)
    val, incomplete_val = pair_files(*val_folders, root) if val_folders else (None, [])
    pairs = Pairs(
        name=root.resolve().name or "images",
        place=str(root),
        train=train,
        val=val,
        sources=(
            f"{_below(train_folders[0], root)} with {_below(train_folders[1], root)}",
            _below(val_folders[0], root) if val_folders else "",
        ),
        split="val" if val_folders else None,
        class_names=given_classes(masks) or _names_in_file(root),
        incomplete=incomplete + incomplete_val,
    )
    return open_pairs(pairs, config, masks, patch_side, whole=whole)


def has_masks(root: Path) -> bool:
    """Tell whether a folder, or one of a split in it, has a folder of images."""
    return any(_named(folder, _IMAGES) for folder in (root, *subfolders(root)))


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


def pair_files(images: Path, masks: Path, root: Path) -> tuple[list[FilePair], list[Incomplete]]:
    """Pair the images of a folder with the masks of another.

    Args:
        images: The folder of images.
        masks: The folder of masks.
        root: The folder that names are told from.

    Returns:
        The pairs; and what is without the other, each with the reason.

    Raises:
        InputError: If there are no images.
    """
    by_name: dict[str, Path] = {}
    incomplete: list[Incomplete] = []

    def lacks(path: Path, what: str, reason: str) -> None:
        incomplete.append(Incomplete(str(path.relative_to(root)), f"{what} {path}", reason))

    for path in images_under(masks):
        first = by_name.setdefault(path.relative_to(masks).with_suffix("").as_posix(), path)
        if first is not path:
            lacks(path, "mask", f"has the name of {first.name}")
    if not (there := images_under(images)):
        raise InputError(f"data.name: no images in folder {images}; add some")
    pairs, of_image = [], dict[str, Path]()
    unused = set(by_name)
    for path in there:
        name = path.relative_to(images).with_suffix("").as_posix()
        key = next((name + ending for ending in _ENDINGS if name + ending in by_name), None)
        if key is None:
            lacks(path, "image", f"has no mask {path.stem}.png in {masks}")
        elif key in of_image:
            lacks(path, "image", f"has the mask of {of_image[key].name}, {by_name[key].name}")
        else:
            of_image[key] = path
            unused.discard(key)
            pairs.append(FilePair(path, by_name[key], root))
    for name in sorted(unused):
        lacks(by_name[name], "mask", f"has no image in {images}")
    return pairs, incomplete


def _names_in_file(root: Path) -> tuple[str, ...] | None:
    """Read the names of the classes from `classes.txt`, if it is there."""
    file = root / "classes.txt"
    if not os.path.isfile(file):
        return None
    names = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not 2 <= len(set(names)) == len(names) <= IGNORED:
        raise InputError(f"{file} names {len(names)} classes; give 2 to {IGNORED}, each once, a name a line")
    return names


def _below(folder: Path, root: Path) -> str:
    return f"{folder.relative_to(root).as_posix()}/"
