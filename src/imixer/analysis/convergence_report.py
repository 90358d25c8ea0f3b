"""`imixer analyze convergence`: runs measured, written down and told on the screen."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from imixer.analysis.analyze import Analysis, write_numbers
from imixer.analysis.convergence import BlockConvergence, Convergence, convergence_along_depth
from imixer.analysis.convergence_figure import draw_convergence, draw_cosines, draw_first_block, draw_norms
from imixer.analysis.images import random_images
from imixer.analysis.statistics import plus_minus, spread
from imixer.errors import InputError
from imixer.training.figures import drawn
from imixer.training.reload import Reloaded

_LEGEND = (
    "Norm_a: ||x^(a+1) - x^a|| / sqrt(S C), x^0 being G(v). cos_a, the line below: of the angle between the two. "
    "rate: Norm_(a+1) / Norm_a, geometric mean, +- std over images"
)


def _measure(
    reloaded: Reloaded,
    *,
    images: int = 16,
    n_iter: int | None = None,
    seed: int = 0,
    data: str | None = None,
) -> Convergence:
    chosen = random_images(reloaded, images, seed, data)
    return replace(convergence_along_depth(reloaded.model, chosen, n_iter), seed=seed)


def _numbers(found: Convergence) -> dict[str, Any]:
    return {
        "images": found.images,
        "seed": found.seed,
        "n_iter": found.n_iter,
        "trained_n_iter": found.trained,
        "blocks": [_row(block, spread) for block in found.blocks],
    }


def _show(found: Convergence, console: Console) -> None:
    """One row per block, one column per iteration."""
    trained = "to a tolerance" if found.trained is None else f"with n = {found.trained}"
    table = _table(f"Norm_a and cos_a, mean over {found.images} held-out images; trained {trained}", found.n_iter)
    for block in found.blocks:
        table.add_row(str(block.block), *_cells(block))
    console.print(table)
    console.print(_LEGEND)


def _row(block: BlockConvergence, summary: Callable[[Tensor], dict[str, float]]) -> dict[str, Any]:
    return {
        "block": block.block,
        "norm": [summary(norms) for norms in block.norms],
        "cosine": [summary(cosines) for cosines in block.cosines],
        "rate": None if block.rate is None else summary(block.rate),
    }


def _table(title: str, n_iter: int, *first: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in (*first, "block", *(f"a = {a}" for a in range(n_iter)), "rate"):
        table.add_column(name, justify="left" if name in first else "right")
    return table


def _cells(block: BlockConvergence) -> list[str]:
    means = zip(block.norms.mean(1).tolist(), block.cosines.mean(1).tolist(), strict=True)
    cells = [f"{norm:.3g}\n{cosine:.5f}" for norm, cosine in means]
    return [*cells, "-" if block.rate is None else plus_minus(block.rate)]


ANALYSIS = Analysis("convergence", _measure, _numbers, draw_convergence, _show)


def write_comparison(found: Sequence[Convergence], folder: Path) -> list[Path]:
    """Write what `compare_convergence` found, over what was there.

    Args:
        found: One measurement per run.
        folder: Where to: `convergence_compared.json`, and as PNG and PDF `convergence_first_block`,
            `convergence_norms` and `convergence_cosines`. It is made if it does not exist.

    Returns:
        The files.

    Raises:
        InputError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: the folder {folder} cannot be made, {error.strerror}; give another") from error
    numbers = folder / "convergence_compared.json"
    write_numbers(comparison_numbers(found), numbers)
    figures = {"first_block": draw_first_block, "norms": draw_norms, "cosines": draw_cosines}
    files = [numbers]
    for name, draw in figures.items():
        picture = folder / f"convergence_{name}.png"
        if drawn(picture, partial(draw, found)):
            files += [picture, picture.with_suffix(".pdf")]
    return files


def comparison_numbers(found: Sequence[Convergence]) -> dict[str, Any]:
    """Collect all that the figures show, for JSON: over the images mean, std, and the ends of the bands."""
    return {
        "images": found[0].images,
        "seed": found[0].seed,
        "n_iter": found[0].n_iter,
        "models": [
            {
                "name": model.name,
                "trained_n_iter": model.trained,
                "tokens": model.S,
                "channels": model.C,
                "width": model.D,
                "blocks": [_row(block, _ends) for block in model.blocks],
            }
            for model in found
        ],
    }


def show_comparison(found: Sequence[Convergence], console: Console) -> None:
    """Print one row per block and model, one column per iteration; a star is at each model's own x^n."""
    first = found[0]
    table = _table(f"Norm_a and cos_a, mean over the same {first.images} held-out images", first.n_iter, "model")
    for number, block in enumerate(first.blocks):
        for model in found:
            cells = _cells(model.blocks[number])
            if model.stop is not None:
                norm, _, cosine = cells[model.stop].partition("\n")
                cells[model.stop] = f"* {norm}\n{cosine}"
            table.add_row(model.name, str(block.block), *cells, end_section=model is found[-1])
    console.print(table)
    console.print(f"{_LEGEND}. *: at a = n, where the model itself stops")


def _ends(values: Tensor) -> dict[str, float]:
    return spread(values) | {"min": float(values.min()), "max": float(values.max())}
