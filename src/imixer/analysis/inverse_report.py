"""Round trips through a run's blocks, on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from imixer.analysis.inverse import BlockInverse
from imixer.analysis.statistics import plus_minus, spread


def report_inverse(found: Sequence[BlockInverse], console: Console) -> None:
    """One row per block.

    Args:
        found: What `inverse_along_depth` gave.
        console: Where to print.
    """
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
