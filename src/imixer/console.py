"""Print to a terminal what may hold text from outside."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from imixer.escaping import printable_lines

_NO_LIMIT = 10_000  # characters of a line


class PlainConsole(Console):
    """A console that shows text as it is: without markup, emoji, colours of its own or control characters.

    Choose it wherever a name from outside may be printed. A table that is too wide loses nothing: its cells go on in
    the next line. Its options are those of `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments, and escape those of text for a terminal."""
        if isinstance(renderable, Table):
            for column in renderable.columns:
                column.overflow = "fold"
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text == "\n" else Segment(printable_lines(text), style)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, as `print` does: what that means is for the command to say."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def width_for(stream: TextIO) -> int | None:
    """Choose the width of a console: that of the terminal, and none elsewhere, so that lines stay whole.

    Args:
        stream: Where the console prints.
    """
    return None if stream.isatty() else _NO_LIMIT
