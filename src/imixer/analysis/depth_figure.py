"""What the figures along the depth of a model share."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from imixer.analysis.statistics import spread


def draw_spread(axes: Axes, blocks: Sequence[float], samples: Sequence[Tensor], **style: Any) -> None:
    """Mean and standard deviation of one sample (N,) per block."""
    found = [spread(sample) for sample in samples]
    axes.errorbar(blocks, [s["mean"] for s in found], [s["std"] for s in found], capsize=3, **style)


def finish(axes: Axes) -> None:
    """Blocks along the horizontal axis, a grid and a legend."""
    axes.set_xlabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
