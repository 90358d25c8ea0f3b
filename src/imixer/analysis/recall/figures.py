"""Draw what memories recall. Markers differ as well as colours, for print without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter
from torch import Tensor

from imixer.analysis.plotting import style_axes
from imixer.analysis.recall.capacity import Capacity
from imixer.analysis.recall.measure import Recall
from imixer.analysis.recall.study import LOOK_UP, RecallShare
from imixer.escaping import for_figure
from imixer.plotting import AMBER, BLUE, GREEN, ORANGE, PINK, SKY, legend_below

_COLUMNS = 8
_STEP_ROWS = 3
_STYLES = (  # colour, marker, line
    (BLUE, "o", "-"),
    (ORANGE, "s", "-"),
    (GREEN, "^", "-"),
    (PINK, "D", "-"),
    (AMBER, "v", "-"),
    (SKY, "P", "-"),
    ("#7F4FC9", "X", "-"),
    ("#666666", "*", "-"),
)


def draw_recall(recall: Recall) -> Figure:
    """Draw the first eight queries: stored image, query, some steps and what was retrieved; beside them the energies.

    Each query has a column of pictures, and a curve of its energy with hollow markers if it was missed.
    """
    retrieval = recall.retrieval
    shown = min(len(recall.own), _COLUMNS)
    last = len(retrieval.states) - 1
    between = sorted({1 + i * (last - 1) // _STEP_ROWS for i in range(_STEP_ROWS)} - {0, last})
    rows: list[tuple[str, Tensor]] = [("stored", recall.patterns[recall.own]), ("query", retrieval.states[0])]
    rows += [(f"step {step}", retrieval.states[step]) for step in between]
    rows += [("retrieved", retrieval.retrieved)]
    width = 1.0 * shown + 4.6
    figure = Figure(figsize=(width, 1.06 * len(rows) + 0.9), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.0 * shown + 0.6, 4.0])
    pictures, panel = parts
    grid = pictures.subplots(len(rows), shown, squeeze=False)
    for axes_row, (label, frames) in zip(grid, rows, strict=True):
        for i, axes in enumerate(axes_row):
            axes.imshow(frames[i].numpy(), cmap="gray", vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.7")
        axes_row[0].set_ylabel(label, fontsize=9)
    energies = panel.subplots()
    for i in range(shown):
        name = for_figure(recall.names[int(recall.own[i])], 12)
        grid[0, i].set_title(f"{i + 1}: {name}", fontsize=9)
        verdict = "right" if recall.retrieved[i] else "missed"
        grid[-1, i].set_xlabel(f"{verdict}\n{float(recall.after[i]):.2f}", fontsize=8)
        color, marker, line = _STYLES[i]
        curve = retrieval.energies[: int(retrieval.steps[i]) + 1, i].numpy()
        fill = color if recall.retrieved[i] else "white"
        energies.plot(curve, color=color, marker=marker, ls=line, ms=5, mfc=fill, label=str(i + 1))
    energies.set(xlabel="step", ylabel="energy (without unit)", title="Energy of each query (hollow: missed)")
    energies.title.set_fontsize(10)
    energies.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(energies, columns=6, title="query", fontsize=8)
    style_axes(energies)
    figure.suptitle(
        f"{recall.memory.kind} memory of {len(recall.patterns)} images: {int(recall.retrieved.sum())} of "
        f"{len(recall.own)} retrieved; below, the cosine with the stored image",
        fontsize=10,
    )
    return figure


def draw_memory_study(shares: Sequence[RecallShare]) -> Figure:
    """Draw the share retrieved against load, noise, and load with half the image hidden, for each set of patterns.

    Curves that coincide are set apart sideways.
    """
    sets = list(dict.fromkeys(share.patterns for share in shares))
    conditions = list(dict.fromkeys(share.varied for share in shares))
    memories = [memory for memory in dict.fromkeys(share.memory for share in shares) if memory != LOOK_UP]
    styles: dict[str, tuple[str, str, str]] = dict(zip(memories, _STYLES, strict=False))
    styles[LOOK_UP] = ("black", "", "--")
    figure = Figure(figsize=(13, 10.2), layout="constrained")
    grid = figure.subplots(len(conditions), len(sets), sharey=True, squeeze=False)
    for axes_row, varied in zip(grid, conditions, strict=True):
        for axes, patterns in zip(axes_row, sets, strict=True):
            here = [share for share in shares if (share.patterns, share.varied) == (patterns, varied)]
            for i, memory in enumerate(dict.fromkeys(share.memory for share in here)):
                line = [share for share in here if share.memory == memory]
                color, marker, ls = styles[memory]
                apart = 0.006 * line[-1].x * i if varied == "noise" else 1.035**i
                x = [share.x + apart if varied == "noise" else share.x * apart for share in line]
                axes.errorbar(
                    x, [share.mean for share in line], [share.std for share in line],
                    color=color, marker=marker, ls=ls, ms=5, capsize=2, lw=1.4, elinewidth=0.8, label=memory,
                )  # fmt: skip
            _style_condition(axes, here[0])
        axes_row[0].set_ylabel("queries retrieved")
    handles = {}
    for axes in figure.axes:
        handles.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    order = [*memories, LOOK_UP]
    figure.legend([handles[m] for m in order], order, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _style_condition(axes: Axes, first: RecallShare) -> None:
    """Label the axes of one set of patterns and one condition."""
    axes.set(xlabel=first.label, ylim=(-0.04, 1.06), title=f"{first.patterns}: {first.setting}")
    axes.title.set_fontsize(10)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if first.varied != "noise":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200, 500]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
    style_axes(axes)


def draw_capacity(capacities: Sequence[Capacity]) -> Figure:
    """Draw how many patterns memories hold against their length: measured with error bars, theory as a line.

    Energies of an order have the left panel, both axes logarithmic; the exponential one has the right.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (color, marker, _) in zip(dict.fromkeys(c.memory for c in capacities), _STYLES, strict=False):
        line = [capacity for capacity in capacities if capacity.memory == name]
        axes = right if name == "exponential" else left
        x = [capacity.length for capacity in line]
        axes.errorbar(
            x, [c.mean for c in line], [c.std for c in line],
            color=color, marker=marker, ls="none", ms=6, capsize=2, elinewidth=0.8, label=name,
        )  # fmt: skip
        theory = "2^(N/2), large N" if name == "exponential" else f"{name}, theory"
        axes.plot(x, [c.theory for c in line], color=color, ls="--", lw=1.3, label=theory)
    left.set_xscale("log")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.set(xlabel="signs of a pattern, N", ylabel="patterns stored")
        lengths = sorted({c.length for c in capacities if (c.memory == "exponential") == (axes is right)})
        axes.xaxis.set_major_locator(FixedLocator(lengths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        style_axes(axes)
        legend_below(axes, 2)
    return figure
