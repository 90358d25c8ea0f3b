"""The token mixing matrices of a run, on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from imixer.analysis.statistics import plus_minus
from imixer.analysis.weights import TokenMixing
from imixer.analysis.weights_figure import SHOWN


def report_weights(found: Sequence[TokenMixing], console: Console) -> None:
    """One row per block.

    Args:
        found: What `token_mixing` gave.
        console: Where to print.
    """
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
