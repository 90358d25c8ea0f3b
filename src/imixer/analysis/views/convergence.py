"""Write down and show the iterations of a run, or of several beside each other: `imixer analyze convergence`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.analysis.statistics import spread, spread_and_ends, spread_text
from imixer.escaping import for_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from imixer.analysis.convergence import BlockConvergence, Convergence
    from imixer.training.finished_run import FinishedRun

_LEGEND = (
    "Norm_a: ||x^(a+1) - x^a|| / sqrt(S C), x^0 being G(v). cos_a, the line below: of the angle between the two. "
    "rate: Norm_(a+1) / Norm_a, geometric mean, +- std over images"
)


# One run


def measure(
    finished: FinishedRun,
    *,
    images: int = 16,
    n_iter: int | None = None,
    seed: int = 0,
    data: str | None = None,
) -> Convergence:
    """Follow the iterations of a run on held-out images.

    Args:
        finished: The run.
        images: Held-out images to draw at random.
        n_iter: Iterations to look at. Default: as trained; of several runs 10, or one more than the largest of theirs.
        seed: Seed of the draw of images.
        data: Where the run's data lie now. Default: where they lay.
    """
    from imixer.analysis.convergence import convergence_along_depth
    from imixer.analysis.images import random_images

    chosen = random_images(finished, images, seed, data)
    return replace(convergence_along_depth(finished.model, chosen, n_iter), seed=seed)


def numbers(convergence: Convergence) -> dict[str, Any]:
    """Collect what is written as JSON."""
    return {
        "images": convergence.images,
        "seed": convergence.seed,
        "n_iter": convergence.n_iter,
        "trained_n_iter": convergence.trained,
        "blocks": [_block_numbers(block, spread) for block in convergence.blocks],
    }


def _block_numbers(block: BlockConvergence, summary: Callable[[Tensor], dict[str, float]]) -> dict[str, Any]:
    return {
        "block": block.block,
        "tokens": block.S,
        "channels": block.C,
        "width": block.D,
        "norm": [summary(norms) for norms in block.norms],
        "cosine": [summary(cosines) for cosines in block.cosines],
        "rate": None if block.rate is None else summary(block.rate),
    }


def table(convergence: Convergence) -> Table:
    """Make the table of the screen: a row per block, a column per iteration."""
    images, trained = convergence.images, _trained(convergence)
    made = _empty_table(f"Norm_a and cos_a, mean over {images} held-out images; {trained}", convergence.n_iter)
    for block in convergence.blocks:
        made.add_row(str(block.block), *_cells(block))
    return made


def _empty_table(title: str, n_iter: int, *first: str) -> Table:
    made = Table(title=title, title_justify="left")
    for name in (*first, "block", *(f"a = {a}" for a in range(n_iter)), "rate"):
        made.add_column(name, justify="left" if name in first else "right")
    return made


def _cells(block: BlockConvergence) -> list[str]:
    means = zip(block.norms.mean(1).tolist(), block.cosines.mean(1).tolist(), strict=True)
    cells = [f"{norm:.3g}\n{cosine:.5f}" for norm, cosine in means]
    return [*cells, "-" if block.rate is None else spread_text(block.rate)]


def show(convergence: Convergence, console: Console) -> None:
    """Print the table, and what its lines mean."""
    console.print(table(convergence))
    console.print(_LEGEND)


_OFFSET = 0.4  # of an iteration, over which the blocks are spread so that none hides another
_MOST_COLUMNS = 4  # panels of a row
_DASHES, _MARKERS = ("-", "--", "-.", ":"), "os^Dv"
_STOP: dict[str, Any] = dict(ls="none", ms=6, mec="black", mew=0.8, zorder=5)
_STOPS = "$a = n$: where the model stops"
_NORM = r"$\mathrm{Norm}_a = \|x^{a+1} - x^a\| \,/\, \sqrt{SC}$"
_COSINE = r"$\cos_a = \cos(x^{a+1}, x^a)$"


def draw(convergence: Convergence) -> Figure:
    """Draw Norm_a (above) and cos_a (below), a line per block: mean, and standard deviation as a band.

    Blocks stand side by side at each iteration. Beyond a dotted line are iterations that the model itself does not do.
    """
    from imixer.plotting import SINGLE, line_style, print_figure

    blocks = convergence.blocks
    with print_figure(SINGLE, 3.9) as figure:
        norms, cosines = figure.subplots(2, 1, sharex="col")
        for number, block in enumerate(blocks):
            offset = _OFFSET * ((number + 0.5) / len(blocks) - 0.5)
            color, ls, marker = line_style(number)
            style = dict(color=color, ls=ls, marker=marker, label=str(block.block))
            _draw_deviation(norms, offset, block.norms, **style)
            _draw_deviation(cosines, offset, block.cosines, **style)
        norms.set(title=_trained(convergence), yscale="log", ylabel=_NORM)
        cosines.set(xlabel="iteration $a$", ylabel=_COSINE, xlim=(-0.5, convergence.n_iter - 0.5))
        for axes in (norms, cosines):
            _style(axes, convergence.n_iter)
            if convergence.stop is not None:
                axes.axvline(convergence.stop - 0.5, color="0.3", lw=0.8, ls=":")
        handles, labels = norms.get_legend_handles_labels()
        columns = 1 + (len(labels) - 1) // 14
        figure.legend(handles, labels, title="block", loc="outside right center", frameon=False, ncols=columns)
    return figure


def _draw_deviation(axes: Axes, offset: float, values: Tensor, **style: Any) -> None:
    summaries = [spread(sample) for sample in values]
    x = [a + offset for a in range(len(summaries))]
    low, high = ([s["mean"] + sign * s["std"] for s in summaries] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.vlines(x, low, high, color=style["color"], lw=0.8)
    axes.plot(x, [s["mean"] for s in summaries], **style)


def _style(axes: Axes, n_iter: int) -> None:
    axes.set_xticks(range(0, n_iter, 1 + (n_iter - 1) // 8))
    axes.grid(alpha=0.3, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _trained(convergence: Convergence) -> str:
    return "trained to a tolerance" if convergence.trained is None else f"trained with n = {convergence.trained}"


# Several runs


def measure_several(
    runs: Sequence[FinishedRun],
    *,
    images: int = 16,
    n_iter: int | None = None,
    seed: int = 0,
    data: str | None = None,
) -> list[Convergence]:
    """Follow the iterations of several runs on the same images; see `compare_convergence` for arguments and errors."""
    from imixer.analysis.convergence import compare_convergence

    return compare_convergence(runs, images=images, n_iter=n_iter, seed=seed, data=data)


def comparison_numbers(models: Sequence[Convergence]) -> dict[str, Any]:
    """Collect all that the figures show, for JSON: over the images mean, std, and the ends of the bands."""
    return {
        "images": models[0].images,
        "seed": models[0].seed,
        "n_iter": models[0].n_iter,
        "models": [
            {
                "name": model.name,
                "trained_n_iter": model.trained,
                "blocks": [_block_numbers(block, spread_and_ends) for block in model.blocks],
            }
            for model in models
        ],
    }


def comparison_table(models: Sequence[Convergence]) -> Table:
    """Make the table of the screen: a row per block and model; a star stands at each model's own x^n."""
    first = models[0]
    made = _empty_table(f"Norm_a and cos_a, mean over the same {first.images} held-out images", first.n_iter, "model")
    for number, block in enumerate(first.blocks):
        for model in models:
            cells = _cells(model.blocks[number])
            if model.stop is not None:
                norm, _, cosine = cells[model.stop].partition("\n")
                cells[model.stop] = f"* {norm}\n{cosine}"
            made.add_row(model.name, str(block.block), *cells, end_section=model is models[-1])
    return made


def show_comparison(models: Sequence[Convergence], console: Console) -> None:
    """Print the table, and what its lines mean."""
    console.print(comparison_table(models))
    console.print(f"{_LEGEND}. *: at a = n, where the model itself stops")


def draw_first_block(models: Sequence[Convergence]) -> Figure:
    """Draw the first block of several models, as in the paper's Figure 3: Norm_a left, cos_a right.

    A curve per model: the mean over the images, with a band from the smallest to the largest. A large marker stands at
    a = n, the model's own result x^n.
    """
    from imixer.plotting import DOUBLE, print_figure

    with print_figure(DOUBLE, 2.7 + _legend_height(models)) as figure:
        norms, cosines = figure.subplots(1, 2)
        for axes, values, label in ((norms, _norms, _NORM), (cosines, _cosines, _COSINE)):
            _draw_models(axes, models, 0, values)
            axes.set(title=_block_name(models, 0), xlabel="iteration $a$", ylabel=label)
        norms.set_yscale("log")
        norms.minorticks_off()
        _explain(figure, models, range(1))
    return figure


def draw_norms(models: Sequence[Convergence]) -> Figure:
    """Draw Norm_a of all blocks of several models, as in the paper's Figure 5: a panel per block, a curve per model.

    Curves, bands and markers are those of `draw_first_block`.
    """
    return _draw_blocks(models, _norms, _NORM, "log")


def draw_cosines(models: Sequence[Convergence]) -> Figure:
    """Draw cos_a of all blocks of several models, as in the paper's Figure 6, otherwise as `draw_norms`."""
    return _draw_blocks(models, _cosines, _COSINE, "linear")


def _norms(block: BlockConvergence) -> Tensor:
    return block.norms


def _cosines(block: BlockConvergence) -> Tensor:
    return block.cosines


def _draw_blocks(
    models: Sequence[Convergence], values: Callable[[BlockConvergence], Tensor], label: str, scale: str
) -> Figure:
    from imixer.plotting import DOUBLE, SINGLE, print_figure

    blocks = len(models[0].blocks)
    rows = -(-blocks // _MOST_COLUMNS)
    columns = -(-blocks // rows)
    with print_figure(DOUBLE if columns > 1 else SINGLE, 1.0 + 1.55 * rows + _legend_height(models)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for number, axes in enumerate(grid.flat):
            if number >= blocks:
                axes.remove()
                continue
            _draw_models(axes, models, number, values)
            axes.set(title=_block_name(models, number), yscale=scale)
            axes.minorticks_off()
            if number + columns >= blocks:
                axes.set_xlabel("iteration $a$")
        figure.supylabel(label, fontsize=8)
        _explain(figure, models, range(blocks))
    return figure


def _draw_models(
    axes: Axes, models: Sequence[Convergence], number: int, values_of: Callable[[BlockConvergence], Tensor]
) -> None:
    for place, model in enumerate(models):
        style = _model_style(place, len(models))
        values = values_of(model.blocks[number])
        a = range(model.n_iter)
        axes.fill_between(a, values.amin(1), values.amax(1), color=style["color"], alpha=0.15, lw=0)
        axes.plot(a, values.mean(1), label=for_legend(model.name), **style)
        if model.stop is not None:
            own = float(values[model.stop].mean())
            axes.plot(model.stop, own, **style | _STOP)
    _style(axes, models[0].n_iter)
    axes.set_xlim(-0.4, models[0].n_iter - 0.6)


def _explain(figure: Figure, models: Sequence[Convergence], drawn: range) -> None:
    """Draw one legend for all panels, and write below what markers, bands and letters mean."""
    from matplotlib.lines import Line2D

    from imixer.plotting import SMALL

    handles: list[Line2D] = []
    for place, model in enumerate(models):
        handles.append(Line2D([], [], label=for_legend(model.name), **_model_style(place, len(models))))
    if any(model.stop is not None for model in models):
        handles.append(Line2D([], [], label=_STOPS, color="0.6", marker="o", **_STOP))
    columns = _legend_columns([str(handle.get_label()) for handle in handles], figure.get_figwidth())
    figure.legend(handles=handles, loc="outside upper center", frameon=False, ncols=columns, handlelength=2.8)
    lines = [f"Mean over {models[0].images} images; band: from the smallest to the largest.", _sizes(models, drawn)]
    figure.supxlabel("\n".join(lines), fontsize=SMALL)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Estimate how many entries of a legend fit side by side into a width in inches."""
    widths = [0.65 + 0.055 * len(label) for label in labels]
    return len(labels) if sum(widths) <= width else max(1, int(width / max(widths)))


def _legend_height(models: Sequence[Convergence]) -> float:
    """Estimate the inches that the legend takes beyond its first line."""
    from imixer.plotting import DOUBLE

    labels = [*(for_legend(model.name) for model in models), _STOPS]
    return 0.15 * (-(-len(labels) // _legend_columns(labels, DOUBLE)) - 1)


def _sizes(models: Sequence[Convergence], drawn: range) -> str:
    """Name the sizes of the blocks that are drawn, or say what they differ between."""
    sizes = [[(block.S, block.C, block.D) for block in (model.blocks[i] for i in drawn)] for model in models]
    between = {"block": any(len(set(each)) > 1 for each in sizes), "model": any(each != sizes[0] for each in sizes)}
    if any(between.values()):
        which = " and ".join(name for name, differs in between.items() if differs)
        return rf"$x^a$ has $D_S C$ entries; the norm is divided by $\sqrt{{SC}}$, of each {which}."
    S, C, D = sizes[0][0]
    return rf"$x^a$ has $D_S C = {D} \cdot {C}$ entries; the norm is divided by $\sqrt{{SC}} = \sqrt{{{S} \cdot {C}}}$."


def _model_style(place: int, models: int) -> dict[str, Any]:
    """Choose colour, line and marker of a model. The first are drawn wider, so that they show below the last."""
    from imixer.plotting import COLORS

    return dict(
        color=COLORS[place % len(COLORS)],
        ls=_DASHES[place % len(_DASHES)],
        marker=_MARKERS[place % len(_MARKERS)],
        lw=1.0 + min(0.35 * (models - 1 - place), 1.4),
        ms=2.4,
    )


def _block_name(models: Sequence[Convergence], number: int) -> str:
    return f"iMLP-{models[0].blocks[number].block}"


ANALYSIS = Analysis(
    name="convergence",
    summary="how far and in which direction each iteration moves the inner state",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("convergence", "Convergence", draw, for_print=True),),
    compare=Analysis(
        name="convergence_compared",
        summary="how far and in which direction each iteration moves the inner states of several models",
        measure=measure_several,
        numbers=comparison_numbers,
        show=show_comparison,
        drawings=(
            AnalysisFigure("convergence_first_block", "Convergence first block", draw_first_block, for_print=True),
            AnalysisFigure("convergence_norms", "Convergence norms", draw_norms, for_print=True),
            AnalysisFigure("convergence_cosines", "Convergence cosines", draw_cosines, for_print=True),
        ),
    ),
)
