r"""Text from outside, such as names of classes, files and settings, for the languages it ends up in.

A class called `$\foo$`, `[/bold]`, `=1+1` or one with an escape sequence in it is a name and nothing else, wherever it
is shown. One function per language; whatever is shown passes through one of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_OF_NO_ENCODING = re.compile("[\ud800-\udfff]")
_FORMULA = re.compile(r"\s*[=+\-@\t\r]")
_QUOTED_FORMULA = re.compile(r"'+\s*[=+\-@\t\r]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "+-": r"$\pm$",
}
_SPECIAL = re.compile(r"\+-|(?<!\S)-(?=\d)|(?<=\[)-(?=\d)|" + "|".join(re.escape(word) for word in _LATEX))


def printable(text: object) -> str:
    r"""Write out what a terminal would obey or could not show: controls, changes of direction, bytes of no encoding.

    Args:
        text: Anything with a text.

    Returns:
        The text with `\x1b` for the escape character, and so on.
    """
    return _UNSEEN.sub(lambda found: _written_out(ord(found[0])), str(text))


def printable_lines(text: str) -> str:
    """Make every line printable."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: object) -> str:
    """Make it printable, with a blank for every stretch of white space."""
    return printable(" ".join(str(text).split()))


def middle_cut(text: str, width: int) -> str:
    """Shorten to a width by leaving out the middle: names that differ do so at the ends.

    Args:
        text: The text.
        width: Characters at most, 1 or more.
    """
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def few_names(names: Sequence[str], most: int = 5) -> str:
    """List the first of many names, and how many there are, such as `cat, dog, ... (120)`.

    Args:
        names: The names. Each is shortened to 40 characters.
        most: How many are listed.
    """
    shown = ", ".join(middle_cut(name, 40) for name in names[:most])
    return f"{shown}, ... ({len(names)})" if len(names) > most else shown


def for_figure(text: object, width: int | None = None) -> str:
    r"""Escape for matplotlib, whose texts are formulas between dollars, in one line.

    Args:
        text: The text.
        width: Characters to cut the middle out for. Default: no limit.
    """
    line = one_line(text)
    return (line if width is None else middle_cut(line, width)).replace("$", r"\$")


def for_legend(text: object, width: int | None = None) -> str:
    """Escape for a legend of matplotlib, which leaves out names that begin with an underscore."""
    line = for_figure(text, width)
    return f" {line}" if line.startswith("_") else line


def for_csv(cell: Any) -> Any:
    """Escape a cell of a CSV file, lest a spreadsheet compute it. Numbers, also written out, stay."""
    if not isinstance(cell, str):
        return cell
    cell = _OF_NO_ENCODING.sub(lambda found: _written_out(ord(found[0])), cell)
    if _QUOTED_FORMULA.match(cell) or (_FORMULA.match(cell) and not _is_number(cell)):
        return f"'{cell}"
    return cell


def from_csv(cell: str) -> str:
    """Undo `for_csv`, but for bytes of no encoding, which stay written out."""
    escaped = cell.startswith("'") and (_FORMULA.match(cell[1:]) or _QUOTED_FORMULA.match(cell[1:]))
    return cell[1:] if escaped else cell


def for_markdown(text: object) -> str:
    """Escape for Markdown, in one line, with a sign for plus or minus."""
    return re.sub(r"([\\`*_<>|\[\]&~])", r"\\\1", one_line(text).replace("+-", "±"))


def for_latex(text: object) -> str:
    """Escape for LaTeX, in one line, with signs for plus or minus, and for minus before a number."""
    return _SPECIAL.sub(lambda found: _LATEX.get(found[0], "$-$"), one_line(text))


def for_plotly(text: object) -> str:
    """Escape for Plotly, whose texts are a kind of HTML with `%{...}` for values."""
    return html.escape(one_line(text)).replace("%{", "&#37;{")


class PlainConsole(Console):
    """A console that shows text as it is: no markup, no emoji, no colours of its own, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments, those of text printable."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text == "\n" else Segment(printable_lines(text), style)


def _written_out(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
