"""What a memory recalls, drawn. Colours are Okabe and Ito's; markers differ too, for print without colour."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from matplotlib.figure import Figure  # without pyplot: no display, no global state
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter

from imixer.analysis.recall.measure import Recall
from imixer.analysis.recall.study import Cell
from imixer.escaping import for_figure
from imixer.plotting import AMBER, BLUE, GREEN, ORANGE, PINK, SKY

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


def draw_recall(found: Recall, path: Path) -> None:
    """Stored, query, some steps and what was retrieved, a column per query; beside them the energies.

    Args:
        found: The first eight queries of it are drawn.
        path: PNG to write.
    """
    way = found.retrieval
    shown = min(len(found.own), _COLUMNS)
    last = len(way.states) - 1
    between = sorted({1 + i * (last - 1) // _STEP_ROWS for i in range(_STEP_ROWS)} - {0, last})
    rows: list[tuple[str, Any]] = [("stored", found.patterns[found.own]), ("query", way.states[0])]
    rows += [(f"step {step}", way.states[step]) for step in between]
    rows += [("retrieved", way.retrieved)]
    width = 1.0 * shown + 4.6
    figure = Figure(figsize=(width, 1.06 * len(rows) + 0.9), layout="constrained")
    pictures, panel = cast(Any, figure.subfigures(1, 2, width_ratios=[1.0 * shown + 0.6, 4.0]))
    grid = pictures.subplots(len(rows), shown, squeeze=False)
    for axes_row, (label, frames) in zip(grid, rows, strict=True):
        for i, axes in enumerate(axes_row):
            axes.imshow(frames[i].numpy(), cmap="gray", vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.7")
        axes_row[0].set_ylabel(label, fontsize=9)
    energies = panel.subplots()
    for i in range(shown):
        name = for_figure(found.names[int(found.own[i])], 12)
        grid[0, i].set_title(f"{i + 1}: {name}", fontsize=9)
        verdict = "right" if found.retrieved[i] else "missed"
        grid[-1, i].set_xlabel(f"{verdict}\n{float(found.after[i]):.2f}", fontsize=8)
        color, marker, line = _STYLES[i]
        curve = way.energies[: int(way.steps[i]) + 1, i].numpy()
        fill = color if found.retrieved[i] else "white"
        energies.plot(curve, color=color, marker=marker, ls=line, ms=5, mfc=fill, label=str(i + 1))
    energies.set(xlabel="step", ylabel="energy (without unit)", title="Energy of each query (hollow: missed)")
    energies.title.set_fontsize(10)
    energies.xaxis.set_major_locator(MaxNLocator(integer=True))
    energies.legend(title="query", frameon=False, fontsize=8, ncols=2)
    _tidy(energies)
    figure.suptitle(
        f"{found.memory.kind} memory of {len(found.patterns)} images: {int(found.retrieved.sum())} of "
        f"{len(found.own)} retrieved; below, the cosine with the stored image",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)


def draw_study(cells: Sequence[Cell], path: Path) -> None:
    """Share retrieved against load, noise, and load with half the image hidden, for three sets of patterns.

    Curves that coincide are set apart sideways.

    Args:
        cells: All measurements.
        path: PNG to write.
    """
    sets = list(dict.fromkeys(cell.patterns for cell in cells))
    against = list(dict.fromkeys(cell.against for cell in cells))
    memories = [m for m in dict.fromkeys(cell.memory for cell in cells) if m != "nearest neighbour"]
    styles: dict[str, tuple[str, str, str]] = dict(zip(memories, _STYLES, strict=False))
    styles["nearest neighbour"] = ("black", "", "--")
    figure = Figure(figsize=(13, 10.2), layout="constrained")
    for axes_row, condition in zip(figure.subplots(len(against), len(sets), sharey=True), against, strict=True):
        for axes, patterns in zip(axes_row, sets, strict=True):
            here = [cell for cell in cells if (cell.patterns, cell.against) == (patterns, condition)]
            for i, memory in enumerate(dict.fromkeys(cell.memory for cell in here)):
                line = [cell for cell in here if cell.memory == memory]
                color, marker, ls = styles[memory]
                x = [cell.x + 0.006 * line[-1].x * i if condition == "noise" else cell.x * 1.035**i for cell in line]
                axes.errorbar(
                    x, [cell.mean for cell in line], [cell.std for cell in line],
                    color=color, marker=marker, ls=ls, ms=5, capsize=2, lw=1.4, elinewidth=0.8, label=memory,
                )  # fmt: skip
            axes.set(xlabel=here[0].label, ylim=(-0.04, 1.06), title=f"{patterns}: {here[0].setting}")
            axes.title.set_fontsize(10)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            if condition != "noise":
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200, 500]))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(ScalarFormatter())
            _tidy(axes)
        axes_row[0].set_ylabel("queries retrieved")
    handles = {}
    for axes in figure.axes:
        handles.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    order = [*memories, "nearest neighbour"]
    figure.legend([handles[m] for m in order], order, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
