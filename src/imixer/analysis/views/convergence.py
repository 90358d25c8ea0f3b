"""`imixer analyze convergence`: runs measured, written down and told on the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table
from torch import Tensor

from imixer.analysis.analyze import Analysis, write_numbers
from imixer.analysis.convergence import BlockConvergence, Convergence, convergence_along_depth
from imixer.analysis.images import random_images
from imixer.analysis.statistics import plus_minus, spread
from imixer.errors import InputError
from imixer.escaping import for_legend
from imixer.plotting import COLORS, DOUBLE, SINGLE, SMALL, drawn, line_style, print_figure
from imixer.training.finished_run import FinishedRun

_LEGEND = (
    "Norm_a: ||x^(a+1) - x^a|| / sqrt(S C), x^0 being G(v). cos_a, the line below: of the angle between the two. "
    "rate: Norm_(a+1) / Norm_a, geometric mean, +- std over images"
)


def _measure(
    finished: FinishedRun,
    *,
    images: int = 16,
    n_iter: int | None = None,
    seed: int = 0,
    data: str | None = None,
) -> Convergence:
    chosen = random_images(finished, images, seed, data)
    return replace(convergence_along_depth(finished.model, chosen, n_iter), seed=seed)


def _numbers(found: Convergence) -> dict[str, Any]:
    return {
        "images": found.images,
        "seed": found.seed,
        "n_iter": found.n_iter,
        "trained_n_iter": found.trained,
        "blocks": [_row(block, spread) for block in found.blocks],
    }


def _show(found: Convergence, console: Console) -> None:
    """One row per block, one column per iteration."""
    trained = "to a tolerance" if found.trained is None else f"with n = {found.trained}"
    table = _table(f"Norm_a and cos_a, mean over {found.images} held-out images; trained {trained}", found.n_iter)
    for block in found.blocks:
        table.add_row(str(block.block), *_cells(block))
    console.print(table)
    console.print(_LEGEND)


def _row(block: BlockConvergence, summary: Callable[[Tensor], dict[str, float]]) -> dict[str, Any]:
    return {
        "block": block.block,
        "norm": [summary(norms) for norms in block.norms],
        "cosine": [summary(cosines) for cosines in block.cosines],
        "rate": None if block.rate is None else summary(block.rate),
    }


def _table(title: str, n_iter: int, *first: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in (*first, "block", *(f"a = {a}" for a in range(n_iter)), "rate"):
        table.add_column(name, justify="left" if name in first else "right")
    return table


def _cells(block: BlockConvergence) -> list[str]:
    means = zip(block.norms.mean(1).tolist(), block.cosines.mean(1).tolist(), strict=True)
    cells = [f"{norm:.3g}\n{cosine:.5f}" for norm, cosine in means]
    return [*cells, "-" if block.rate is None else plus_minus(block.rate)]


_ASIDE = 0.4  # of an iteration, over which the blocks are spread so that none hides another
_MOST_COLUMNS = 4  # panels of a row
_DASHES, _MARKERS = ("-", "--", "-.", ":"), "os^Dv"
_STOP: dict[str, Any] = dict(ls="none", ms=6, mec="black", mew=0.8, zorder=5)
_STOPS = "$a = n$: where the model stops"
_NORM = r"$\mathrm{Norm}_a = \|x^{a+1} - x^a\| \,/\, \sqrt{SC}$"
_COSINE = r"$\cos_a = \cos(x^{a+1}, x^a)$"


def draw_convergence(found: Convergence, path: Path) -> None:
    """Draw one model: Norm_a above and cos_a below, a line per block: mean, and standard deviation as a band.

    Blocks stand side by side at each iteration. Beyond a dotted line are iterations that the model itself does not do.

    Args:
        found: What `convergence_along_depth` gave.
        path: PNG to write. The PDF lies beside it.
    """
    with print_figure(path, SINGLE, 3.9) as figure:
        norms, cosines = figure.subplots(2, 1, sharex="col")
        for number, block in enumerate(found.blocks):
            aside = _ASIDE * ((number + 0.5) / len(found.blocks) - 0.5)
            color, ls, marker = line_style(number)
            style = dict(color=color, ls=ls, marker=marker, label=str(block.block))
            _draw_deviation(norms, aside, block.norms, **style)
            _draw_deviation(cosines, aside, block.cosines, **style)
        norms.set(title=_trained(found), yscale="log", ylabel=_NORM)
        cosines.set(xlabel="iteration $a$", ylabel=_COSINE, xlim=(-0.5, found.n_iter - 0.5))
        for axes in (norms, cosines):
            _style(axes, found.n_iter)
            if found.stop is not None:
                axes.axvline(found.stop - 0.5, color="0.3", lw=0.8, ls=":")
        handles, labels = norms.get_legend_handles_labels()
        figure.legend(
            handles, labels, title="block", loc="outside right center", frameon=False, ncols=1 + (len(labels) - 1) // 14
        )


def draw_first_block(found: Sequence[Convergence], path: Path) -> None:
    """Draw the first block of several models, as in the paper's Figure 3: Norm_a left, cos_a right.

    A curve per model: the mean over the images, with a band from the smallest to the largest. A large marker stands at
    a = n, the model's own result x^n.

    Args:
        found: What `compare_convergence` gave.
        path: PNG to write. The PDF lies beside it.
    """
    with print_figure(path, DOUBLE, 2.7 + _legend_height(found)) as figure:
        norms, cosines = figure.subplots(1, 2)
        for axes, measure, label in ((norms, _norms, _NORM), (cosines, _cosines, _COSINE)):
            _draw_models(axes, found, 0, measure)
            axes.set(title=_block_name(found, 0), xlabel="iteration $a$", ylabel=label)
        norms.set_yscale("log")
        norms.minorticks_off()
        _explain(figure, found)


def draw_norms(found: Sequence[Convergence], path: Path) -> None:
    """Draw Norm_a of all blocks of several models, as in the paper's Figure 5: a panel per block, a curve per model.

    Curves, bands and markers as in `draw_first_block`.

    Args:
        found: What `compare_convergence` gave.
        path: PNG to write. The PDF lies beside it.
    """
    _draw_blocks(found, path, _norms, _NORM, "log")


def draw_cosines(found: Sequence[Convergence], path: Path) -> None:
    """Draw cos_a of all blocks of several models, as in the paper's Figure 6. Otherwise as `draw_norms`."""
    _draw_blocks(found, path, _cosines, _COSINE, "linear")


_Measure = Callable[[BlockConvergence], Tensor]


def _norms(block: BlockConvergence) -> Tensor:
    return block.norms


def _cosines(block: BlockConvergence) -> Tensor:
    return block.cosines


def _draw_blocks(found: Sequence[Convergence], path: Path, measure: _Measure, label: str, scale: str) -> None:
    blocks = len(found[0].blocks)
    rows = -(-blocks // _MOST_COLUMNS)
    columns = -(-blocks // rows)
    with print_figure(path, DOUBLE if columns > 1 else SINGLE, 1.0 + 1.55 * rows + _legend_height(found)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for number, axes in enumerate(grid.flat):
            if number >= blocks:
                axes.remove()
                continue
            _draw_models(axes, found, number, measure)
            axes.set(title=_block_name(found, number), yscale=scale)
            axes.minorticks_off()
            if number + columns >= blocks:
                axes.set_xlabel("iteration $a$")
        figure.supylabel(label, fontsize=8)
        _explain(figure, found)


def _draw_models(axes: Axes, found: Sequence[Convergence], number: int, measure: _Measure) -> None:
    for place, model in enumerate(found):
        style = _model_style(place, len(found))
        values = measure(model.blocks[number])
        a = range(model.n_iter)
        axes.fill_between(a, values.amin(1), values.amax(1), color=style["color"], alpha=0.15, lw=0)
        axes.plot(a, values.mean(1), label=for_legend(model.name), **style)
        if model.stop is not None:
            own = float(values[model.stop].mean())
            axes.plot(model.stop, own, **style | _STOP)
    _style(axes, found[0].n_iter)
    axes.set_xlim(-0.4, found[0].n_iter - 0.6)


def _explain(figure: Figure, found: Sequence[Convergence]) -> None:
    """One legend for all panels, and below what markers, bands and letters mean."""
    handles: list[Any] = []
    for place, model in enumerate(found):
        handles.append(Line2D([], [], label=for_legend(model.name), **_model_style(place, len(found))))
    if any(model.stop is not None for model in found):
        handles.append(Line2D([], [], label=_STOPS, color="0.6", marker="o", **_STOP))
    columns = _legend_columns([handle.get_label() for handle in handles], figure.get_figwidth())
    figure.legend(handles=handles, loc="outside upper center", frameon=False, ncols=columns, handlelength=2.8)
    lines = [f"Mean over {found[0].images} images; band: from the smallest to the largest.", _sizes(found)]
    figure.supxlabel("\n".join(lines), fontsize=SMALL)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """How many entries of a legend fit side by side into a width in inches."""
    widths = [0.65 + 0.055 * len(label) for label in labels]
    return len(labels) if sum(widths) <= width else max(1, int(width / max(widths)))


def _legend_height(found: Sequence[Convergence]) -> float:
    """Inches that the legend takes beyond its first line."""
    labels = [*(for_legend(model.name) for model in found), _STOPS]
    return 0.15 * (-(-len(labels) // _legend_columns(labels, DOUBLE)) - 1)


def _sizes(found: Sequence[Convergence]) -> str:
    sizes = {(model.S, model.C, model.D) for model in found}
    if len(sizes) > 1:
        return r"$x^a$ has $D_S C$ entries; the norm is divided by $\sqrt{SC}$, of each model."
    ((S, C, D),) = sizes
    return rf"$x^a$ has $D_S C = {D} \cdot {C}$ entries; the norm is divided by $\sqrt{{SC}} = \sqrt{{{S} \cdot {C}}}$."


def _model_style(place: int, models: int) -> dict[str, Any]:
    """Colour, line and marker of a model. The first are drawn wider, so that they show below the last."""
    return dict(
        color=COLORS[place % len(COLORS)],
        ls=_DASHES[place % len(_DASHES)],
        marker=_MARKERS[place % len(_MARKERS)],
        lw=1.0 + min(0.35 * (models - 1 - place), 1.4),
        ms=2.4,
    )


def _block_name(found: Sequence[Convergence], number: int) -> str:
    return f"iMLP-{found[0].blocks[number].block}"


def _style(axes: Axes, n_iter: int) -> None:
    axes.set_xticks(range(0, n_iter, 1 + (n_iter - 1) // 8))
    axes.grid(alpha=0.3, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_deviation(axes: Axes, aside: float, values: Tensor, **style: Any) -> None:
    found = [spread(sample) for sample in values]
    x = [a + aside for a in range(len(found))]
    low, high = ([s["mean"] + sign * s["std"] for s in found] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.vlines(x, low, high, color=style["color"], lw=0.8)
    axes.plot(x, [s["mean"] for s in found], **style)


def _trained(found: Convergence) -> str:
    return "trained to a tolerance" if found.trained is None else f"trained with n = {found.trained}"


ANALYSIS = Analysis("convergence", _measure, _numbers, draw_convergence, _show)


def write_comparison(found: Sequence[Convergence], folder: Path) -> list[Path]:
    """Write what `compare_convergence` found, over what was there.

    Args:
        found: One measurement per run.
        folder: Where to: `convergence_compared.json`, and as PNG and PDF `convergence_first_block`,
            `convergence_norms` and `convergence_cosines`. It is made if it does not exist.

    Returns:
        The files.

    Raises:
        InputError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: the folder {folder} cannot be made, {error.strerror}; give another") from error
    numbers = folder / "convergence_compared.json"
    write_numbers(comparison_numbers(found), numbers)
    figures = {"first_block": draw_first_block, "norms": draw_norms, "cosines": draw_cosines}
    files = [numbers]
    for name, draw in figures.items():
        picture = folder / f"convergence_{name}.png"
        if drawn(picture, partial(draw, found)):
            files += [picture, picture.with_suffix(".pdf")]
    return files


def comparison_numbers(found: Sequence[Convergence]) -> dict[str, Any]:
    """Collect all that the figures show, for JSON: over the images mean, std, and the ends of the bands."""
    return {
        "images": found[0].images,
        "seed": found[0].seed,
        "n_iter": found[0].n_iter,
        "models": [
            {
                "name": model.name,
                "trained_n_iter": model.trained,
                "tokens": model.S,
                "channels": model.C,
                "width": model.D,
                "blocks": [_row(block, _ends) for block in model.blocks],
            }
            for model in found
        ],
    }


def show_comparison(found: Sequence[Convergence], console: Console) -> None:
    """Print one row per block and model, one column per iteration; a star is at each model's own x^n."""
    first = found[0]
    table = _table(f"Norm_a and cos_a, mean over the same {first.images} held-out images", first.n_iter, "model")
    for number, block in enumerate(first.blocks):
        for model in found:
            cells = _cells(model.blocks[number])
            if model.stop is not None:
                norm, _, cosine = cells[model.stop].partition("\n")
                cells[model.stop] = f"* {norm}\n{cosine}"
            table.add_row(model.name, str(block.block), *cells, end_section=model is found[-1])
    console.print(table)
    console.print(f"{_LEGEND}. *: at a = n, where the model itself stops")


def _ends(values: Tensor) -> dict[str, float]:
    return spread(values) | {"min": float(values.min()), "max": float(values.max())}
