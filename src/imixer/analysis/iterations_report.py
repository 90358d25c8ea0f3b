"""`imixer analyze iterations`: a run measured, written down and told on the screen."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from imixer.analysis.analyze import Analysis
from imixer.analysis.images import held_out_batches
from imixer.analysis.iterations import (
    BATCH_SIZE,
    MAX_STEPS,
    NUMBERS,
    TOLERANCES,
    Comparison,
    Outcome,
    Setting,
    compare_iterations,
)
from imixer.analysis.iterations_figure import draw_iterations
from imixer.analysis.statistics import plus_minus, spread
from imixer.training.reload import Reloaded


def _measure(reloaded: Reloaded, *, images: int | None = None, data: str | None = None) -> Comparison:
    settings = [*(Setting(n_iter=n) for n in NUMBERS), *(Setting(tolerance=t) for t in TOLERANCES)]
    return compare_iterations(reloaded.model, held_out_batches(reloaded, images, BATCH_SIZE, data), settings)


def _numbers(found: Comparison) -> dict[str, Any]:
    return {
        "images": len(found.outcomes[0].correct),
        "trained": found.trained,
        "device": found.device,
        "latency_batch_size": found.batch_size,
        "latency_repeats": len(found.outcomes[0].latency),
        "settings": [_row(outcome) for outcome in found.outcomes],
    }


def _show(found: Comparison, console: Console) -> None:
    """One row per setting."""
    first = found.outcomes[0]
    table = Table(
        title=f"Trained with {found.trained}; {len(first.correct)} held-out images; latency: median and quartiles of "
        f"{len(first.latency)}, batches of {found.batch_size}, {found.device}",
        title_justify="left",
    )
    table.add_column("solved")
    for name in ("accuracy %", "same answer %", "logit change %", "evaluations per block", "ms per image"):
        table.add_column(name, justify="right")
    for o in found.outcomes:
        low, middle, high = o.latency_quartiles
        counts = ", ".join(f"{float(block.double().mean()):.1f}" for block in o.evaluations)
        table.add_row(
            Text(str(o.setting), "bold" if str(o.setting) == found.trained else ""),
            f"{100 * o.accuracy:.2f} +- {100 * o.accuracy_error:.2f}",
            f"{100 * float(o.same.double().mean()):.2f}",
            plus_minus(100 * o.change),
            counts if o.setting.tolerance is not None else str(o.setting.n_iter),
            f"{middle:.3f} ({low:.3f}-{high:.3f})",
        )
    console.print(table)
    console.print(
        "accuracy: +- standard error. same answer, logit change (relative, mean +- std): against the model as trained. "
        "evaluations: of F, of each block, mean over images"
    )
    for o in found.outcomes:
        if o.converged is not None and o.converged < 1:
            console.print(f"{o.setting}: {1 - o.converged:.2%} of the inverses not met in {MAX_STEPS} evaluations")


def _row(outcome: Outcome) -> dict[str, Any]:
    low, middle, high = outcome.latency_quartiles
    return {
        "n_iter": outcome.setting.n_iter,
        "tolerance": outcome.setting.tolerance,
        "accuracy": outcome.accuracy,
        "accuracy_standard_error": outcome.accuracy_error,
        "same_answer": float(outcome.same.double().mean()),
        "logit_change": spread(outcome.change),
        "evaluations_per_block": [spread(block.double()) for block in outcome.evaluations],
        "converged": outcome.converged,
        "latency_ms_per_image": {"median": middle, "lower_quartile": low, "upper_quartile": high},
    }


ANALYSIS = Analysis("iterations", _measure, _numbers, draw_iterations, _show)
