"""`imixer analyze energy`: a run measured, written down and told on the screen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from rich.console import Console
from rich.table import Table

from imixer.analysis.energy import MixingEnergy, energy_along_depth
from imixer.analysis.energy_figure import draw_energy
from imixer.analysis.images import held_out_images
from imixer.analysis.record import record
from imixer.analysis.statistics import spread
from imixer.errors import InputError
from imixer.training.reload import reload


def analyze_energy(
    path: str, *, images: int = 64, data: Optional[str] = None, device: str = "auto"
) -> Tuple[List[MixingEnergy], Path]:
    """Measure a run on its held-out images and write `energy.json` and `energy.png` into its `analysis` folder.

    Args:
        path: The run's directory.
        images: Held-out images, evenly spread.
        data: Where its data lie now. Default: where they lay.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The measurements and the folder.

    Raises:
        InputError: If run or data are not there, or the model is no mixer whose networks are known.
    """
    reloaded = reload(path, device)
    batch = held_out_images(reloaded, images, data)
    try:
        found = energy_along_depth(reloaded.model, batch)
    except (ValueError, AttributeError) as error:
        raise InputError(f"the model of {path} is no mixer with a known Hopfield network: {error}") from error
    rows: List[Dict[str, Any]] = [
        {
            "block": m.block,
            "mixing": m.mixing,
            "asymmetry": {name: round(value, 6) for name, value in m.asymmetry.items()},
            "energy_before": spread(m.before),
            "energy_after": spread(m.after),
            "change": spread(m.after - m.before),
            "share_falling": m.falls,
            "unrest": m.unrest,
            "verdict": m.verdict,
            "obstacles": list(m.obstacles),
        }
        for m in found
    ]
    written = {"images": len(batch), "mixings": rows}
    return found, record(reloaded.run, "energy", written, lambda path: draw_energy(found, path))


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
