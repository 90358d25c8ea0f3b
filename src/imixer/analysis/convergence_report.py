"""`imixer analyze convergence`: a run measured, written down and told on the screen."""

from pathlib import Path
from typing import Any, Dict, Tuple

from rich.console import Console
from rich.table import Table

from imixer.analysis.convergence import BlockConvergence, Convergence, convergence_of
from imixer.analysis.convergence_figure import draw_convergence
from imixer.analysis.record import record
from imixer.analysis.statistics import plus_minus, spread
from imixer.training.run_directory import open_run


def analyze_convergence(path: str, *, seed: int = 0, **options: Any) -> Tuple[Convergence, Path]:
    """`convergence_of` a run, written as `convergence.json`, `.png` and `.pdf` into its `analysis` folder.

    Args:
        path: The run's directory.
        seed: Of the draw.
        options: Of `convergence_of`.

    Returns:
        The measurements and the folder.

    Raises:
        InputError: As there.
    """
    found = convergence_of(path, seed=seed, **options)
    written = {
        "images": found.images,
        "seed": seed,
        "n_iter": found.n_iter,
        "trained_n_iter": found.trained,
        "blocks": [_row(block) for block in found.blocks],
    }
    return found, record(open_run(path), "convergence", written, lambda path: draw_convergence([found], path))


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


def _row(block: BlockConvergence) -> Dict[str, Any]:
    return {
        "block": block.block,
        "norm": [spread(norms) for norms in block.norms],
        "cosine": [spread(cosines) for cosines in block.cosines],
        "rate": None if block.rate is None else spread(block.rate),
    }
