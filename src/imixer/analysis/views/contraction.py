"""`imixer analyze contraction`: a run measured, written down and told on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no display, no global state
from rich.console import Console
from rich.table import Table
from torch import Tensor

from imixer.analysis.analyze import Analysis
from imixer.analysis.contraction import ERRORS, MAX_STEPS, TOLERANCE, BlockContraction, contraction_along_depth
from imixer.analysis.images import held_out_images
from imixer.analysis.plotting import draw_spread, style_depth_axes
from imixer.analysis.statistics import plus_minus, spread
from imixer.plotting import AMBER, BLUE, GREEN, ORANGE, PINK, SKY
from imixer.tables import verdict_markup
from imixer.training.finished_run import FinishedRun


def _measure(finished: FinishedRun, *, images: int = 64, data: str | None = None) -> list[BlockContraction]:
    return contraction_along_depth(finished.model, held_out_images(finished, images, data))


def _numbers(found: Sequence[BlockContraction]) -> dict[str, Any]:
    return {
        "images": len(found[0].left),
        "jacobian_tolerance": TOLERANCE,
        "jacobian_max_steps": MAX_STEPS,
        "blocks": [_row(block) for block in found],
    }


def _show(found: Sequence[BlockContraction], console: Console) -> None:
    """One row per block."""
    worst = found[0].certificate.worst
    ceiling = "no ceiling" if worst.coeff is None else f"ceiling c = {worst.coeff:.4g}"
    table = Table(
        title=f"Contraction F, mean +- std and largest of {len(found[0].left)} held-out images; {ceiling}; "
        f"Lipschitz constants of the activations {', '.join(f'{slope:.4f}' for slope in worst.lipschitz)}",
        title_justify="left",
    )
    table.add_column("block", justify="right")
    for name in ("sigma of W1, W2", "estimated", "bound", "norm on images", "largest"):
        table.add_column(name, justify="right")
    table.add_column(f"n for {', '.join(f'{e:.0e}' for e in ERRORS)}\nby bound | by images")
    table.add_column(f"error left, {found[0].iterations}" if len(found[0].iterations) < 20 else "error left")
    table.add_column("verdict")
    for block in found:
        w = block.certificate.worst
        needed = [block.needed(error) for error in ERRORS]
        table.add_row(
            str(block.block),
            _lines(", ".join(f"{s:.5f}" for s in pair) for pair in w.sigmas),
            "-" if w.estimates is None else _lines(", ".join(f"{s:.5f}" for s in pair) for pair in w.estimates),
            _lines(f"{bound:.4f}" for bound in w.bounds),
            _lines(plus_minus(norms) for norms in block.norms),
            _lines(f"{float(norms.max()):.3f}" for norms in block.norms),
            " | ".join(", ".join(_count(n[name]) for n in needed) for name in ("bound", "data")),
            plus_minus(100 * block.left) + " %",
            verdict_markup(block.verdict),
        )
    console.print(table)
    if len(worst.sigmas) > 1:
        console.print("lines of a row: F^2 and the contractions inside it, outermost first")
    console.print(
        "bound: of the Lipschitz constant, for any input. norm: of the Jacobian at the fixed point, by power "
        f"iteration to {TOLERANCE:g}. "
        "n: iterations that shrink the error of G(v) so far, promised by the bound, estimated by the "
        "images; - where none do. error left: distance to the fixed point, relative to its norm. guaranteed: the bound "
        "is below 1 also with room for rounding"
    )
    _report_trouble(found, console)


def _report_trouble(found: Sequence[BlockContraction], console: Console) -> None:
    for block in found:
        converged = block.certificate.data.converged.all(-1)
        if not converged.all():
            lost = int((~converged).sum())
            nearing = bool((block.certificate.data.approaching | block.certificate.data.converged).all())
            how = "within the steps, though each came nearer" if nearing else "by iterating"
            console.print(f"block {block.block}: no fixed point found for {lost} of {len(converged)} images {how}")
        if not block.settled.all():
            loose = int((~block.settled).any(0).sum())
            console.print(
                f"block {block.block}: the norm of {loose} of {len(converged)} images is a lower bound, its power "
                f"iteration not having met {TOLERANCE:g}"
            )
    if found[0].unknown:
        console.print(f"no bound: the largest slope of {', '.join(found[0].unknown)} is not known here")


def _lines(cells: Iterable[str]) -> str:
    return "\n".join(cells)


def _count(n: int | None) -> str:
    return "-" if n is None else str(n)


def _row(block: BlockContraction) -> dict[str, Any]:
    worst, converged = block.certificate.worst, block.certificate.data.converged
    return {
        "block": block.block,
        "iterations": block.iterations,
        "sigma": worst.sigmas,
        "sigma_estimated": worst.estimates,
        "coeff": worst.coeff,
        "lipschitz": worst.lipschitz,
        "unknown_activations": list(block.unknown),
        "bounds": worst.bounds,
        "bounds_with_rounding": worst.computed_bounds,
        "jacobian_norms": [_with_largest(norms) for norms in block.norms],
        "jacobians_settled": float(block.settled.double().mean()),
        "fixed_points_found": float(converged.all(-1).double().mean()),
        "error_of_start": _with_largest(block.start),
        "error_left": _with_largest(block.left),
        "iterations_needed": {f"{error:g}": block.needed(error) for error in ERRORS},
        "verdict": block.verdict,
    }


def _with_largest(values: Tensor) -> dict[str, float]:
    return spread(values) | {"max": float(values.max())}


# Colours that stay apart for the colour-blind; markers tell them apart in gray.
_MATRICES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "v"), (AMBER, "D"), (SKY, "P"))


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
        slopes.plot(*zip(*bounds, strict=True), color=ORANGE, marker="s", ls="--", label="bound, for any input")
    else:
        slopes.plot([], [], " ", label="bound: above 10")
    for level in range(len(worst[0].sigmas)):
        color, marker = ((BLUE, "o"), (GREEN, "^"), (PINK, "v"))[level % 3]
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
    draw_spread(errors, blocks, [block.left for block in found], color=BLUE, marker="o", label=label)
    errors.set(ylabel=r"$\|x_n - x\| \,/\, \|x\|$", yscale="log", title="Error of x, mean and std")
    for axes in (matrices, slopes, errors):
        style_depth_axes(axes)
    figure.savefig(path, dpi=120)


ANALYSIS = Analysis("contraction", _measure, _numbers, draw_contraction, _show)
