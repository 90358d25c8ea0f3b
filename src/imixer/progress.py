"""Show what is being done, and how far it is, on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from imixer.escaping import one_line

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_BETWEEN_LINES_S = 30.0


def announce(activity: str) -> None:
    """Log what begins now and may take a while, such as `evaluating 360 images`."""
    _log.info("%s ...", one_line(activity))


def with_progress(chunks: Iterable[list[_T]], total: int, title: str, patience: float = 1.0) -> Iterator[_T]:
    """Iterate over results that come in chunks, and show how far the work is once it has taken a moment.

    Args:
        chunks: Lists of results, in order.
        total: The number of results that there will be.
        title: The name of the work.
        patience: Seconds before anything is shown.

    Yields:
        The results, one by one.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, visible=False)
        start = time.monotonic()
        done, next_line = 0, start + patience
        for chunk in chunks:
            yield from chunk
            now, done = time.monotonic(), done + len(chunk)
            bar.update(task, advance=len(chunk), visible=now - start > patience)
            if not console.is_terminal and now > next_line and done < total:
                next_line = now + _BETWEEN_LINES_S
                left = clock((now - start) / max(1, done) * (total - done))
                print(f"{title}: {done:,} of {total:,}, {left} left", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Format a duration in seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
