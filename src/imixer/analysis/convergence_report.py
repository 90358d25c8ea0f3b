"""The convergence of a run's iterations, on the screen."""

from rich.console import Console
from rich.table import Table

from imixer.analysis.convergence import Convergence
from imixer.analysis.statistics import plus_minus


def report_convergence(found: Convergence, console: Console) -> None:
    """One row per block, one column per iteration.

    Args:
        found: What `convergence_along_depth` gave.
        console: Where to print.
    """
    trained = "to a tolerance" if found.trained is None else f"with n = {found.trained}"
    table = Table(
        title=f"Norm_a and cos_a, mean over {found.images} held-out images; trained {trained}",
        title_justify="left",
    )
    table.add_column("block", justify="right")
    for a in range(found.n_iter):
        table.add_column(f"a = {a}", justify="right")
    table.add_column("rate", justify="right")
    for block in found.blocks:
        means = zip(block.norms.mean(1).tolist(), block.cosines.mean(1).tolist(), strict=True)
        cells = [f"{norm:.3g}\n{cosine:.5f}" for norm, cosine in means]
        table.add_row(str(block.block), *cells, "-" if block.rate is None else plus_minus(block.rate))
    console.print(table)
    console.print(
        "Norm_a: ||x^(a+1) - x^a|| / sqrt(S C), x^0 being G(v). cos_a, the line below: of the angle between the two. "
        "rate: Norm_(a+1) / Norm_a, geometric mean, +- std over images"
    )
