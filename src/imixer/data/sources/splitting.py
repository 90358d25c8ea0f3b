"""The words that name splits, and a held-out split with the same mix of classes."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from imixer.data.config import DataConfig
from imixer.errors import InputError

ROLES = ("train", "val", "test")

_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "tst", "eval", "evaluation", "evaluate", "holdout"), "test"),
}
_FILLER = re.compile("(data|sub|image|img|pic|picture|photo)?(set|split|part|folder|dir|file)?s?|final|full|jpe?g|png")


def split_words(name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Find the words for splits in a name: `cifar10-TrainImages` says `train`, and `cifar` remains.

    Args:
        name: Name of a file or folder, in any case.

    Returns:
        The words for splits in it, each with the one of `train`, `val` and `test` that it means; and its other words,
        without those that go with any split, such as `images`.
    """
    joined = re.sub(r"(hold|held|Hold|Held|HOLD|HELD)[\W_]?(out|Out|OUT)", " holdout ", name)
    named: dict[str, str] = {}
    others: list[str] = []
    for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+", joined):
        word = word.lower()
        stem = (
            word if word in _WORDS else re.sub("(?<=.)(dataset|data|sets|set|images|imgs|split)$", "", word)
        )  # testset
        if stem in _WORDS:
            named[stem] = _WORDS[stem]
        elif not _FILLER.fullmatch(word):
            others.append(word)
    return named, tuple(others)


def split_role(name: str) -> str | None:
    """Tell which split a name means if it says nothing else, such as `Testing`, `train_images` or `val2017`.

    Args:
        name: Name of a file or folder, in any case.

    Returns:
        `train`, `val` or `test`. None: it means no split, several, or something else too.
    """
    named, others = split_words(name)
    roles = set(named.values())
    return roles.pop() if len(roles) == 1 and not others else None


def role_to_test(roles: Collection[str]) -> str:
    """Choose the part of a data set that a model is to be tested on: that of test, or else of validation, or all.

    Args:
        roles: Those of `ROLES` that there are parts for, at least one.
    """
    return next(role for role in ("test", "val", "train") if role in roles)


def require_two_classes(labels: NDArray[np.int64], class_names: Sequence[str], what: str) -> None:
    """Require at least two classes among the labels.

    Args:
        labels: Label of each item.
        class_names: Name of each label.
        what: Name of the data set in messages.

    Raises:
        InputError: If there are fewer.
    """
    present = np.unique(labels)
    if len(present) < 2:
        only = f"only the class {class_names[int(present[0])]!r}" if len(present) else "no labelled images"
        raise InputError(
            f"{what} has {only}; classification needs two classes or more; add a folder, or labels, of another"
        )


def held_out_share(config: DataConfig) -> str:
    """Describe the share that is held out of data that have no split for it."""
    return f"{config.val_fraction:.0%} of each class of them, by data.split_seed {config.split_seed}"


def stratified_split(
    labels: NDArray[np.int64], class_names: Sequence[str], *, fraction: float, seed: int, what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split item numbers so that each class keeps its share in both splits, and has an item in both.

    Args:
        labels: Label of each item.
        class_names: Name of each label, for messages.
        fraction: Share that is held out, in (0, 1).
        seed: Seed of the draw; the same seed gives the same split.
        what: Name of the data set in messages.

    Returns:
        Item numbers of the training split and of the held-out split, each ascending.

    Raises:
        InputError: If a class has fewer than two images, or a split is too small to hold every class.
    """
    # deferred: scikit-learn takes a second to import
    from sklearn.model_selection import train_test_split

    present, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        lonely = class_names[int(present[counts.argmin()])]
        raise InputError(
            f"class {lonely!r} of {what} has 1 image; holding some out for validation takes 2 or more per class; "
            "add images, or remove its folder"
        )
    held_out = math.ceil(fraction * len(labels))
    kept = len(labels) - held_out
    if min(held_out, kept) < len(present):
        least = math.ceil(1000 * len(present) / len(labels)) / 1000
        remedy = f"give a share from {least:g} to {1 - least:g}" if least <= 0.5 else "add images"
        part, size = ("validation", held_out) if held_out < kept else ("training", kept)
        raise InputError(
            f"data.val_fraction {fraction:g} of the {len(labels)} images of {what} leaves {size} for {part}, "
            f"fewer than its {len(present)} classes; {remedy}"
        )
    train, val = train_test_split(np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels)
    missing = np.setdiff1d(present, labels[train])
    if len(missing):
        raise InputError(
            f"data.val_fraction {fraction:g} leaves class {class_names[int(missing[0])]!r} of {what} without "
            "training images; give a smaller share or add images"
        )
    for label in np.setdiff1d(present, labels[val]):  # whose share is less than half an item
        largest = np.bincount(labels[val]).argmax()  # with two items or more, as a class has none
        given, taken = (np.flatnonzero(labels[part] == each)[0] for part, each in ((train, label), (val, largest)))
        train[given], val[taken] = val[taken], train[given]
    return np.sort(train), np.sort(val)
