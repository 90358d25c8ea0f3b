"""`imixer analyze weights`: a run measured, written down and told on the screen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, Tuple

from rich.console import Console
from rich.table import Table

from imixer.analysis.record import record
from imixer.analysis.statistics import plus_minus, spread
from imixer.analysis.weights import TokenMixing, weights_of
from imixer.analysis.weights_figure import SHOWN, draw_weights
from imixer.training.run_directory import open_run


def analyze_weights(path: str, *, device: str = "auto") -> Tuple[Tuple[TokenMixing, ...], Path]:
    """`weights_of` a run, written as `weights.json`, `.png` and `.pdf` into its `analysis` folder.

    Args:
        path: The run's directory.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The matrices and the folder.

    Raises:
        InputError: As there.
    """
    found = weights_of(path, device=device)
    written = {"grid": list(found[0].reads.shape[1:]), "blocks": [_row(mixing) for mixing in found]}
    return found, record(open_run(path), "weights", written, lambda path: draw_weights(found, path))


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


def _row(mixing: TokenMixing) -> Dict[str, Any]:
    return {
        "block": mixing.block,
        "neurons": len(mixing.energies),
        "effective_neurons": mixing.effective,
        "strongest": mixing.strongest(SHOWN).tolist(),
        "share_of_strongest": mixing.share(SHOWN),
        "cosine_of_read_and_write": spread(mixing.cosines),
    }
