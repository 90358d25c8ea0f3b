"""What all figures share: the palette, files that are written or said not to be, and figures for print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure  # without pyplot: no display, no global state

from imixer.escaping import one_line
from imixer.writing import replacing

SINGLE, DOUBLE = 3.4, 7.0  # inches: one column of two, and both
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
        width, height: In inches.
    """
    with rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def save_print_figure(figure: Figure, path: Path) -> None:
    """Save what was drawn on a `print_figure` as PNG and PDF. The same figure is the same file.

    Args:
        figure: The figure.
        path: PNG to write. The PDF lies beside it.
    """
    with rc_context(_STYLE):
        save_figure(figure, path.with_suffix(".png"), dpi=300)
        save_figure(figure, path.with_suffix(".pdf"), dpi=300, metadata={"CreationDate": None})


def save_figure(figure: Figure, path: Path, dpi: int = 120, metadata: dict[str, Any] | None = None) -> None:
    """Save a whole figure, or nothing, in the format that the file's name ends in.

    Args:
        figure: The figure.
        path: File to write.
        dpi: Dots per inch.
        metadata: What matplotlib writes into the file beside the picture.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi, metadata=metadata)


def line_style(number: int) -> tuple[str, str, str]:
    """Colour, line style and marker of the number-th of many lines, from 0; 28 differ."""
    ls, marker = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))[number // len(COLORS) % 4]
    return COLORS[number % len(COLORS)], ls, marker


def drawn(path: Path, draw: Callable[[Path], None]) -> bool:
    """Draw, or say why that failed and go on: what a picture shows is written down before, and is not lost with it.

    Args:
        path: PNG to write. If that fails, an earlier one there and a PDF beside it are removed: they show something
            else.
        draw: Draws it.

    Returns:
        Whether it is there.
    """
    try:
        draw(path)
    except Exception as error:  # fonts, memory, the disk: no reason to lose what was computed
        for file in (path, path.with_suffix(".pdf")):
            file.unlink(missing_ok=True)
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        print(f"warning: {one_line(path)} was not drawn ({reason}); all else is written", file=sys.stderr, flush=True)
        return False
    return True
