"""Round trips along the depth of an iMixer, drawn."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure  # without pyplot: no display, no global state

from imixer.analysis.depth_figure import draw_spread, finish
from imixer.analysis.inverse import BlockInverse


def draw_inverse(found: Sequence[BlockInverse], path: Path) -> None:
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
        draw_spread(axes, blocks, errors, color=color, marker=marker, ls=ls, label=label)
    axes.set(ylabel="relative error", yscale="log")
    axes.set_title(f"Back from x, {len(found[0].error_run)} images, mean and std")
    finish(axes)
    figure.savefig(path, dpi=120)
