"""`imixer analyze energy`: a run measured, written down and told on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no display, no global state
from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.analysis.energy import MixingEnergy, energy_along_depth
from imixer.analysis.images import held_out_images
from imixer.analysis.plotting import draw_spread, style_depth_axes
from imixer.analysis.statistics import spread
from imixer.errors import InputError
from imixer.plotting import BLUE, ORANGE
from imixer.tables import verdict_markup
from imixer.training.finished_run import FinishedRun


def _measure(finished: FinishedRun, *, images: int = 64, data: str | None = None) -> list[MixingEnergy]:
    batch = held_out_images(finished, images, data)
    try:
        return energy_along_depth(finished.model, batch)
    except (ValueError, AttributeError) as error:
        path = finished.directory.path
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
        "share_falling": mixing.energy_decreases,
        "unrest": mixing.rest_residual,
        "verdict": mixing.verdict,
        "obstacles": list(mixing.violated_conditions),
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
            f"{m.energy_decreases:.0%}",
            verdict_markup(m.verdict),
        )
    console.print(table)
    reasons = sorted({obstacle.split(": ", 1)[1] for m in found for obstacle in m.violated_conditions})
    if reasons:
        console.print(f"descent is not guaranteed: {'; '.join(reasons)}")


_COLORS = {"tokens": BLUE, "channels": ORANGE}
_MARKERS = ("o", "s", "^", "D", "v")


def draw_energy(found: Sequence[MixingEnergy], path: Path) -> None:
    """Left: by how much each mixing step changes its own energy. Right: how asymmetric the couplings are.

    Args:
        found: What `energy_along_depth` gave.
        path: PNG to write.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    changes, asymmetries = figure.subplots(1, 2)
    for mixing, color in _COLORS.items():
        steps = [m for m in found if m.mixing == mixing]
        blocks = [m.block for m in steps]
        change = [m.after - m.before for m in steps]
        offset = [b + (-0.06 if mixing == "tokens" else 0.06) for b in blocks]
        draw_spread(changes, offset, change, color=color, marker="o", label=f"mixing of {mixing}")
        for name, marker in zip(steps[0].asymmetry, _MARKERS, strict=False):
            values = [m.asymmetry[name] for m in steps]
            ls = "-" if marker == "o" else "--"
            asymmetries.plot(blocks, values, color=color, marker=marker, ls=ls, label=f"{mixing}, {name}")
    changes.axhline(0, color="0.5", lw=0.8)
    images = len(found[0].before)
    changes.set(ylabel="energy after - before, per neuron", title=f"Change of energy, {images} images, mean and std")
    asymmetries.axhline(0.5**0.5, color="0.5", lw=0.8, ls=":")
    asymmetries.annotate("dotted: independent matrices", (0, 0.56), fontsize=8, color="0.4")
    asymmetries.set(
        ylim=(0, 1),
        ylabel=r"$\|\xi - \tilde{\xi}^T\| \,/\, (\|\xi\| + \|\tilde{\xi}\|)$",
        title="Asymmetry of the couplings",
    )
    for axes in (changes, asymmetries):
        style_depth_axes(axes)
    figure.savefig(path, dpi=120)


ANALYSIS = Analysis("energy", _measure, _numbers, draw_energy, _show)
