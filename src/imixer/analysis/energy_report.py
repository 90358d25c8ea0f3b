"""`imixer analyze energy`: a run measured, written down and told on the screen."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.analysis.energy import MixingEnergy, energy_along_depth
from imixer.analysis.energy_figure import draw_energy
from imixer.analysis.images import held_out_images
from imixer.analysis.statistics import spread
from imixer.analysis.verdicts import styled
from imixer.errors import InputError
from imixer.training.reload import Reloaded


def _measure(reloaded: Reloaded, *, images: int = 64, data: str | None = None) -> list[MixingEnergy]:
    batch = held_out_images(reloaded, images, data)
    try:
        return energy_along_depth(reloaded.model, batch)
    except (ValueError, AttributeError) as error:
        path = reloaded.run.path
        raise InputError(f"the model of {path} is no mixer with a known Hopfield network: {error}") from error


def _numbers(found: Sequence[MixingEnergy]) -> dict[str, Any]:
    return {"images": len(found[0].before), "mixings": [_row(mixing) for mixing in found]}


def _row(mixing: MixingEnergy) -> dict[str, Any]:
    return {
        "block": mixing.block,
        "mixing": mixing.mixing,
        "asymmetry": {name: round(value, 6) for name, value in mixing.asymmetry.items()},
        "energy_before": spread(mixing.before),
        "energy_after": spread(mixing.after),
        "change": spread(mixing.after - mixing.before),
        "share_falling": mixing.falls,
        "unrest": mixing.unrest,
        "verdict": mixing.verdict,
        "obstacles": list(mixing.obstacles),
    }


def _show(found: Sequence[MixingEnergy], console: Console) -> None:
    """One row per mixing step."""
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
            styled(m.verdict),
        )
    console.print(table)
    reasons = sorted({obstacle.split(": ", 1)[1] for m in found for obstacle in m.obstacles})
    if reasons:
        console.print(f"descent is not guaranteed: {'; '.join(reasons)}")


ANALYSIS = Analysis("energy", _measure, _numbers, draw_energy, _show)
