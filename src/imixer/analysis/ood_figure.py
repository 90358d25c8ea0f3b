"""Scores of images in and out of a run's kind, drawn."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from imixer.analysis.ood import OutOfDistribution
from imixer.analysis.ood_scores import SCORES
from imixer.analysis.print_figure import COLORS, DOUBLE, print_figure
from imixer.escaping import for_figure, for_legend

_LINES = ("-", "--", "-.", ":")
_BINS = 30


def draw_ood(found: OutOfDistribution, path: Path) -> None:
    """Above: receiver operating characteristics, a panel per set. Below: histograms, a panel per score.

    Args:
        found: What `compare_ood` gave.
        path: PNG to write. A PDF lies beside it.
    """
    sets, names = list(found.outside), list(found.inside)
    with print_figure(path, max(DOUBLE, 1.7 * len(sets)), 4.4) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1])  # type: ignore[misc]  # typed as one
        for axes, against in zip(_row(above, len(sets)), sets, strict=True):
            for number, name in enumerate(names):
                curve = _characteristic(found.inside[name].numpy(), found.outside[against][name].numpy())
                axes.plot(*curve, **_style(number), label=SCORES[name].label)
            axes.plot([0, 1], [0, 1], color="0.7", lw=0.6, zorder=0)
            axes.set(
                xlabel="share of out accepted", title=f"against {for_figure(Path(against).name, 24)}", aspect="equal"
            )
        above.axes[0].set_ylabel("share of in accepted")
        above.legend(*above.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        for axes, name in zip(_row(below, len(names)), names, strict=True):
            samples = [values[name].numpy() for values in (found.inside, *found.outside.values())]
            shown = [values[np.isfinite(values)] for values in samples]
            low, high = np.percentile(np.concatenate(shown), [0.5, 99.5])
            ends = np.linspace(low, high, _BINS + 1)
            for number, (label, values) in enumerate(zip(("in", *sets), shown, strict=True), -1):
                kind = {"color": "0.8", "histtype": "stepfilled"} if label == "in" else _style(number)
                axes.hist(values.clip(ends[0], ends[-1]), ends, density=True, label=for_legend(Path(label).name, 24),
                          **{"histtype": "step", **kind})  # fmt: skip
            axes.set(xlabel=SCORES[name].label, yticks=[])
            axes.xaxis.set_major_locator(MaxNLocator(3))
        below.axes[0].set_ylabel("density")
        below.legend(*below.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)


def _row(part: Any, count: int) -> Any:
    row = part.subplots(1, count, squeeze=False)[0]
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
    return row


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "ls": _LINES[number % len(_LINES)]}


def _characteristic(inside: Any, outside: Any) -> tuple[Any, Any]:
    """Shares of out and of in at or above each threshold."""
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    shares = [1 - np.searchsorted(np.sort(each), thresholds) / len(each) for each in (outside, inside)]
    return np.append(0, shares[0]), np.append(0, shares[1])
