"""Write tables as Markdown, as LaTeX and on the screen; write a mean with its spread; colour a verdict."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from imixer.escaping import for_latex, for_markdown


@dataclass(frozen=True)
class Grid:
    """A table of text cells, for all ways in which a table is shown.

    Choose it wherever the same cells go to a page and to the screen. In a cell, `+-` stands for plus or minus.

    Args:
        header: Title of each column.
        rows: The rows, each as long as the header.
        text: Number of leading columns that hold text, aligned left. The others hold numbers, aligned right.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: int


def markdown(grid: Grid) -> str:
    """Write a table in GitHub's Markdown."""
    align = tuple("---" if column < grid.text else "---:" for column in range(len(grid.header)))
    lines = [_markdown_row(grid.header), f"|{'|'.join(align)}|", *map(_markdown_row, grid.rows)]
    return "\n".join(lines) + "\n"


def latex(grid: Grid, caption: str, label: str) -> str:
    """Write a LaTeX table environment.

    It needs the packages booktabs and graphicx. A table wider than the line is scaled down to it.

    Args:
        grid: The table.
        caption: Its caption.
        label: Its label, after `tab:`.
    """
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
    """Build a table for a rich console.

    Args:
        grid: The table.
        title: A line above it.
    """
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
        spread: Standard deviation or error, in the same unit. None for a single trial: the mean stands alone.
        digits: Digits after the point, of both.
        significant: Take `digits` for the significant ones of the mean, and write the spread with two.
        unit: What follows either number, such as `%`.
    """
    formats = (f".{digits}g", ".2g") if significant else (f".{digits}f", f".{digits}f")
    return " +- ".join(f"{v:{f}}{unit}" for v, f in zip((mean, spread), formats, strict=True) if v is not None)


_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def with_unit(number: float) -> str:
    """Write a count such as `266 P`, `3.4 P` or `109.4 M`: P is 1e15, T is 1e12."""
    scale, unit = next((each for each in _UNITS if number >= each[0]), _UNITS[-1])
    return f"{number / scale:,.1f} {unit}" if number / scale < 1000 else f"{number / scale:,.0f} {unit}"


_VERDICT_STYLES = {"guaranteed": "green", "observed": "cyan", "undecided": "magenta", "violated": "yellow"}


def verdict_markup(verdict: str) -> Text:
    """Colour a verdict for the screen.

    Args:
        verdict: `guaranteed`, `observed`, `undecided` or `violated`.
    """
    return Text(verdict, _VERDICT_STYLES[verdict])
