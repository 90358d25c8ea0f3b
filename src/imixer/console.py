"""Print to a terminal what may hold text from outside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from imixer.escaping import printable_lines


class PlainConsole(Console):
    """A console that shows text as it is: without markup, emoji, colours of its own or control characters.

    Choose it wherever a name from outside may be printed. Its options are those of `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments, and escape those of text for a terminal."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text == "\n" else Segment(printable_lines(text), style)
