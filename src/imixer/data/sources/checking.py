"""Find unreadable images before training does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from imixer.data.sources.decoding import UnreadableImage
from imixer.errors import InputError
from imixer.progress import with_progress

_T = TypeVar("_T")

_CHUNK = 256


def parallel_map(work: Callable[[_T], object], things: Sequence[_T]) -> Iterator[list[tuple[_T, str | None]]]:
    """Do work on all things in threads; give chunks of (thing, why it is unreadable or None), in order."""

    def attempt(start: int) -> list[tuple[_T, str | None]]:
        outcome: list[tuple[_T, str | None]] = []
        for thing in things[start : start + _CHUNK]:
            try:
                work(thing)
            except UnreadableImage as error:
                outcome.append((thing, str(error)))
            else:
                outcome.append((thing, None))
        return outcome

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(attempt, range(0, len(things), _CHUNK))


def find_bad(
    things: Sequence[_T], work: Callable[[_T], object], name: Callable[[_T], str], *, skip_bad: bool
) -> dict[_T, str]:
    """Which things are unreadable.

    Args:
        things: What to test.
        work: Reads one; raises UnreadableImage.
        name: How to call one in a message.
        skip_bad: Whether unreadable ones are acceptable.

    Returns:
        The name of each unreadable thing.

    Raises:
        InputError: One is unreadable and `skip_bad` is off; names the first and counts the rest.
    """
    outcomes = with_progress(parallel_map(work, things), len(things), "checking images")
    bad = [(thing, why) for thing, why in outcomes if why is not None]
    if bad and not skip_bad:
        thing, why = bad[0]
        rest = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
        raise InputError(
            f"cannot read image {name(thing)}: {why}{rest}; mend or remove it, or pass --data.skip_bad true"
        )
    return {thing: name(thing) for thing, _ in bad}
