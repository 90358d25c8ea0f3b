"""Write down and show the token mixing matrices of a run: `imixer analyze weights`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.analysis.statistics import spread, spread_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imixer.analysis.weights import TokenMixing
    from imixer.training.finished_run import FinishedRun

SHOWN = 8  # hidden neurons of a block
_BLOCKS = 12  # as many as fit on a page


def measure(finished: FinishedRun) -> tuple[TokenMixing, ...]:
    """Take the token mixing matrices of a run.

    Args:
        finished: The run.
    """
    from imixer.analysis.weights import token_mixing_matrices

    return token_mixing_matrices(finished.model)


def numbers(mixings: Sequence[TokenMixing]) -> dict[str, Any]:
    """Collect what is written as JSON."""
    return {"blocks": [_block_numbers(mixing) for mixing in mixings]}


def _block_numbers(mixing: TokenMixing) -> dict[str, Any]:
    return {
        "block": mixing.block,
        "grid": list(mixing.reads.shape[1:]),
        "neurons": len(mixing.energies),
        "effective_neurons": mixing.effective,
        "strongest": mixing.strongest(SHOWN).tolist(),
        "share_of_strongest": mixing.energy_share(SHOWN),
        "cosine_of_read_and_write": spread(mixing.cosines),
    }


def table(mixings: Sequence[TokenMixing]) -> Table:
    """Make the table of the screen, a row per block."""
    grids = dict.fromkeys(" x ".join(map(str, mixing.reads.shape[1:])) for mixing in mixings)  # one of each stage
    made = Table(title=f"Token mixing, {', '.join(grids)} tokens", title_justify="left")
    for name in ("block", "neurons", "effective", f"energy of the strongest {SHOWN}", "cosine of read and written"):
        made.add_column(name, justify="right")
    for mixing in mixings:
        made.add_row(
            str(mixing.block),
            str(len(mixing.energies)),
            f"{mixing.effective:.1f}",
            f"{mixing.energy_share(SHOWN):.1%}",
            spread_text(mixing.cosines),
        )
    return made


def show(mixings: Sequence[TokenMixing], console: Console) -> None:
    """Print the table, and what its columns mean."""
    console.print(table(mixings))
    console.print(
        "energy of a neuron: ||what it reads||^2 ||what it writes||^2; effective: as many equal neurons; cosine: 1 for "
        "a symmetric coupling, 0 for independent ones"
    )


def draw(mixings: Sequence[TokenMixing]) -> Figure:
    """Draw a row per block: what its neurons of most energy read, and what the same neurons write.

    Each half of a row has one scale, symmetric about 0. Of more than 12 blocks, 12 are drawn, evenly spread. Places of
    a block that has fewer neurons than others stay empty.
    """
    from imixer.analysis.plotting import draw_signed, explain_signed, label_row
    from imixer.plotting import DOUBLE, print_figure

    rows = min(len(mixings), _BLOCKS)
    shown = [mixings[row * (len(mixings) - 1) // max(rows - 1, 1)] for row in range(rows)]
    neurons = min(SHOWN, max(len(mixing.reads) for mixing in shown))
    side = (DOUBLE - 1.3) / (2 * neurons)
    heights = [side * min(mixing.reads.shape[1] / mixing.reads.shape[2], 2.0) + 0.06 for mixing in shown]
    with print_figure(DOUBLE, sum(heights) + 0.6) as figure:
        halves: Any = figure.subfigures(1, 2)
        for half, title in zip(
            halves, ("read: rows of the first matrix", "written by the same neurons: columns of the last"), strict=True
        ):
            half.suptitle(title, fontsize=8)
        grids = [half.subplots(len(shown), neurons, squeeze=False, height_ratios=heights) for half in halves]
        for row, mixing in enumerate(shown):
            chosen = mixing.strongest(neurons)
            for grid, patterns in zip(grids, (mixing.reads[chosen], mixing.writes[chosen]), strict=True):
                end = float(patterns.abs().max())
                for axes, pattern in zip(grid[row], patterns, strict=False):
                    draw_signed(axes, pattern, end)
                for axes in grid[row, len(patterns) :]:
                    axes.remove()
                label_row(grid[row, 0], f"block {mixing.block}\n±{end:.2g}")
        explain_signed(figure)
    return figure


ANALYSIS = Analysis(
    name="weights",
    summary="token mixing matrices as pictures over the token grid",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("weights", "Weights", draw, for_print=True),),
)
