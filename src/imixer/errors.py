"""Define the one exception that means: the user can mend this; what other errors say; and checks that all share."""

from __future__ import annotations

import errno
import operator
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from imixer.escaping import middle_cut, one_line

_LOADER_DIED = re.compile(r"DataLoader worker \(pid.*(killed by signal[^.]*|exited unexpectedly)")
_MOST_LETTERS = 200  # of a file's name or a library's message


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


def in_short(error: object, width: int = 200) -> str:
    """Quote what an error of another library says, in one line whose middle is left out where it is long.

    Args:
        error: The error.
        width: The largest number of characters.
    """
    return middle_cut(one_line(error), width)


def user_line(error: OSError | MemoryError | RuntimeError) -> str | None:
    """Turn an error of the system or of torch that a user can mend into one line: a full disk, a lack of memory.

    Args:
        error: The error.

    Returns:
        The line; None if it is an error of another kind, of which a traceback tells more.
    """
    if isinstance(error, OSError):
        return _system_said(error)
    said = in_short(error)
    kind = type(error).__name__
    # of Python, and of torch on CUDA and on a CPU
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return (
            f"there is not enough memory ({said or 'of this machine'}); lower data.batch_size, raise accumulate, or "
            "take a smaller model or image"
        )
    if died := _LOADER_DIED.search(str(error)):
        return (
            f"a loader process has died ({died[1]}), most likely of too little memory, or shared memory (/dev/shm); "
            "pass --data.workers 0 or fewer than now, which --resume takes too; other commands do as the run's "
            "config.yaml says"
        )
    # of imixer.implicit, which nobody may have needed yet
    return one_line(error) if kind == "NotConvergedError" else None


def _system_said(error: OSError) -> str:
    """Name the file and the reason of the system's error."""
    if error.errno is None and error.filename is None:
        return in_short(error)
    why = {errno.ENAMETOOLONG: "its name is too long", errno.ENOSPC: "the disk is full"}.get(error.errno or 0)
    where = middle_cut(one_line(error.filename), _MOST_LETTERS) if error.filename is not None else "a file or stream"
    return f"{where}: {why or error.strerror}"
