r"""Escape text from outside, such as names of classes, files and settings, for the place where it is shown.

A class may be called `$\foo$`, `[/bold]` or `=1+1`, or have an escape sequence in its name. Wherever it is shown, that
is a name and nothing else. There is one function per language: terminal, matplotlib, CSV, Markdown, LaTeX, Plotly.
"""

from __future__ import annotations

import html
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

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
    r"""Escape for a terminal: write out control characters, changes of direction and bytes of no encoding.

    Args:
        text: Any object; its `str` is taken.

    Returns:
        The text, in which the escape character is written as `\x1b`, for example.
    """
    return _UNSEEN.sub(lambda match: _written_out(ord(match[0])), str(text))


def printable_lines(text: str) -> str:
    """Escape every line of a text for a terminal, and keep the line breaks; see `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def is_encodable(text: str) -> bool:
    """Tell whether a text can be encoded: no byte of no encoding, and no half of a letter, stands in it."""
    return _OF_NO_ENCODING.search(text) is None


def one_line(text: object) -> str:
    """Escape for a terminal, in one line: every stretch of white space becomes one blank."""
    return printable(" ".join(str(text).split()))


def shell_word(path: object) -> str:
    """Write a path as one word of a command that can be typed as it is printed."""
    return shlex.quote(str(path))


def middle_cut(text: str, width: int) -> str:
    """Shorten a text by leaving out its middle, since names mostly differ at their ends.

    Args:
        text: The text.
        width: The largest number of characters, at least 1.
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
    r"""Escape for matplotlib, in one line: it takes what stands between dollars for a formula.

    Args:
        text: The text.
        width: The largest number of characters; the middle of a longer text is left out. Default: no limit.
    """
    line = one_line(text)
    return (line if width is None else middle_cut(line, width)).replace("$", r"\$")


def for_legend(text: object, width: int | None = None) -> str:
    """Escape for a legend of matplotlib, which leaves out names that begin with an underscore.

    Args:
        text: The text.
        width: The largest number of characters; the middle of a longer text is left out. Default: no limit.
    """
    line = for_figure(text, width)
    return f" {line}" if line.startswith("_") else line


def for_csv(cell: Any) -> Any:
    """Escape a cell of a CSV file, so that no spreadsheet computes it. Numbers stay, also those written as text."""
    if not isinstance(cell, str):
        return cell
    cell = _OF_NO_ENCODING.sub(lambda match: _written_out(ord(match[0])), cell)
    if _QUOTED_FORMULA.match(cell) or (_FORMULA.match(cell) and not is_numeral(cell)):
        return f"'{cell}"
    return cell


def from_csv(cell: str) -> str:
    """Undo `for_csv`. Bytes of no encoding stay written out."""
    escaped = cell.startswith("'") and (_FORMULA.match(cell[1:]) or _QUOTED_FORMULA.match(cell[1:]))
    return cell[1:] if escaped else cell


def for_markdown(text: object) -> str:
    """Escape for Markdown, in one line, with the sign ± for `+-`."""
    return re.sub(r"([\\`*_<>|\[\]&~])", r"\\\1", one_line(text).replace("+-", "±"))


def for_latex(text: object) -> str:
    """Escape for LaTeX, in one line, with mathematical signs for `+-` and for a minus before a number."""
    return _SPECIAL.sub(lambda match: _LATEX.get(match[0], "$-$"), one_line(text))


def for_plotly(text: object) -> str:
    """Escape for Plotly, in one line: its texts are HTML, in which `%{...}` stands for a value."""
    return html.escape(one_line(text)).replace("%{", "&#37;{")


def slug(text: str, *, kept: str = r"\w.", filler: str = "_", edges: str | None = None, empty: str = "") -> str:
    r"""Make a name for a file, a folder or a link out of a text.

    Args:
        text: The text.
        kept: The characters that stay, as they stand in the brackets of a regular expression.
        filler: What takes the place of any others in a row.
        edges: The characters that are stripped from both ends. Default: the filler.
        empty: The name of a text of which nothing is left.
    """
    return re.sub(f"[^{kept}]+", filler, text).strip(filler if edges is None else edges) or empty


def unlike(names: Sequence[str]) -> list[str]:
    """Add numbers to names that occur more than once, so that no two are alike.

    Args:
        names: Names of files or folders, such as `slug` makes them.

    Returns:
        The names in their order, of which `a`, `a`, `b` are `a-1`, `a-2`, `b`.
    """
    counts, taken, made = Counter(names), set(names), []
    numbers: dict[str, Iterator[int]] = {name: count(1) for name in counts}
    for name in names:
        if counts[name] > 1:
            made.append(next(each for n in numbers[name] if (each := f"{name}-{n}") not in taken))
            taken.add(made[-1])
        else:
            made.append(name)
    return made


def _written_out(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_numeral(text: str) -> bool:
    """Say whether a text writes out a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
