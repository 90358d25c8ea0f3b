"""Token mixing matrices as pictures over the token grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imixer.analysis.print_figure import DOUBLE, draw_signed, explain_signed, label_row, print_figure
from imixer.analysis.weights import TokenMixing

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
