"""Convergence of the fixed point iterations, drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from matplotlib.axes import Axes
from torch import Tensor

from imixer.analysis.convergence import Convergence
from imixer.analysis.print_figure import DOUBLE, SINGLE, line_style, print_figure
from imixer.analysis.statistics import spread

_ASIDE = 0.4  # of an iteration, over which the blocks are spread so that none hides another


def draw_convergence(found: Sequence[Convergence], path: Path, titles: Optional[Sequence[str]] = None) -> None:
    """Norm_a above and cos_a below, a column per model, a line per block: mean, and standard deviation as a band.

    Blocks stand side by side at each iteration. Beyond a dotted line are iterations that the model itself does not do.

    Args:
        found: What `convergence_along_depth` gave for each model.
        path: PNG to write. The PDF lies beside it.
        titles: One per model. Default: what each was trained with.
    """
    with print_figure(path, SINGLE if len(found) == 1 else DOUBLE, 3.9) as figure:
        widths = [result.n_iter + 2 for result in found]
        grid = figure.subplots(2, len(found), squeeze=False, sharex="col", sharey="row", width_ratios=widths)
        for (norms, cosines), result, title in zip(grid.T, found, titles or map(_title, found), strict=True):
            for number, block in enumerate(result.blocks):
                aside = _ASIDE * ((number + 0.5) / len(result.blocks) - 0.5)
                color, ls, marker = line_style(number)
                style = dict(color=color, ls=ls, marker=marker, label=str(block.block))
                _draw_band(norms, aside, block.norms, **style)
                _draw_band(cosines, aside, block.cosines, **style)
            norms.set(title=title, yscale="log")
            cosines.set(xlabel="iteration $a$", xlim=(-0.5, result.n_iter - 0.5))
            cosines.set_xticks(range(0, result.n_iter, 1 + (result.n_iter - 1) // 8))
            for axes in (norms, cosines):
                axes.grid(alpha=0.3, lw=0.5)
                axes.spines[["top", "right"]].set_visible(False)
                if result.trained is not None and result.trained < result.n_iter:
                    axes.axvline(result.trained - 0.5, color="0.3", lw=0.8, ls=":")
        grid[0, 0].set_ylabel(r"$\mathrm{Norm}_a = \|x^{a+1} - x^a\| \,/\, \sqrt{SC}$")
        grid[1, 0].set_ylabel(r"$\cos_a = \cos(x^{a+1}, x^a)$")
        most = max(grid[0], key=lambda axes: len(axes.get_legend_handles_labels()[1]))
        handles, labels = most.get_legend_handles_labels()
        figure.legend(
            handles, labels, title="block", loc="outside right center", frameon=False, ncols=1 + (len(labels) - 1) // 14
        )


def _draw_band(axes: Axes, aside: float, values: Tensor, **style: Any) -> None:
    found = [spread(sample) for sample in values]
    x = [a + aside for a in range(len(found))]
    low, high = ([s["mean"] + sign * s["std"] for s in found] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.vlines(x, low, high, color=style["color"], lw=0.8)
    axes.plot(x, [s["mean"] for s in found], **style)


def _title(found: Convergence) -> str:
    return "trained to a tolerance" if found.trained is None else f"trained with n = {found.trained}"
