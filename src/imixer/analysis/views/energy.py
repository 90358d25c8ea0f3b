"""Write down and show the energies of a run: `imixer analyze energy`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.analysis.statistics import spread, spread_text
from imixer.errors import InputError
from imixer.tables import verdict_markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imixer.analysis.energy import MixingEnergy
    from imixer.training.finished_run import FinishedRun


def measure(finished: FinishedRun, *, images: int = 64, data: str | None = None) -> list[MixingEnergy]:
    """Follow held-out images through the mixing steps of a run, trained and untrained.

    Args:
        finished: The run.
        images: Held-out images to measure on, evenly spread.
        data: Where the run's data lie now. Default: where they lay.
    """
    from timm.models.mlp_mixer import MlpMixer

    from imixer.analysis.energy import energy_along_depth
    from imixer.analysis.images import held_out_images

    model, name = finished.model, finished.name
    if not isinstance(model, MlpMixer):
        raise InputError(f"the model of {name} is no mixer with a known Hopfield network: it is {type(model).__name__}")
    batch = held_out_images(finished, images, data)
    try:
        untrained = energy_along_depth(cast(MlpMixer, finished.untrained()), batch)
        trained = energy_along_depth(model, batch)
        return [replace(step, untrained=before) for step, before in zip(trained, untrained, strict=True)]
    except ValueError as error:
        raise InputError(f"the model of {name} is no mixer with a known Hopfield network: {error}") from error


def numbers(energies: Sequence[MixingEnergy]) -> dict[str, Any]:
    """Collect what is written as JSON."""
    return {"images": len(energies[0].before), "mixings": [_mixing_numbers(mixing) for mixing in energies]}


def _mixing_numbers(mixing: MixingEnergy) -> dict[str, Any]:
    compared = {} if mixing.untrained is None else {"untrained": _mixing_numbers(mixing.untrained)}
    return {
        "block": mixing.block,
        "mixing": mixing.mixing,
        "asymmetry": {name: round(value, 6) for name, value in mixing.asymmetry.items()},
        "energy_before": spread(mixing.before),
        "energy_after": spread(mixing.after),
        "change": spread(mixing.change),
        "share_falling": mixing.share_falling,
        "rest_residual": mixing.rest_residual,
        "verdict": mixing.verdict,
        "violated_conditions": list(mixing.violated_conditions),
        **compared,
    }


def table(energies: Sequence[MixingEnergy]) -> Table:
    """Make the table of the screen, a row per mixing step, with the change before any training beside it."""
    images = len(energies[0].before)
    made = Table(title=f"Energy per neuron, mean +- std over {images} held-out images", title_justify="left")
    numeric = ("energy before", "after", "change", "change untrained", "falls for")
    for name in ("block", "mixing", "asymmetry of the couplings", *numeric, "descent"):
        made.add_column(name, justify="right" if name in numeric else "left")
    for mixing in energies:
        made.add_row(
            str(mixing.block),
            mixing.mixing,
            "  ".join(f"{name} {value:.2f}" for name, value in mixing.asymmetry.items()),
            spread_text(mixing.before, 4),
            spread_text(mixing.after, 4),
            spread_text(mixing.change, 4),
            "" if mixing.untrained is None else spread_text(mixing.untrained.change, 4),
            f"{mixing.share_falling:.0%}",
            verdict_markup(mixing.verdict),
        )
    return made


def show(energies: Sequence[MixingEnergy], console: Console) -> None:
    """Print the table, and what stands against a guarantee of descent."""
    console.print(table(energies))
    reasons = sorted({each.split(": ", 1)[1] for mixing in energies for each in mixing.violated_conditions})
    if reasons:
        console.print(f"descent is not guaranteed: {'; '.join(reasons)}")


def draw(energies: Sequence[MixingEnergy]) -> Figure:
    """Draw by how much each mixing step changes its own energy (left), and how asymmetric couplings are (right)."""
    from matplotlib.figure import Figure

    from imixer.analysis.plotting import draw_spread, style_depth_axes
    from imixer.plotting import BLUE, ORANGE

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    changes, asymmetries = figure.subplots(1, 2)
    for mixing, color, offset in (("tokens", BLUE, -0.06), ("channels", ORANGE, 0.06)):
        steps = [step for step in energies if step.mixing == mixing]
        blocks = [step.block for step in steps]
        change = [step.change for step in steps]
        beside = [block + offset for block in blocks]
        draw_spread(changes, beside, change, color=color, marker="o", label=f"mixing of {mixing}")
        untrained = [(step.block, float(step.untrained.change.mean())) for step in steps if step.untrained is not None]
        if untrained:
            changes.plot(*zip(*untrained, strict=True), color=color, ls=":", marker=".", label=f"{mixing}, untrained")
        for number, (name, marker) in enumerate(zip(steps[0].asymmetry, cycle("os^Dv"), strict=False)):
            values = [step.asymmetry[name] for step in steps]
            ls = "--" if number else "-"
            asymmetries.plot(blocks, values, color=color, marker=marker, ls=ls, label=f"{mixing}, {name}")
    changes.axhline(0, color="0.5", lw=0.8)
    images = len(energies[0].before)
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
    return figure


ANALYSIS = Analysis(
    name="energy",
    summary="energy of every mixing step as a Hopfield network, and how symmetric its couplings are",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("energy", "Energy", draw),),
)
