"""`imixer analyze weights`: a run measured, written down and told on the screen."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.analysis.statistics import plus_minus, spread
from imixer.analysis.weights import TokenMixing, token_mixing
from imixer.analysis.weights_figure import SHOWN, draw_weights
from imixer.training.reload import Reloaded


def _measure(reloaded: Reloaded) -> tuple[TokenMixing, ...]:
    return token_mixing(reloaded.model)


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


ANALYSIS = Analysis("weights", _measure, _numbers, draw_weights, _show)
