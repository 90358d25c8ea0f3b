"""Round trips along the depth of an iMixer, drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure  # without pyplot: no display, no global state
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from imixer.analysis.inverse import BlockInverse


def draw_inverse(found: Sequence["BlockInverse"], path: Path) -> None:
    """Relative errors of G(v) and of what G sees of v, from the run's inner state and from the fixed point.

    Args:
        found: What `inverse_along_depth` gave.
        path: PNG to write.
    """
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    blocks = [block.block for block in found]
    for label, errors, color, marker, ls in (
        ("v, from the run's x", [b.error_v_run for b in found], "#D55E00", "s", "-"),
        ("G(v), from the run's x", [b.error_run for b in found], "#0072B2", "o", "-"),
        ("v, from the fixed point", [b.error_v_solved for b in found], "#D55E00", "s", "--"),
        ("G(v), from the fixed point", [b.error_solved for b in found], "#0072B2", "o", "--"),
    ):
        mean = [float(e.mean()) for e in errors]
        std = [float(e.std()) if len(e) > 1 else 0.0 for e in errors]
        axes.errorbar(blocks, mean, std, color=color, marker=marker, ls=ls, capsize=3, label=label)
    axes.set(xlabel="block", ylabel="relative error", yscale="log")
    axes.set_title(f"Back from x, {len(found[0].error_run)} images, mean and std")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
