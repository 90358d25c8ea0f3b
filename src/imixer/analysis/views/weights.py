"""`imixer analyze weights`: a run measured, written down and told on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.analysis.plotting import draw_signed, explain_signed, label_row
from imixer.analysis.statistics import plus_minus, spread
from imixer.analysis.weights import TokenMixing, token_mixing
from imixer.plotting import DOUBLE, print_figure
from imixer.training.finished_run import FinishedRun


def _measure(finished: FinishedRun) -> tuple[TokenMixing, ...]:
    return token_mixing(finished.model)


def _numbers(found: Sequence[TokenMixing]) -> dict[str, Any]:
    return {"grid": list(found[0].reads.shape[1:]), "blocks": [_row(mixing) for mixing in found]}


def _show(found: Sequence[TokenMixing], console: Console) -> None:
    """One row per block."""
    height, width = found[0].reads.shape[1:]
    table = Table(title=f"Token mixing, {height} x {width} tokens", title_justify="left")
    for name in ("block", "neurons", "effective", f"energy of the strongest {SHOWN}", "cosine of read and written"):
        table.add_column(name, justify="right")
    for mixing in found:
        table.add_row(
            str(mixing.block),
            str(len(mixing.energies)),
            f"{mixing.effective:.1f}",
            f"{mixing.share(SHOWN):.1%}",
            plus_minus(mixing.cosines),
        )
    console.print(table)
    console.print(
        "energy of a neuron: ||what it reads||^2 ||what it writes||^2; effective: as many equal neurons; cosine: 1 for "
        "a symmetric coupling, 0 for independent ones"
    )


def _row(mixing: TokenMixing) -> dict[str, Any]:
    return {
        "block": mixing.block,
        "neurons": len(mixing.energies),
        "effective_neurons": mixing.effective,
        "strongest": mixing.strongest(SHOWN).tolist(),
        "share_of_strongest": mixing.share(SHOWN),
        "cosine_of_read_and_write": spread(mixing.cosines),
    }


SHOWN = 8  # hidden neurons of a block
_BLOCKS = 12  # as many as fit on a page


def draw_weights(found: Sequence[TokenMixing], path: Path) -> None:
    """A row per block: what its neurons of most energy read, and what the same neurons write.

    Each half of a row has one scale, symmetric about 0. Of more than 12 blocks, 12 are drawn, evenly spread.

    Args:
        found: What `token_mixing` gave.
        path: PNG to write. The PDF lies beside it.
    """
    rows = min(len(found), _BLOCKS)
    shown = [found[row * (len(found) - 1) // max(rows - 1, 1)] for row in range(rows)]
    height, width = found[0].reads.shape[1:]
    neurons = min(SHOWN, len(found[0].reads))
    side = (DOUBLE - 1.3) / (2 * neurons)
    with print_figure(path, DOUBLE, len(shown) * (side * min(height / width, 2.0) + 0.06) + 0.6) as figure:
        halves: Any = figure.subfigures(1, 2)
        for half, title in zip(
            halves, ("read: rows of the first matrix", "written by the same neurons: columns of the last"), strict=True
        ):
            half.suptitle(title, fontsize=8)
        grids = [half.subplots(len(shown), neurons, squeeze=False) for half in halves]
        for row, mixing in enumerate(shown):
            chosen = mixing.strongest(neurons)
            for grid, patterns in zip(grids, (mixing.reads[chosen], mixing.writes[chosen]), strict=True):
                end = float(patterns.abs().max())
                for axes, pattern in zip(grid[row], patterns, strict=True):
                    draw_signed(axes, pattern, end)
                label_row(grid[row, 0], f"block {mixing.block}\n±{end:.2g}")
        explain_signed(figure)


ANALYSIS = Analysis("weights", _measure, _numbers, draw_weights, _show)
