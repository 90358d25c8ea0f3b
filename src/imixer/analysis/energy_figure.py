"""Energy and asymmetry along the depth of a mixer, drawn."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure  # without pyplot: no display, no global state

from imixer.analysis.depth_figure import draw_spread, finish
from imixer.analysis.energy import MixingEnergy

_COLORS = {"tokens": "#0072B2", "channels": "#D55E00"}
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
        aside = [b + (-0.06 if mixing == "tokens" else 0.06) for b in blocks]
        draw_spread(changes, aside, change, color=color, marker="o", label=f"mixing of {mixing}")
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
        finish(axes)
    figure.savefig(path, dpi=120)
