"""Define the one exception that means: the user can mend this; and checks of numbers that all packages share."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class InputError(ValueError):
    """An error in what the user gave: a setting, a file or a data set.

    Raise it, and not another `ValueError`, wherever the user can mend what is wrong. The message is one line that names
    the thing, its value and the remedy. The command line prints it without a traceback and exits with 2.
    """


def check_whole(**numbers: object) -> None:
    """Check that numbers are whole, such as those of steps.

    Args:
        **numbers: The numbers, by the names that their user knows.

    Raises:
        ValueError: If one is not.
    """
    for name, number in numbers.items():
        if not hasattr(number, "__index__"):
            raise ValueError(f"{name} is {number!r}; give a whole number")


def as_whole(numbers: object) -> tuple[int, ...] | None:
    """Return a whole number, or a sequence of such, as a tuple of ints; numpy's too.

    Returns:
        None if something is no whole number.
    """
    each: Sequence[Any] = numbers if isinstance(numbers, Sequence) else (numbers,)
    try:
        return tuple(operator.index(number) for number in each)
    except TypeError:
        return None


def check_n_iter(n_iter: int) -> None:
    """Raise ValueError unless a value is a number of fixed point iterations."""
    check_whole(n_iter=n_iter)
    if n_iter < 0:
        raise ValueError(f"n_iter is {n_iter}; give 0 or more fixed point iterations")


def check_options(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Check that there are such options.

    Args:
        what: What has them.
        given: Names of those that are given.
        known: Names of those that there are.

    Raises:
        ValueError: If one is unknown.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise ValueError(f"{what} has no option {name!r}; known: {', '.join(known)}{did_you_mean(name, known, 1)}")


def did_you_mean(word: str, known: Iterable[str], count: int = 3, prefix: str = "", cutoff: float = 0.6) -> str:
    """Name the closest known words in a clause to append to a message.

    Args:
        word: What was given.
        known: What there is.
        count: Words to name at most.
        prefix: What stands before each of them, such as `--`.
        cutoff: How similar they must be, from 0 to 1.

    Returns:
        Nothing if no word is close.
    """
    close = get_close_matches(word, list(known), n=count, cutoff=cutoff)
    return f"; did you mean {' or '.join(prefix + word for word in close)}?" if close else ""
