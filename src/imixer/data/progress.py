"""A progress bar that only shows when it is worth it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

_T = TypeVar("_T")


def with_progress(chunks: Iterable[list[_T]], total: int, title: str, patience: float = 1.0) -> Iterator[_T]:
    """Pass on what the chunks hold, and show a bar on stderr once it has taken a moment.

    Args:
        chunks: Lists of results, in order.
        total: How many results there will be.
        title: What is being done.
        patience: Seconds without a bar.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, visible=False)
        start = time.monotonic()
        for chunk in chunks:
            yield from chunk
            bar.update(task, advance=len(chunk), visible=time.monotonic() - start > patience)
