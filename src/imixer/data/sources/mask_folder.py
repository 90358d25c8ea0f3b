"""Folders of images beside folders of masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import IGNORED, MaskedData
from imixer.data.sources.image_files import (
    count_by_extension,
    images_under,
    list_folder,
    require_disjoint,
    subfolders,
)
from imixer.data.sources.layout import left_out_beside, require_one_of_each, with_image_count
from imixer.data.sources.masked_pairs import FilePair, Incomplete, Pairs, PatchSide, open_pairs
from imixer.data.sources.masks import given_classes
from imixer.data.sources.splitting import ROLES, role_to_test, split_role
from imixer.errors import InputError
from imixer.escaping import few_names
from imixer.reading import read_text

_IMAGES = ("images", "imgs", "image", "img", "jpegimages")
_MASKS = ("masks", "mask", "annotations", "labels", "segmentationclass", "segmentations", "gt")
_NAMES = "classes.txt"
_ENDINGS = ("", "_mask", "_gt", "_labels", "_label")  # of a mask's name after the image's


def open_mask_folder(
    root: Path, config: DataConfig, masks: MaskConfig, patch_side: PatchSide | None = None, *, whole: bool = False
) -> MaskedData:
    """Open a folder of `images` and `masks`, or of splits that hold these, or of these with splits inside.

    A mask has the name of its image, whatever the suffix, or that and `_mask`. Splits are called as `find_layout` takes
    them; what belongs to none is named. All pairs are decoded beforehand.

    Args:
        root: The folder.
        config: How images are split and read, and whether unreadable ones are skipped.
        masks: What masks mean.
        patch_side: See `open_pairs`.
        whole: See `open_pairs`. Of splits, that to test on is taken alone: see `role_to_test`.

    Raises:
        InputError: If there are no images or no masks, one is without the other, two folders are called like one split,
            there is a split and none to train on, or `open_pairs` refuses a pair.
    """
    folders = _find_folders(root, test=whole)
    train_folders, val_folders = folders.train, folders.val
    train, incomplete = pair_files(*train_folders, root)
    val, incomplete_val = pair_files(*val_folders, root) if val_folders else (None, [])
    if val_folders:
        require_disjoint({_below(each, root): list_folder(each) for each in (train_folders[0], val_folders[0])}, root)
    pairs = Pairs(
        name=root.resolve().name or "images",
        place=str(root),
        train=train,
        val=val,
        sources=(
            f"{_below(train_folders[0], root)} with {_below(train_folders[1], root)}",
            _below(val_folders[0], root) if val_folders else "",
        ),
        split=folders.split,
        class_names=_class_names(root, masks),
        incomplete=incomplete + incomplete_val,
        left_out=folders.left_out,
    )
    return open_pairs(pairs, config, masks, patch_side, whole=whole)


def has_masks(root: Path) -> bool:
    """Tell whether a folder, or one of a split in it, has a folder of images."""
    return any(_named(folder, _IMAGES) for folder in (root, *subfolders(root)))


@dataclass(frozen=True)
class _Folders:
    """The folders of a data set.

    Args:
        train: Folders of images and masks to train on.
        val: Those that are held out. None: there are none.
        split: Name of the folder that is held out.
        left_out: Folders and files that are not used.
    """

    train: tuple[Path, Path]
    val: tuple[Path, Path] | None = None
    split: str | None = None
    left_out: tuple[str, ...] = ()


def _find_folders(root: Path, *, test: bool) -> _Folders:
    """Find the folders of images and masks of the training split, and of the held-out one if there is one.

    For a test set, those of the split to test on take the place of the former, and none is held out.
    """
    parts = {role: [each for each in those if _named(each, _IMAGES)] or those for role, those in _by_role(root).items()}
    whole = [part for those in parts.values() for part in those if _named(part, _IMAGES)]
    if whole and whole[0] not in parts["train"] and _named(root, _IMAGES):
        raise InputError(
            f"data.name: {whole[0]} is called like a part, and lies beside a folder of images; put the others into "
            f"{root / 'train'}, or move {whole[0].name}"
        )
    if whole and test:
        there = {role: [each for each in those if each in whole] for role, those in parts.items()}
        parts = _alone(there, _role_to_test(there, root))
        whole = parts["train"]
    if whole and whole[0] in parts["train"]:
        return _in_parts(root, parts)
    if whole:
        raise _no_training_part(root, whole)
    images, masks = _beside(root)
    outside = _left_out(root, (images, masks), root)
    parts = _by_role(images)
    if not any(parts.values()):
        return _Folders((images, masks), left_out=(*outside, *_no_images(images, root)))
    theirs = _by_role(masks)
    if test:
        role = _role_to_test(parts, images)
        parts, theirs = _alone(parts, role), _alone(theirs, role)
    if not parts["train"]:
        raise _no_training_part(images, [part for those in parts.values() for part in those])
    for folder, by_role in ((images, parts), (masks, theirs)):
        require_one_of_each(by_role, folder)
    pairs: list[tuple[Path, Path]] = []
    for role in filter(None, ("train", next((role for role in ("val", "test") if parts[role]), None))):
        part = parts[role][0]
        if not theirs[role]:
            raise InputError(f"data.name: {masks} has no folder for the masks of {part}; add one")
        pairs.append((part, theirs[role][0]))
    for folder, used in zip((images, masks), zip(*pairs, strict=True), strict=True):
        outside += _left_out(folder, used, root)
    return _with_held_out(pairs, [pair[0].name for pair in pairs], outside, root)


def _role_to_test(parts: Mapping[str, Sequence[Path]], folder: Path) -> str:
    """Choose the split to test on, which must be one folder."""
    role = role_to_test([role for role in ROLES if parts[role]])
    require_one_of_each({**dict.fromkeys(ROLES, ()), role: parts[role]}, folder)
    return role


def _alone(parts: Mapping[str, list[Path]], role: str) -> dict[str, list[Path]]:
    """Put the folders of one split in the place of those to train on, and leave out all others."""
    return {each: parts[role] if each == "train" else [] for each in ROLES}


def _in_parts(root: Path, parts: Mapping[str, Sequence[Path]]) -> _Folders:
    """Find the folders of images and masks in those of the splits."""
    require_one_of_each(parts, root)
    held_out = next((parts[role][0] for role in ("val", "test") if parts[role]), None)
    used = [parts["train"][0], *([held_out] if held_out else [])]
    pairs = [_beside(part) for part in used]
    left_out = _left_out(root, used, root)
    for part, pair in zip(used, pairs, strict=True):
        left_out += _left_out(part, pair, root)
    return _with_held_out(pairs, [part.name for part in used], left_out, root)


def _with_held_out(
    pairs: Sequence[tuple[Path, Path]], names: Sequence[str], left_out: tuple[str, ...], root: Path
) -> _Folders:
    """Return the folders of one split or two, and what lies in them that is no image."""
    left_out += tuple(each for images, _ in pairs for each in _no_images(images, root))
    held_out = pairs[1] if len(pairs) > 1 else None
    return _Folders(pairs[0], held_out, names[1] if held_out else None, left_out)


def _by_role(folder: Path) -> dict[str, list[Path]]:
    """List the folders in a folder that are called like each split."""
    return {role: [each for each in subfolders(folder) if split_role(each.name) == role] for role in ROLES}


def _no_training_part(folder: Path, parts: Sequence[Path]) -> InputError:
    names = few_names([part.name for part in parts])
    return InputError(f"data.name: {folder} holds {names}, but no train folder; add one with the images to train on")


def _left_out(folder: Path, used: Sequence[Path], root: Path) -> tuple[str, ...]:
    """List what lies in a folder beside those that are used, in words."""
    names = " and ".join(f"{each.name}/" for each in used)
    others = [each for each in subfolders(folder) if each not in used]
    return (
        *(with_image_count(each, root, _named(each, _IMAGES)) for each in others),  # masks aside
        *left_out_beside(folder, names, (_NAMES,) if folder == root else ()),
    )


def _no_images(folder: Path, root: Path) -> tuple[str, ...]:
    """List the files among images that are none, in words."""
    others = list_folder(folder).other_files
    return (f"{count_by_extension(others)} in {_below(folder, root)}",) if others else ()


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
            lacks(path, "image", f"has no mask {name}.png in {masks}")
        elif key in of_image:
            lacks(path, "image", f"has the mask of {of_image[key].name}, {by_name[key].name}")
        else:
            of_image[key] = path
            unused.discard(key)
            pairs.append(FilePair(path, by_name[key], root))
    for name in sorted(unused):
        lacks(by_name[name], "mask", f"has no image in {images}")
    return pairs, incomplete


def _class_names(root: Path, masks: MaskConfig) -> tuple[str, ...] | None:
    """Return the names of the classes: of the settings, or else of `classes.txt`, or else the values of masks."""
    if masks.palette is not None or masks.classes is not None or (names := _names_in_file(root)) is None:
        return given_classes(masks)
    if masks.values is not None and len(names) != len(masks.values):
        raise InputError(
            f"{root / _NAMES} names {len(names)} classes, and masks.values has {len(masks.values)}; make them as many"
        )
    return names


def _names_in_file(root: Path) -> tuple[str, ...] | None:
    """Read the names of the classes from `classes.txt`, if it is there."""
    file = root / _NAMES
    if not os.path.isfile(file):
        return None
    names = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not 2 <= len(set(names)) == len(names) <= IGNORED:
        raise InputError(f"{file} names {len(names)} classes; give 2 to {IGNORED}, each once, a name a line")
    return names


def _below(folder: Path, root: Path) -> str:
    return f"{folder.relative_to(root).as_posix()}/"
