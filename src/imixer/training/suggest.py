"""What the user may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str], count: int = 3, prefix: str = "") -> str:
    """A clause naming the closest known words, to append to a message. Empty if none is close."""
    close = get_close_matches(word, list(known), n=count, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + word for word in close)}?" if close else ""
