"""Write down and show what a run's inverses lose: `imixer analyze inverse`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.analysis.statistics import spread, spread_text
from imixer.tables import plus_minus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imixer.analysis.inverse import BlockInverse
    from imixer.training.finished_run import FinishedRun


def measure(finished: FinishedRun, *, images: int = 64, data: str | None = None) -> list[BlockInverse]:
    """Go back from the inner state of every block of a run.

    Args:
        finished: The run.
        images: Held-out images to measure on, evenly spread.
        data: Where the run's data lie now. Default: where they lay.
    """
    from imixer.analysis.images import held_out_images
    from imixer.analysis.inverse import inverse_along_depth

    return inverse_along_depth(finished.model, held_out_images(finished, images, data))


def numbers(blocks: Sequence[BlockInverse]) -> dict[str, Any]:
    """Collect what is written as JSON."""
    return {"images": len(blocks[0].error_run), "blocks": [_block_numbers(block) for block in blocks]}


def _block_numbers(block: BlockInverse) -> dict[str, Any]:
    return {
        "block": block.block,
        "error_of_G_from_the_runs_x": spread(block.error_run),
        "error_of_G_from_the_fixed_point": spread(block.error_solved),
        "error_of_v_from_the_runs_x": spread(block.error_v_run),
        "error_of_v_from_the_fixed_point": spread(block.error_v_solved),
        "rank": block.rank,
        "tokens": block.tokens,
        "condition": block.condition,
        "visible_share": spread(block.visible),
        "fixed_points_found": float(block.converged.double().mean()),
    }


def table(blocks: Sequence[BlockInverse]) -> Table:
    """Make the table of the screen, a row per block."""
    made = Table(
        title=f"Back from x to G(v) and v: relative error, mean +- std over {len(blocks[0].error_run)} held-out images",
        title_justify="left",
    )
    for name in ("block", "G(v), run's x", "G(v), fixed point", "v, run's x", "v, fixed point"):
        made.add_column(name, justify="right")
    for name in ("rank of G / tokens", "condition of G", "of v that G sees"):
        made.add_column(name, justify="right")
    for b in blocks:
        visible = spread(100 * b.visible)
        made.add_row(
            str(b.block),
            *(spread_text(errors, 2) for errors in (b.error_run, b.error_solved, b.error_v_run, b.error_v_solved)),
            f"{b.rank} / {b.tokens}",
            f"{b.condition:.3g}",
            f"{plus_minus(visible['mean'], visible['std'], 1)} %",
        )
    return made


def show(blocks: Sequence[BlockInverse], console: Console) -> None:
    """Print the table, what its columns mean, and where no fixed point was found."""
    console.print(table(blocks))
    console.print(
        "run's x: as the run computes it, so that the error is the truncation of its iterations, x_(n+1) - x_n. fixed "
        "point: solved to 1e-13 in float64. v: against its projection onto what G sees, whose share of ||v||^2 is in "
        "the last column; an error of G(v) grows by up to the condition of G"
    )
    for block in blocks:
        if lost := int((~block.converged).sum()):
            console.print(
                f"block {block.block}: no fixed point found for {lost} of {len(block.converged)} images; their errors "
                "are from where the search ended"
            )


def draw(blocks: Sequence[BlockInverse]) -> Figure:
    """Draw the errors of G(v) and of what G sees of v, from the run's inner state and from the fixed point."""
    from matplotlib.figure import Figure

    from imixer.analysis.plotting import draw_spread, style_depth_axes
    from imixer.plotting import BLUE, ORANGE

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    numbers = [block.block for block in blocks]
    for label, errors, color, marker, ls in (
        ("v, from the run's x", [b.error_v_run for b in blocks], ORANGE, "s", "-"),
        ("G(v), from the run's x", [b.error_run for b in blocks], BLUE, "o", "-"),
        ("v, from the fixed point", [b.error_v_solved for b in blocks], ORANGE, "s", "--"),
        ("G(v), from the fixed point", [b.error_solved for b in blocks], BLUE, "o", "--"),
    ):
        draw_spread(axes, numbers, errors, color=color, marker=marker, ls=ls, label=label)
    axes.set(ylabel="relative error", yscale="log")
    axes.set_title(f"Back from x, {len(blocks[0].error_run)} images, mean and std")
    style_depth_axes(axes)
    return figure


ANALYSIS = Analysis(
    name="inverse",
    summary="what of each iMLP's input can be recovered from its inner state",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("inverse", "Inverse", draw),),
)
