"""The files of data sets in shards: which there are, and which split each belongs to."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from imixer.data.sources.image_files import contains_image, visible_folders
from imixer.data.sources.splitting import role_to_test, split_words
from imixer.errors import InputError
from imixer.escaping import few_names

PARQUET, TAR = ".parquet", ".tar"
_DEFAULT_CONFIGURATION = {"default"}  # the hub's name for the only configuration there is


@dataclass(frozen=True)
class ShardFiles:
    """The shards of each split.

    Args:
        train: Files to train on.
        val: Files that are held out. Empty: there are none.
        sources: Names of the files of both splits, in words.
        left_out: Files and folders that are not used.
        split: The word for the held-out split in its files' names. None: there is no such split.
    """

    train: Sequence[PurePath]
    val: Sequence[PurePath]
    sources: tuple[str, str]
    left_out: tuple[str, ...]
    split: str | None = None


def parquet_files(root: Path) -> list[Path]:
    """List the parquet files directly in a folder, else those in its `data` folder, sorted."""
    return _direct_files(root, PARQUET)


def _direct_files(root: Path, suffix: str) -> list[Path]:
    """List the shards directly in a folder, else those in its `data` folder, sorted."""
    for folder in (root, root / "data"):
        files = sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))
        if files:
            return files
    return []


def shard_suffix(root: Path) -> str | None:
    """Tell how the data of a folder are stored: parquet goes before images, and images go before tar.

    Args:
        root: The folder.

    Returns:
        `.parquet` or `.tar`; None where there are no shards, but class folders if anything.

    Raises:
        InputError: If there are several sets of shards.
    """
    if _files_on_disk(root, PARQUET):
        return PARQUET
    return None if contains_image(root) or not _files_on_disk(root, TAR) else TAR


def _files_on_disk(root: Path, suffix: str) -> Sequence[PurePath]:
    """List the shards directly in a folder or in its `data` folder, else the only set of them in subfolders."""
    return _direct_files(root, suffix) or _files_in_subfolders(root, suffix)


def find_shards(
    root: PurePath, suffix: str, listing: Sequence[PurePath] | None = None, *, test: bool = False
) -> ShardFiles | None:
    """Find the shards of each split, told by words in their names, or else in those of their folders.

    Files are taken from the folder itself, else from its `data` folder, else from the only set of folders that has any,
    such as `plain_text/` or `train/` and `test/`. A folder with images in subfolders is none of shards.

    Args:
        root: The folder, here or elsewhere.
        suffix: `.parquet` or `.tar`.
        listing: All files in it and below it. Default: those on the disk.
        test: Whether to find the shards to test on, which `train` then holds: see `role_to_test`. Without words for
            splits, these are all.

    Returns:
        The files. None: there are none.

    Raises:
        InputError: If there are several sets, a name says two splits, splits of two names serve one purpose, or there
            is no training split, or a link makes one file a part of both splits.
    """
    files = _files_on_disk(Path(root), suffix) if listing is None else _files_of_listing(root, suffix, listing)
    if not files:
        return None
    parts: dict[str, dict[str, list[PurePath]]] = {}
    unnamed: list[PurePath] = []
    for file in files:
        if named := _split_of_file(file, root):
            word, role = named
            parts.setdefault(role, {}).setdefault(word, []).append(file)
        else:
            unnamed.append(file)
    if parts and test:
        parts = {"train": parts[role_to_test(parts)]}
    if parts and "train" not in parts:
        raise InputError(f"no train-*{suffix} among the {len(files)} {suffix[1:]} files in {files[0].parent}; add them")
    train = _files_of_one_word(parts["train"], root) if parts else list(files)
    held_out = next((parts[role] for role in ("val", "test") if role in parts), None)
    val = _files_of_one_word(held_out, root) if held_out else []
    if listing is None:
        _require_unlike(train, val)
    sources = (_file_pattern(train, root), _file_pattern(val, root))
    used = {*train, *val}
    left_out = _left_out(Path(root), used) if listing is None else _unused_of_listing(root, listing, used)
    return ShardFiles(train, val, sources, left_out, next(iter(held_out)) if held_out else None)


def _require_unlike(train: Sequence[PurePath], val: Sequence[PurePath]) -> None:
    """Require that no link makes one file a part of both splits."""
    owner = {os.path.realpath(file): file for file in train}
    for file in val:
        if (other := owner.get(os.path.realpath(file))) is not None:
            raise InputError(f"{other} and {file} are one file, by a link, of both splits; remove the link")


def _files_of_listing(root: PurePath, suffix: str, listing: Sequence[PurePath]) -> list[PurePath]:
    """Choose the shards among the files of a listing: in the folder itself, in `data`, or in subfolders."""
    files = [file for file in listing if file.suffix == suffix]
    for folder in (root, root / "data"):
        if direct := sorted(file for file in files if file.parent == folder):
            return direct
    return _single_set(root, suffix, files)


def _unused_of_listing(root: PurePath, listing: Sequence[PurePath], used: set[PurePath]) -> tuple[str, ...]:
    """List the folders and files directly at the root that hold nothing that is used."""
    tops = {file.relative_to(root).parts[0] for file in used}
    unused = {file.relative_to(root).parts for file in listing if file.relative_to(root).parts[0] not in tops}
    return tuple(sorted({parts[0] + ("/" if len(parts) > 1 else "") for parts in unused}))


def _files_in_subfolders(root: Path, suffix: str) -> list[PurePath]:
    """List the shards in subfolders, if there is one set of them and there are no images."""
    if contains_image(root):  # asked first, since it stops at the first one
        return []
    files: list[PurePath] = [
        Path(folder, name)
        for folder, names in visible_folders(root)
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    ]
    return _single_set(root, suffix, files)


def _single_set(root: PurePath, suffix: str, files: Sequence[PurePath]) -> list[PurePath]:
    """Return files in subfolders, sorted, if their folders differ in the words for splits only."""
    sets: dict[tuple[str, ...], list[PurePath]] = {}
    for file in files:
        words = tuple(
            " ".join(rest)
            for part in file.relative_to(root).parts[:-1]
            if (rest := split_words(part)[1]) and part not in _DEFAULT_CONFIGURATION
        )
        sets.setdefault(words, []).append(file)
    if len(sets) > 1:
        folders = sorted(str(each[0].parent) for each in sets.values())
        raise InputError(
            f"{root} has several sets of {suffix[1:]} files, in {few_names(folders)}; give the folder of one"
        )
    return sorted(files)


def _split_of_file(file: PurePath, root: PurePath) -> tuple[str, str] | None:
    """Find the word for a split and what it means, in the file's name or else in that of the nearest folder."""
    for name in (file.stem, *reversed(file.relative_to(root).parts[:-1])):
        named, _ = split_words(name)
        if len(named) > 1:
            raise InputError(f"{file} names several parts, {' and '.join(named)}; rename it so that it names one")
        if named:
            return next(iter(named.items()))
    return None


def _files_of_one_word(by_word: dict[str, list[PurePath]], root: PurePath) -> list[PurePath]:
    """Return the files of a split, all of which must use one word for it."""
    if len(by_word) > 1:
        one, other = (files[0].relative_to(root) for files in list(by_word.values())[:2])
        raise InputError(f"{one} and {other} in {root} name parts that serve the same purpose; keep one there")
    (files,) = by_word.values()
    return files


def _file_pattern(files: Sequence[PurePath], root: PurePath) -> str:
    """Write files as a pattern and their number, such as `data/train-*.parquet (3 files)`."""
    shapes = sorted({re.sub(r"(\d+-of-)?\d+", "*", file.relative_to(root).as_posix()) for file in files})
    return f"{few_names(shapes)} ({len(files)} {'file' if len(files) == 1 else 'files'})" if files else ""


def _left_out(root: Path, used: set[PurePath]) -> tuple[str, ...]:
    """List the files and folders at the root and beside the used files that hold no rows of either split."""
    unused, inside = set(), {parent for file in used for parent in file.parents}
    for folder in {root, *(Path(file.parent) for file in used)}:
        for path in folder.iterdir():
            if path not in used and path not in inside and not path.name.startswith("."):
                unused.add(f"{path.relative_to(root).as_posix()}{'/' if path.is_dir() else ''}")
    return tuple(sorted(unused))
