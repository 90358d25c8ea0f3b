"""The contraction of a run's blocks, on the screen."""

from collections.abc import Iterable, Sequence
from typing import Optional

from rich.console import Console
from rich.table import Table

from imixer.analysis.contraction import ERRORS, TOLERANCE, BlockContraction
from imixer.analysis.energy_report import STYLES
from imixer.analysis.statistics import plus_minus


def report_contraction(found: Sequence[BlockContraction], console: Console) -> None:
    """One row per block.

    Args:
        found: What `contraction_along_depth` gave.
        console: Where to print.
    """
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
            f"[{STYLES[block.verdict]}]{block.verdict}[/]",
        )
    console.print(table)
    if len(worst.sigmas) > 1:
        console.print("lines of a row: F^2 and the contractions inside it, outermost first")
    console.print(
        "bound: of the Lipschitz constant, for any input. norm: of the Jacobian at the fixed point, by power "
        f"iteration to {TOLERANCE:g}. "
        "n: iterations that shrink the error of G(v) so far, promised by the bound, estimated by the "
        "images; - where none do. error left: distance to the fixed point, relative to its norm"
    )
    _report_trouble(found, console)


def _report_trouble(found: Sequence[BlockContraction], console: Console) -> None:
    for block in found:
        converged = block.certificate.data.converged.all(-1)
        if not converged.all():
            lost = int((~converged).sum())
            console.print(f"block {block.block}: no fixed point found for {lost} of {len(converged)} images")
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


def _count(n: Optional[int]) -> str:
    return "-" if n is None else str(n)
