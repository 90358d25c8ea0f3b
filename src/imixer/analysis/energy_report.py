"""Measurements on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from imixer.analysis.energy import MixingEnergy

STYLES = {"guaranteed": "green", "observed": "cyan", "violated": "yellow"}


def report_energy(found: Sequence[MixingEnergy], console: Console) -> None:
    """One row per mixing step.

    Args:
        found: What `energy_along_depth` gave.
        console: Where to print.
    """
    images = len(found[0].before)
    table = Table(title=f"Energy per neuron, mean +- std over {images} held-out images", title_justify="left")
    for name in ("block", "mixing", "asymmetry of the couplings", "energy before", "after", "falls for", "descent"):
        table.add_column(name, justify="right" if "energy" in name or name in ("after", "falls for") else "left")
    for m in found:
        table.add_row(
            str(m.block),
            m.mixing,
            "  ".join(f"{name} {value:.2f}" for name, value in m.asymmetry.items()),
            *(f"{e.mean():.4g} +- {e.std(correction=min(1, len(e) - 1)):.2g}" for e in (m.before, m.after)),
            f"{m.falls:.0%}",
            f"[{STYLES[m.verdict]}]{m.verdict}[/]",
        )
    console.print(table)
    reasons = sorted({obstacle.split(": ", 1)[1] for m in found for obstacle in m.obstacles})
    if reasons:
        console.print(f"descent is not guaranteed: {'; '.join(reasons)}")
