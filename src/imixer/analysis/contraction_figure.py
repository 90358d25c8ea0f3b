"""Contraction along the depth of an iMixer, drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state
from matplotlib.ticker import MaxNLocator
from torch import Tensor

if TYPE_CHECKING:
    from imixer.analysis.contraction import BlockContraction

# Colours that stay apart for the colour-blind; markers tell them apart in gray.
_BLUE, _ORANGE, _GREEN, _PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_MATRICES = ((_BLUE, "o"), (_ORANGE, "s"), (_GREEN, "^"), (_PINK, "v"), ("#E69F00", "D"), ("#56B4E9", "P"))


def draw_contraction(found: Sequence["BlockContraction"], path: Path) -> None:
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
        _errorbar(slopes, blocks, norms, color, marker, f"images{name}, mean and std")
        slopes.plot(blocks, [float(n.max()) for n in norms], color=color, marker="_", ms=12, ls="", label="largest")
    slopes.axhline(1, color="0.2", lw=1, ls=":", label="a contraction below 1")
    slopes.set(ylabel=r"Lipschitz constant, $\|\partial F/\partial x\|$", title=f"How steep F is, {images} images")
    slopes.set_ylim(bottom=0)
    slopes.margins(y=0.12)

    _errorbar(errors, blocks, [block.start for block in found], "0.45", "s", "before, x = G(v)")
    label = f"after, {found[0].iterations}" if len(found[0].iterations) < 20 else "after"
    _errorbar(errors, blocks, [block.left for block in found], _BLUE, "o", label)
    errors.set(ylabel=r"$\|x_n - x\| \,/\, \|x\|$", yscale="log", title="Error of x, mean and std")
    for axes in (matrices, slopes, errors):
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def _errorbar(
    axes: Axes, blocks: Sequence[int], samples: Sequence[Tensor], color: str, marker: str, label: str
) -> None:
    mean = [float(s.mean()) for s in samples]
    std = [float(s.std()) if len(s) > 1 else 0.0 for s in samples]
    axes.errorbar(blocks, mean, std, color=color, marker=marker, capsize=3, label=label)
