"""Contraction along the depth of an iMixer, drawn."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure  # without pyplot: no display, no global state

from imixer.analysis.contraction import BlockContraction
from imixer.analysis.depth_figure import draw_spread, finish

# Colours that stay apart for the colour-blind; markers tell them apart in gray.
_BLUE, _ORANGE, _GREEN, _PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_MATRICES = ((_BLUE, "o"), (_ORANGE, "s"), (_GREEN, "^"), (_PINK, "v"), ("#E69F00", "D"), ("#56B4E9", "P"))


def draw_contraction(found: Sequence[BlockContraction], path: Path) -> None:
    """Left: norms of the matrices. Middle: how steep F is at most, and on images. Right: the errors of x.

    Args:
        found: What `contraction_along_depth` gave.
        path: PNG to write.
    """
    figure = Figure(figsize=(13.5, 3.8), layout="constrained")
    matrices, slopes, errors = figure.subplots(1, 3)
    blocks = [block.block for block in found]
    worst = [block.certificate.worst for block in found]
    styles = iter(_MATRICES * len(worst[0].sigmas))
    for level in range(len(worst[0].sigmas)):
        for i, (color, marker) in enumerate((next(styles), next(styles))):
            name = f"$W_{i + 1}$" + (f" of $F^{level + 2}$" if len(worst[0].sigmas) > 1 else "")
            values = [w.sigmas[level][i] for w in worst]
            matrices.plot(blocks, values, color=color, marker=marker, ls="-" if i == 0 else "--", label=name)
    if worst[0].coeff is not None:
        matrices.axhline(worst[0].coeff, color="0.4", lw=1, ls=":", label=f"ceiling c = {worst[0].coeff:.3g}")
    matrices.set(ylabel=r"spectral norm $\sigma$, exact", title="Inner matrices as they multiply")
    matrices.set_ylim(0, 1.15 * max(1.0, *(s for w in worst for pair in w.sigmas for s in pair)))

    images = len(found[0].left)
    bounds = [(b, w.bound) for b, w in zip(blocks, worst, strict=True) if w.bound < 10]
    if bounds:
        slopes.plot(*zip(*bounds, strict=True), color=_ORANGE, marker="s", ls="--", label="bound, for any input")
    else:
        slopes.plot([], [], " ", label="bound: above 10")
    for level in range(len(worst[0].sigmas)):
        color, marker = ((_BLUE, "o"), (_GREEN, "^"), (_PINK, "v"))[level % 3]
        name = "" if len(worst[0].sigmas) == 1 else f" of $F^{level + 2}$"
        norms = [block.norms[level] for block in found]
        draw_spread(slopes, blocks, norms, color=color, marker=marker, label=f"images{name}, mean and std")
        slopes.plot(blocks, [float(n.max()) for n in norms], color=color, marker="_", ms=12, ls="", label="largest")
    slopes.axhline(1, color="0.2", lw=1, ls=":", label="a contraction below 1")
    slopes.set(ylabel=r"Lipschitz constant, $\|\partial F/\partial x\|$", title=f"How steep F is, {images} images")
    slopes.set_ylim(bottom=0)
    slopes.margins(y=0.12)

    starts = [block.start for block in found]
    draw_spread(errors, blocks, starts, color="0.45", marker="s", label="before, x = G(v)")
    label = f"after, {found[0].iterations}" if len(found[0].iterations) < 20 else "after"
    draw_spread(errors, blocks, [block.left for block in found], color=_BLUE, marker="o", label=label)
    errors.set(ylabel=r"$\|x_n - x\| \,/\, \|x\|$", yscale="log", title="Error of x, mean and std")
    for axes in (matrices, slopes, errors):
        finish(axes)
    figure.savefig(path, dpi=120)
