"""A table of text as Markdown, LaTeX, and on the screen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Tuple

from rich.table import Table
from rich.text import Text

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


@dataclass(frozen=True)
class Grid:
    """Rows of cells, in which `+-` stands for plus or minus.

    Args:
        header: What each column is called.
        rows: The rows, each as long as the header.
        text: How many columns, from the left, are text; the others are numbers, aligned at the right.
    """

    header: Tuple[str, ...]
    rows: Tuple[Tuple[str, ...], ...]
    text: int


def markdown(grid: Grid) -> str:
    """A table in GitHub's Markdown."""
    align = tuple("---" if column < grid.text else "---:" for column in range(len(grid.header)))
    lines = [_markdown_row(grid.header), f"|{'|'.join(align)}|", *map(_markdown_row, grid.rows)]
    return "\n".join(lines) + "\n"


def latex(grid: Grid, caption: str, label: str) -> str:
    """A table environment, which needs the packages booktabs and graphicx. A table that is too wide is made smaller."""
    align = "l" * grid.text + "r" * (len(grid.header) - grid.text)
    return "\n".join(
        [
            r"% \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            r"\footnotesize\setlength{\tabcolsep}{2.5pt}\setlength{\belowcaptionskip}{6pt}",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\label{{tab:{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
            r"\toprule",
            _latex_row(grid.header),
            r"\midrule",
            *map(_latex_row, grid.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def on_screen(grid: Grid, title: str) -> Table:
    """A table for rich."""
    table = Table(title=Text(title), title_justify="left", box=None)
    for column, name in enumerate(grid.header):
        table.add_column(Text(name), justify="left" if column < grid.text else "right")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line, with a sign for plus or minus."""
    one_line = " ".join(text.split()).replace("+-", "±")
    return re.sub(r"([\\`*_<>|])", r"\\\1", one_line)


def escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is, in one line, with signs for plus or minus, and for minus before a number."""
    return _SPECIAL.sub(lambda found: _LATEX.get(found[0], "$-$"), " ".join(text.split()))


def _markdown_row(cells: Tuple[str, ...]) -> str:
    return f"| {' | '.join(map(escape_markdown, cells))} |"


def _latex_row(cells: Tuple[str, ...]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"
