"""Tables of text as Markdown, LaTeX, and on the screen; means with their spread; verdicts in colour."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from imixer.escaping import for_latex, for_markdown


@dataclass(frozen=True)
class Grid:
    """Rows of cells, in which `+-` stands for plus or minus.

    Args:
        header: What each column is called.
        rows: The rows, each as long as the header.
        text: How many columns, from the left, are text; the others are numbers, aligned at the right.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
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
            rf"\caption{{{for_latex(caption)}}}",
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


def _markdown_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(for_markdown, cells))} |"


def _latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(for_latex, cells)) + r" \\"


def plus_minus(mean: float, spread: float | None, digits: int = 2, *, significant: bool = False, unit: str = "") -> str:
    """Write a mean and its spread, such as `88.56 +- 0.21`.

    Args:
        mean: The mean.
        spread: Standard deviation or error, in the same unit; None if there is none, of a single trial.
        digits: Digits after the point, of both.
        significant: Take `digits` for the significant ones of the mean, and write the spread with two.
        unit: What follows either number, such as `%`.
    """
    formats = (f".{digits}g", ".2g") if significant else (f".{digits}f", f".{digits}f")
    return " +- ".join(f"{v:{f}}{unit}" for v, f in zip((mean, spread), formats, strict=True) if v is not None)


_VERDICT_STYLES = {"guaranteed": "green", "observed": "cyan", "undecided": "magenta", "violated": "yellow"}


def verdict_markup(verdict: str) -> Text:
    """Give a verdict its colour on the screen."""
    return Text(verdict, _VERDICT_STYLES[verdict])
