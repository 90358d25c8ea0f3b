"""Hold what all figures share: the palette, whole files, and the style of figures for print."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state

from imixer.escaping import one_line
from imixer.writing import replacing

_log = logging.getLogger(__name__)
SINGLE, DOUBLE = 3.4, 7.0  # inches: one column of two, and both
PRINT_DPI = 300
# Okabe and Ito's, told apart by colour-blind eyes too, without the yellow that white paper swallows.
BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK = COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
GRAY = "#999999"
SMALL = 6.5  # points, beside and below small pictures

_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}


@contextmanager
def print_figure(width: float, height: float) -> Iterator[Figure]:
    """Make a figure to draw on in the style for print; `save_print_figure` saves it.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    with rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def save_print_figure(figure: Figure, path: Path) -> None:
    """Save what was drawn on a `print_figure` as PNG and PDF.

    Drawing the same twice gives the same files, byte by byte.

    Args:
        figure: The figure.
        path: PNG to write. The PDF lies beside it.
    """
    with rc_context(_STYLE):
        save_figure(figure, path.with_suffix(".png"), dpi=PRINT_DPI)
        save_figure(figure, path.with_suffix(".pdf"), dpi=PRINT_DPI)


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Save a whole figure, or nothing.

    Args:
        figure: The figure.
        path: File to write, PNG or PDF by its suffix.
        dpi: Pixels per inch.
    """
    kind = path.suffix.removeprefix(".")
    metadata = {"CreationDate": None} if kind == "pdf" else None  # the same figure is the same file
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata)


def line_style(number: int) -> tuple[str, str, str]:
    """Give one of many lines a colour, a line style and a marker.

    Args:
        number: Place of the line, from 0. The first 28 differ.
    """
    ls, marker = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))[number // len(COLORS) % 4]
    return COLORS[number % len(COLORS)], ls, marker


def legend_below(axes: Axes, columns: int, **style: Any) -> None:
    """Put the legend of axes below their label, where it hides no data. The figure's layout makes room for it.

    Args:
        axes: The axes, of a figure with a constrained layout.
        columns: The number of entries beside each other.
        **style: Further options of the legend.
    """
    figure = axes.figure
    inches = axes.get_position().height * (figure.get_figheight() if isinstance(figure, Figure) else 4.0)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.55 / inches), ncols=columns, frameon=False, borderaxespad=0, **style
    )


def drawn(path: Path, draw: Callable[[Path], None]) -> bool:
    """Draw a figure, or log a warning that says why that failed, and go on.

    Choose it for a figure whose numbers are written already: these are not lost with it.

    Args:
        path: PNG to write. If that fails, an earlier one there and a PDF beside it are removed: they show something
            else.
        draw: Draws it.

    Returns:
        Whether the figure was drawn.
    """
    try:
        draw(path)
    except Exception as error:  # fonts, memory, the disk: no reason to lose what was computed
        for file in (path, path.with_suffix(".pdf")):
            with suppress(OSError):  # as where there is none
                file.unlink()
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        _log.warning(f"warning: {one_line(path)} was not drawn ({reason}); all else is written")
        return False
    return True
