"""Draw what the figures of analyses share: blocks along an axis, pictures of signed numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from imixer.analysis.statistics import spread
from imixer.plotting import SMALL, legend_below


def draw_signed(axes: Axes, values: Tensor, end: float) -> None:
    """Draw a picture (height, width) of numbers from -end, blue, to end, red; 0 is white."""
    end = end or 1.0  # nothing but zeros
    axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-end, vmax=end, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_linewidth(0.4)


def explain_signed(figure: Figure, *more: str) -> None:
    """Write below the figure what the colours of `draw_signed` mean, and more lines."""
    lines = ("red: positive, blue: negative, white: 0; ±: ends of the scale", *more)
    figure.supxlabel("\n".join(lines), fontsize=SMALL)


def label_row(axes: Axes, label: str) -> None:
    """Name a row of pictures to the left of its first."""
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=SMALL)


def draw_spread(axes: Axes, blocks: Sequence[float], samples: Sequence[Tensor], **style: Any) -> None:
    """Draw mean and standard deviation of one sample (N,) per block, the latter as error bars."""
    summaries = [spread(sample) for sample in samples]
    means, deviations = ([summary[name] for summary in summaries] for name in ("mean", "std"))
    axes.errorbar(blocks, means, deviations, capsize=3, **style)


def style_depth_axes(axes: Axes) -> None:
    """Put blocks on the horizontal axis, a grid, and a legend below."""
    axes.set_xlabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    legend_below(axes, columns=2, fontsize=8)


def style_axes(axes: Axes) -> None:
    """Add a faint grid, and take away the frame above and on the right."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
