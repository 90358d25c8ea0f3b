"""Figures for print, as PNG and PDF: widths of columns, letters of 6.5 to 8 points, colours for colour-blind eyes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state
from torch import Tensor

SINGLE, DOUBLE = 3.4, 7.0  # inches: one column of two, and both
# Okabe and Ito's, without the yellow that white paper swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
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
def print_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, saved as PNG and PDF if nothing fails. The same figure is the same file.

    Args:
        path: PNG to write. The PDF lies beside it.
        width, height: In inches.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path.with_suffix(".png"), dpi=300)
        figure.savefig(path.with_suffix(".pdf"), dpi=300, metadata={"CreationDate": None})


def line_style(number: int) -> tuple[str, str, str]:
    """Colour, line style and marker of the number-th of many lines, from 0; 28 differ."""
    ls, marker = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))[number // len(COLORS) % 4]
    return COLORS[number % len(COLORS)], ls, marker


def draw_signed(axes: Axes, values: Tensor, end: float) -> None:
    """A picture (height, width) of numbers from -end, blue, to end, red; 0 is white."""
    end = end or 1.0  # nothing but zeros
    axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-end, vmax=end, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_linewidth(0.4)


def explain_signed(figure: Figure, *more: str) -> None:
    """Say below the figure what the colours of `draw_signed` mean, and whatever else there is to say, line by line."""
    lines = ("red: positive, blue: negative, white: 0; ±: ends of the scale", *more)
    figure.supxlabel("\n".join(lines), fontsize=SMALL)


def label_row(axes: Axes, label: str) -> None:
    """Name a row of pictures to the left of its first."""
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=SMALL)
