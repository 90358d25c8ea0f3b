"""Which parquet files of a folder are to be trained on, and which are held out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from imixer.data.image_data import few_names
from imixer.data.sources.image_files import any_image, visible_folders
from imixer.data.sources.splitting import split_words
from imixer.errors import InputError

_PLAIN = {"default"}  # the hub's name for the only configuration there is


@dataclass(frozen=True)
class Shards:
    """Parquet files by part.

    Args:
        train: To train on.
        val: Held out. Empty: there are none.
        sources: What the files of both are called.
        left_out: Files and folders that are not used.
        split: The word for the held-out part in its files' names. None: there is no such part.
    """

    train: list[Path]
    val: list[Path]
    sources: tuple[str, str]
    left_out: tuple[str, ...]
    split: str | None = None


def parquet_files(root: Path) -> list[Path]:
    """Parquet files directly in a folder, else those in its `data` folder, sorted."""
    for folder in (root, root / "data"):
        files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
        if files:
            return files
    return []


def find_shards(root: Path) -> Shards | None:
    """Parquet files of a folder by part, told by words in their names, or else in those of their folders.

    Files are taken from the folder itself, else from its `data` folder, else from the only set of folders that has any,
    such as `plain_text/` or `train/` and `test/`. A folder with images in subfolders is none of parquet files.

    Returns:
        The files. None: there are none.

    Raises:
        InputError: There are several sets, a name says two parts, parts of two names serve one purpose, or there is no
            training part.
    """
    files = parquet_files(root) or _deeper(root)
    if not files:
        return None
    parts: dict[str, dict[str, list[Path]]] = {}
    unnamed: list[Path] = []
    for file in files:
        if named := _part(file, root):
            word, role = named
            parts.setdefault(role, {}).setdefault(word, []).append(file)
        else:
            unnamed.append(file)
    if parts and "train" not in parts:
        raise InputError(f"no train-*.parquet among the {len(files)} parquet files in {files[0].parent}; add them")
    train = _only(parts["train"], root) if parts else files
    held_out = next((parts[role] for role in ("val", "test") if role in parts), None)
    val = _only(held_out, root) if held_out else []
    sources = (_pattern(train, root), _pattern(val, root))
    return Shards(train, val, sources, _left_out(root, {*train, *val}), next(iter(held_out)) if held_out else None)


def _deeper(root: Path) -> list[Path]:
    """Parquet files in subfolders, if there is one set of them and there are no images."""
    sets: dict[tuple[str, ...], list[Path]] = {}
    for place, names in visible_folders(root):
        files = [Path(place, name) for name in names if name.endswith(".parquet") and not name.startswith(".")]
        if files:
            inside = Path(place).relative_to(root).parts
            words = tuple(" ".join(rest) for part in inside if (rest := split_words(part)[1]) and part not in _PLAIN)
            sets.setdefault(words, []).extend(files)
    if not sets or any_image(root):
        return []
    if len(sets) > 1:
        places = sorted(str(files[0].parent) for files in sets.values())
        raise InputError(f"{root} has several sets of parquet files, in {few_names(places)}; give the folder of one")
    (files,) = sets.values()
    return sorted(files)


def _part(file: Path, root: Path) -> tuple[str, str] | None:
    """The word for a part and what it means, in the file's name or else in that of the nearest folder."""
    for name in (file.stem, *reversed(file.relative_to(root).parts[:-1])):
        named, _ = split_words(name)
        if len(named) > 1:
            raise InputError(f"{file} names several parts, {' and '.join(named)}; rename it so that it names one")
        if named:
            return next(iter(named.items()))
    return None


def _only(by_word: dict[str, list[Path]], root: Path) -> list[Path]:
    """The files of a role, all of which must use one word for it."""
    if len(by_word) > 1:
        one, other = (files[0].relative_to(root) for files in list(by_word.values())[:2])
        raise InputError(f"{one} and {other} in {root} name parts that serve the same purpose; keep one there")
    (files,) = by_word.values()
    return files


def _pattern(files: list[Path], root: Path) -> str:
    """`data/train-*.parquet (3 files)`."""
    shapes = sorted({re.sub(r"(\d+-of-)?\d+", "*", file.relative_to(root).as_posix()) for file in files})
    return f"{few_names(shapes)} ({len(files)} {'file' if len(files) == 1 else 'files'})" if files else ""


def _left_out(root: Path, used: set[Path]) -> tuple[str, ...]:
    """Files and folders at the root and beside the used files that hold no rows of either part."""
    found = set()
    for folder in {root, *(file.parent for file in used)}:
        for path in folder.iterdir():
            inside = any(path in file.parents for file in used)
            if path not in used and not inside and not path.name.startswith("."):
                found.add(f"{path.relative_to(root).as_posix()}{'/' if path.is_dir() else ''}")
    return tuple(sorted(found))
