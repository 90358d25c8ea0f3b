"""The one exception that means: the user can mend this."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line that names the thing, its value, and the remedy. The command line prints it
    without a traceback and exits with 2.
    """


def did_you_mean(word: str, known: Iterable[str], count: int = 3, prefix: str = "") -> str:
    """A clause naming the closest known words, to append to a message. Empty if none is close."""
    close = get_close_matches(word, list(known), n=count, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + word for word in close)}?" if close else ""
