"""`imixer analyze inverse`: a run measured, written down and told on the screen."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.analysis.images import held_out_images
from imixer.analysis.inverse import BlockInverse, inverse_along_depth
from imixer.analysis.inverse_figure import draw_inverse
from imixer.analysis.statistics import plus_minus, spread
from imixer.training.reload import Reloaded


def _measure(reloaded: Reloaded, *, images: int = 64, data: str | None = None) -> list[BlockInverse]:
    return inverse_along_depth(reloaded.model, held_out_images(reloaded, images, data))


def _numbers(found: Sequence[BlockInverse]) -> dict[str, Any]:
    return {"images": len(found[0].error_run), "blocks": [_row(block) for block in found]}


def _show(found: Sequence[BlockInverse], console: Console) -> None:
    """One row per block."""
    table = Table(
        title=f"Back from x to G(v) and v: relative error, mean +- std over {len(found[0].error_run)} held-out images",
        title_justify="left",
    )
    table.add_column("block", justify="right")
    for name in ("G(v), run's x", "G(v), fixed point", "v, run's x", "v, fixed point"):
        table.add_column(name, justify="right")
    for name in ("rank of G / tokens", "condition of G", "of v that G sees"):
        table.add_column(name, justify="right")
    for b in found:
        table.add_row(
            str(b.block),
            *(plus_minus(e, 2) for e in (b.error_run, b.error_solved, b.error_v_run, b.error_v_solved)),
            f"{b.rank} / {b.tokens}",
            f"{b.condition:.3g}",
            f"{100 * float(b.visible.mean()):.1f} +- {100 * spread(b.visible)['std']:.1f} %",
        )
    console.print(table)
    console.print(
        "run's x: as the run computes it, so that the error is the truncation of its iterations, x_(n+1) - x_n. fixed "
        "point: solved to 1e-13 in float64. v: against its projection onto what G sees, whose share of ||v||^2 is in "
        "the last column; an error of G(v) grows by up to the condition of G"
    )


def _row(block: BlockInverse) -> dict[str, Any]:
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
    }


ANALYSIS = Analysis("inverse", _measure, _numbers, draw_inverse, _show)
