"""`imixer analyze inverse`: a run measured, written down and told on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no display, no global state
from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.analysis.images import held_out_images
from imixer.analysis.inverse import BlockInverse, inverse_along_depth
from imixer.analysis.plotting import draw_spread, style_depth_axes
from imixer.analysis.statistics import plus_minus, spread
from imixer.plotting import BLUE, ORANGE
from imixer.training.finished_run import FinishedRun


def _measure(finished: FinishedRun, *, images: int = 64, data: str | None = None) -> list[BlockInverse]:
    return inverse_along_depth(finished.model, held_out_images(finished, images, data))


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


def draw_inverse(found: Sequence[BlockInverse], path: Path) -> None:
    """Relative errors of G(v) and of what G sees of v, from the run's inner state and from the fixed point.

    Args:
        found: What `inverse_along_depth` gave.
        path: PNG to write.
    """
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    blocks = [block.block for block in found]
    for label, errors, color, marker, ls in (
        ("v, from the run's x", [b.error_v_run for b in found], ORANGE, "s", "-"),
        ("G(v), from the run's x", [b.error_run for b in found], BLUE, "o", "-"),
        ("v, from the fixed point", [b.error_v_solved for b in found], ORANGE, "s", "--"),
        ("G(v), from the fixed point", [b.error_solved for b in found], BLUE, "o", "--"),
    ):
        draw_spread(axes, blocks, errors, color=color, marker=marker, ls=ls, label=label)
    axes.set(ylabel="relative error", yscale="log")
    axes.set_title(f"Back from x, {len(found[0].error_run)} images, mean and std")
    style_depth_axes(axes)
    figure.savefig(path, dpi=120)


ANALYSIS = Analysis("inverse", _measure, _numbers, draw_inverse, _show)
