"""`imixer analyze convergence`: a run measured, written down and told on the screen."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.analysis.convergence import BlockConvergence, Convergence, convergence_along_depth
from imixer.analysis.convergence_figure import draw_convergence
from imixer.analysis.images import random_images
from imixer.analysis.statistics import plus_minus, spread
from imixer.training.reload import Reloaded


def _measure(
    reloaded: Reloaded,
    *,
    images: int = 16,
    n_iter: Optional[int] = None,
    seed: int = 0,
    data: Optional[str] = None,
) -> Convergence:
    drawn = random_images(reloaded, images, seed, data)
    return replace(convergence_along_depth(reloaded.model, drawn, n_iter), seed=seed)


def _numbers(found: Convergence) -> Dict[str, Any]:
    return {
        "images": found.images,
        "seed": found.seed,
        "n_iter": found.n_iter,
        "trained_n_iter": found.trained,
        "blocks": [_row(block) for block in found.blocks],
    }


def _show(found: Convergence, console: Console) -> None:
    """One row per block, one column per iteration."""
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


def _draw(found: Convergence, path: Path) -> None:
    draw_convergence([found], path)


ANALYSIS = Analysis("convergence", _measure, _numbers, _draw, _show)
