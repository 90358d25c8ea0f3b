"""Write down and show the contractions of a run: `imixer analyze contraction`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.analysis.statistics import spread, spread_text
from imixer.tables import verdict_markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from imixer.analysis.contraction import BlockContraction
    from imixer.training.finished_run import FinishedRun


def measure(finished: FinishedRun, *, images: int = 64, data: str | None = None) -> list[BlockContraction]:
    """Certify every block of a run.

    Args:
        finished: The run.
        images: Held-out images to measure on, evenly spread.
        data: Where the run's data lie now. Default: where they lay.
    """
    from imixer.analysis.contraction import contraction_along_depth
    from imixer.analysis.images import held_out_images

    return contraction_along_depth(finished.model, held_out_images(finished, images, data))


def judge(
    blocks: Sequence[BlockContraction], *, require: Literal["guaranteed", "observed"] | None = None
) -> str | None:
    """Say which blocks fail a requirement.

    Args:
        blocks: What `measure` returned.
        require: Exit with 1 unless every block is a contraction, for any input (`guaranteed`) or at least on the images
            (`observed`).
    """
    from imixer.analysis.contraction import failed_blocks

    return None if require is None else failed_blocks(blocks, require)


def numbers(blocks: Sequence[BlockContraction]) -> dict[str, Any]:
    """Collect what is written as JSON."""
    from imixer.analysis.contraction import MAX_STEPS, TOLERANCE

    return {
        "images": len(blocks[0].left),
        "jacobian_tolerance": TOLERANCE,
        "jacobian_max_steps": MAX_STEPS,
        "blocks": [_block_numbers(block) for block in blocks],
    }


def _block_numbers(block: BlockContraction) -> dict[str, Any]:
    from imixer.analysis.contraction import ERRORS

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


def table(blocks: Sequence[BlockContraction]) -> Table:
    """Make the table of the screen, a row per block."""
    from imixer.analysis.contraction import ERRORS

    worst = blocks[0].certificate.worst
    ceiling = "no ceiling" if worst.coeff is None else f"ceiling c = {worst.coeff:.4g}"
    made = Table(
        title=f"Contraction F, mean +- std and largest of {len(blocks[0].left)} held-out images; {ceiling}; "
        f"Lipschitz constants of the activations {', '.join(f'{slope:.4f}' for slope in worst.lipschitz)}",
        title_justify="left",
    )
    for name in ("block", "sigma of W1, W2", "estimated", "bound", "norm on images", "largest"):
        made.add_column(name, justify="right")
    made.add_column(f"n for {', '.join(f'{e:.0e}' for e in ERRORS)}\nby bound | by images")
    made.add_column(f"error left, {blocks[0].iterations}" if len(blocks[0].iterations) < 20 else "error left")
    made.add_column("verdict")
    for block in blocks:
        w = block.certificate.worst
        needed = [block.needed(error) for error in ERRORS]
        made.add_row(
            str(block.block),
            _sigmas(w.sigmas),
            "-" if w.estimates is None else _sigmas(w.estimates),
            _lines(f"{bound:.4f}" for bound in w.bounds),
            _lines(spread_text(norms) for norms in block.norms),
            _lines(f"{float(norms.max()):.3f}" for norms in block.norms),
            " | ".join(", ".join(_count(n[name]) for n in needed) for name in ("bound", "data")),
            spread_text(100 * block.left) + " %",
            verdict_markup(block.verdict),
        )
    return made


def _sigmas(pairs: Iterable[tuple[float, float]]) -> str:
    return _lines(", ".join(f"{sigma:.5f}" for sigma in pair) for pair in pairs)


def _lines(cells: Iterable[str]) -> str:
    return "\n".join(cells)


def _count(n: int | None) -> str:
    return "-" if n is None else str(n)


def show(blocks: Sequence[BlockContraction], console: Console) -> None:
    """Print the table, what its columns mean, and what is missing in it."""
    from imixer.analysis.contraction import TOLERANCE

    console.print(table(blocks))
    if len(blocks[0].certificate.worst.sigmas) > 1:
        console.print("lines of a row: F^2 and the contractions inside it, outermost first")
    console.print(
        "bound: of the Lipschitz constant, for any input. norm: of the Jacobian at the fixed point, by power "
        f"iteration to {TOLERANCE:g}. "
        "n: iterations that shrink the error of G(v) so far, promised by the bound, estimated by the "
        "images; - where none do. error left: distance to the fixed point, relative to its norm. guaranteed: the bound "
        "is below 1 also with room for rounding"
    )
    for block in blocks:
        for line in _troubles(block):
            console.print(f"block {block.block}: {line}")
    if blocks[0].unknown:
        console.print(f"no bound: the largest slope of {', '.join(blocks[0].unknown)} is not known here")


def _troubles(block: BlockContraction) -> Iterable[str]:
    """Say of how many images a number is missing or uncertain."""
    from imixer.analysis.contraction import TOLERANCE

    converged = block.certificate.data.converged.all(-1)
    if not converged.all():
        lost = int((~converged).sum())
        nearing = bool((block.certificate.data.approaching | block.certificate.data.converged).all())
        how = "within the steps, though each came nearer" if nearing else "by iterating"
        yield f"no fixed point found for {lost} of {len(converged)} images {how}"
    if not block.settled.all():
        loose = int((~block.settled).any(0).sum())
        yield (
            f"the norm of {loose} of {len(converged)} images is a lower bound, its power iteration not having met "
            f"{TOLERANCE:g}"
        )


def draw(blocks: Sequence[BlockContraction]) -> Figure:
    """Draw norms of the matrices (left), how steep F is at most and on images (middle), and errors of x (right)."""
    from matplotlib.figure import Figure

    from imixer.analysis.plotting import draw_spread, style_depth_axes
    from imixer.plotting import AMBER, BLUE, GREEN, ORANGE, PINK, SKY

    figure = Figure(figsize=(13.5, 3.8), layout="constrained")
    matrices, slopes, errors = figure.subplots(1, 3)
    numbers = [block.block for block in blocks]
    worst = [block.certificate.worst for block in blocks]
    levels = len(worst[0].sigmas)
    styles = iter(((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "v"), (AMBER, "D"), (SKY, "P")) * levels)
    for level in range(levels):
        for i, (color, marker) in enumerate((next(styles), next(styles))):
            name = f"$W_{i + 1}$" + (f" of $F^{level + 2}$" if levels > 1 else "")
            values = [w.sigmas[level][i] for w in worst]
            matrices.plot(numbers, values, color=color, marker=marker, ls="-" if i == 0 else "--", label=name)
    if worst[0].coeff is not None:
        matrices.axhline(worst[0].coeff, color="0.4", lw=1, ls=":", label=f"ceiling c = {worst[0].coeff:.3g}")
    matrices.set(ylabel=r"spectral norm $\sigma$, exact", title="Inner matrices as they multiply")
    matrices.set_ylim(0, 1.15 * max(1.0, *(s for w in worst for pair in w.sigmas for s in pair)))

    bounds = [(b, w.bound) for b, w in zip(numbers, worst, strict=True) if w.bound < 10]
    if bounds:
        slopes.plot(*zip(*bounds, strict=True), color=ORANGE, marker="s", ls="--", label="bound, for any input")
    else:
        slopes.plot([], [], " ", label="bound: above 10")
    for level in range(levels):
        color, marker = ((BLUE, "o"), (GREEN, "^"), (PINK, "v"))[level % 3]
        name = "" if levels == 1 else f" of $F^{level + 2}$"
        norms = [block.norms[level] for block in blocks]
        draw_spread(slopes, numbers, norms, color=color, marker=marker, label=f"images{name}, mean and std")
        slopes.plot(numbers, [float(n.max()) for n in norms], color=color, marker="_", ms=12, ls="", label="largest")
    slopes.axhline(1, color="0.2", lw=1, ls=":", label="a contraction below 1")
    images = len(blocks[0].left)
    slopes.set(ylabel=r"Lipschitz constant, $\|\partial F/\partial x\|$", title=f"How steep F is, {images} images")
    slopes.set_ylim(bottom=0)
    slopes.margins(y=0.12)

    starts = [block.start for block in blocks]
    draw_spread(errors, numbers, starts, color="0.45", marker="s", label="before, x = G(v)")
    label = f"after, {blocks[0].iterations}" if len(blocks[0].iterations) < 20 else "after"
    draw_spread(errors, numbers, [block.left for block in blocks], color=BLUE, marker="o", label=label)
    errors.set(ylabel=r"$\|x_n - x\| \,/\, \|x\|$", yscale="log", title="Error of x, mean and std")
    for axes in (matrices, slopes, errors):
        style_depth_axes(axes)
    return figure


ANALYSIS = Analysis(
    name="contraction",
    summary="whether each inverse exists, in theory and on images, and the error that the iterations leave",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("contraction", "Contraction", draw),),
    judge=judge,
)
