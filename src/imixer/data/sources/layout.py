"""Find the folders of each split and of each class below a folder; refuse or note what is not certain."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imixer.data.sources.image_files import (
    contains_image,
    count_by_extension,
    is_image_file,
    list_folder,
    list_loose_files,
    subfolders,
    system_folders,
)
from imixer.data.sources.splitting import ROLES, split_role, split_words
from imixer.errors import InputError
from imixer.escaping import few_names, is_encodable


@dataclass(frozen=True)
class Layout:
    """The folders that hold the class folders of each split.

    Args:
        root: The folder that paths are told from.
        train: Folder of the class folders to train on.
        val: Folder of the class folders that are held out. None: there is none.
        notes: What was decided, a sentence each.
        left_out: Folders and files that belong to no split.
    """

    root: Path
    train: Path
    val: Path | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def find_layout(given: Path) -> Layout:
    """Tell folders of classes from those of splits, whatever the case and the usual words for them.

    Args:
        given: The folder that the user named.

    Raises:
        InputError: If a folder that is called like a split holds no class folders, lies among classes or inside one, or
            two are called alike.
    """
    root = _unwrap(given)
    notes = [f"the class folders are those of {_relative(root, given)}"] if root != given else []
    left_out = list(left_out_beside(given)) if root != given else []
    folders = subfolders(root)
    split_folders = _split_folders(folders, root)
    if not split_folders:
        for folder in folders:
            _require_no_splits_inside(folder)
        return Layout(given, root, None, tuple(notes), tuple(left_out))

    parents = {folder: _unwrap(folder) for folder in split_folders if _has_class_folders(folder)}
    by_role = {role: [folder for folder in parents if split_folders[folder] == role] for role in ROLES}
    require_one_of_each(by_role, root)
    others = [folder for folder in folders if folder not in split_folders]
    if not by_role["train"]:
        if _train_is_a_class(split_folders, others):
            notes.append(
                f"{next(iter(split_folders)).name} is taken for a class, as it lies among others and holds images"
            )
            return Layout(given, root, None, tuple(notes), tuple(left_out))
        raise InputError(_no_training_split_message(root, split_folders, others))
    (train,) = by_role["train"]
    held_out = next((those[0] for role in ("val", "test") if (those := by_role[role])), None)
    with_images = [folder for folder in others if _holds_images(folder)]
    if held_out is None and with_images:
        raise InputError(
            f"{root} holds {train.name} with the folders {few_names([f.name for f in subfolders(parents[train])])}, "
            f"and beside it {with_images[0].name} with images: are these classes, or is {train.name} the training "
            "part? Leave only one kind there"
        )
    used = {train, held_out}
    left_out += [with_image_count(folder, root) for folder in folders if folder not in used]
    left_out += left_out_beside(root)
    return Layout(given, parents[train], parents[held_out] if held_out else None, tuple(notes), tuple(left_out))


def require_one_of_each(by_role: Mapping[str, Sequence[Path]], root: Path) -> None:
    """Require that no two folders are called like the same split, of those that are used.

    Args:
        by_role: The folders that are called like each of `ROLES`.
        root: The folder that they lie in.

    Raises:
        InputError: If two are. Test parts may be several beside one for validation, which is used.
    """
    for role, those in by_role.items():
        if len(those) > 1 and not (role == "test" and by_role["val"]):
            raise InputError(
                f"{those[0].name} and {those[1].name} in {root} are both called like a {_purpose(role)} part; keep one "
                "there"
            )


def _unwrap(folder: Path) -> Path:
    """Go down while a folder holds nothing but one folder of folders, as unpacked archives do."""
    while True:
        inside = subfolders(folder)
        if len(inside) != 1 or _holds_images(folder):
            return folder
        (only,) = inside
        split_below = split_role(only.name) is not None and split_role(folder.name) is None
        if split_below or not subfolders(only) or _holds_images(only):
            return folder
        folder = only


def _split_folders(folders: list[Path], root: Path) -> dict[Path, str]:
    """Find the folders named like a split: by that alone, or like `seg_train` and `seg_test`, which only differ so."""
    split_folders = {folder: role for folder in folders if (role := split_role(folder.name))}
    named: dict[tuple[str, ...], dict[Path, str]] = {}
    for folder in folders:
        words, rest = split_words(folder.name)
        if len(words) == 1 and rest:
            named.setdefault(rest, {})[folder] = next(iter(words.values()))
    pairs = [each for each in named.values() if len(set(each.values())) > 1]
    if len(pairs) > 1:
        first = [folder.name for folder in pairs[0]]
        raise InputError(
            f"the folders of {root} name classes and parts at once, such as {first[0]} and {first[1]}; make it a "
            "folder for each part with the class folders inside: train/..., val/..."
        )
    return split_folders | (pairs[0] if pairs else {})


def _require_no_splits_inside(folder: Path) -> None:
    """Require that a class folder does not consist of folders that are called like splits."""
    inside = [path for path in subfolders(folder) if contains_image(path)]
    if inside and all(split_role(path.name) for path in inside):
        raise InputError(
            f"{folder} would be a class, but holds folders that are called like parts: "
            f"{few_names([path.name for path in inside])}; put the class folders into those of the parts: "
            f"{inside[0].name}/{folder.name}"
        )


def _train_is_a_class(split_folders: dict[Path, str], others: list[Path]) -> bool:
    """Tell whether a folder `train` is a class, of trains: it lies beside cars and buses and holds images itself."""
    return [path.name.lower() for path in split_folders] == ["train"] and _holds_images(*split_folders) and bool(others)


def _no_training_split_message(root: Path, split_folders: dict[Path, str], others: list[Path]) -> str:
    """Explain what is wrong with folders that are called like splits where none is the training split."""
    looks = next(iter(split_folders))
    flat = [folder for folder in split_folders if not _has_class_folders(folder)]
    train = next((folder for folder, role in split_folders.items() if role == "train"), None)
    if train is None and others:
        return (
            f"{looks} is called like a {_purpose(split_folders[looks])} part, not like a class, and lies among "
            f"{few_names([folder.name for folder in others])}; put these into {root / 'train'}, or move or rename "
            f"{looks.name}"
        )
    if train is None:
        names = few_names([folder.name for folder in split_folders])
        return f"{root} holds {names}, but no train folder; add one with the class folders"
    if train in flat and _holds_images(train) and others:
        return (
            f"{train} is called like the training part, but holds images and no class folders, and "
            f"{few_names([folder.name for folder in others])} lie beside it; put the images of each class in a folder, "
            f"or rename {train.name} if it is a class"
        )
    if train in flat and _holds_images(train):
        return f"{train} holds images but no class folders; put the images of each class in a folder"
    return f"{train} holds neither class folders nor images; add the class folders"


def class_folders(split_folder: Path) -> list[Path]:
    """List the class folders of a split, sorted.

    Raises:
        InputError: If two differ in case, spaces or encoding only, or one has a name that is no text.
    """
    folders = subfolders(split_folder)
    alike: dict[str, str] = {}
    for folder in folders:
        name = folder.name
        if not is_encodable(name):
            raise InputError(
                f"class folder {name.encode(errors='surrogateescape')!r} in {split_folder} is not named in UTF-8; "
                "rename it"
            )
        plain = unicodedata.normalize("NFKC", name).casefold().strip()
        if plain in alike and len(plain) > 1:  # a and A may be letters
            raise InputError(
                f"class folders {alike[plain]!r} and {name!r} in {split_folder} differ in case or spaces only; merge "
                "them, or rename one if they are two classes"
            )
        alike[plain] = name
    return folders


def letters_in_both_cases(names: list[str]) -> str:
    """Write a sentence on classes that differ in case only; empty if none do."""
    count = Counter(name.casefold() for name in names)
    both = sorted(name for name in names if count[name.casefold()] > 1)
    return f"classes that differ in case only: {few_names(both)}" if both else ""


def left_out_beside(folder: Path, outside: str = "the class folders", used: Collection[str] = ()) -> tuple[str, ...]:
    """List the files of a folder of folders, and the folders of operating systems, in words.

    Args:
        folder: The folder.
        outside: What images do not belong to that lie directly in it.
        used: Names of files that are used.
    """
    loose = list_loose_files(folder, used)
    where = f"in {folder.name}"
    left_out = [f"{path.name}/" for path in system_folders(folder)]
    if loose.images:
        count = len(loose.images)
        left_out.append(f"{count:,} {'image' if count == 1 else 'images'} {where}, outside of {outside}")
    if loose.other_files:
        left_out.append(f"{count_by_extension(loose.other_files)} {where}")
    return tuple(left_out)


def with_image_count(folder: Path, root: Path, inside: Path | None = None) -> str:
    """Write where a folder lies and how many images it holds.

    Args:
        folder: The folder.
        root: The folder that paths are told from.
        inside: The folder in it whose images count. Default: itself.
    """
    count = len(list_folder(inside or folder).images)
    return f"{_relative(folder, root)} ({count:,} {'image' if count == 1 else 'images'})"


def _has_class_folders(folder: Path) -> bool:
    """Tell whether a folder holds class folders: folders with images, or folders and no images of its own."""
    return any(contains_image(path) for path in subfolders(folder)) or (
        bool(subfolders(folder)) and not _holds_images(folder)
    )


def _holds_images(folder: Path) -> bool:
    """Tell whether images lie directly in a folder."""
    return any(is_image_file(path.name) and not path.is_dir() for path in folder.iterdir())


def _relative(folder: Path, root: Path) -> str:
    return f"{folder.relative_to(root).as_posix()}/"


def _purpose(role: str) -> str:
    """Name the purpose of a split in messages."""
    return {"train": "training", "val": "validation", "test": "test"}[role]
