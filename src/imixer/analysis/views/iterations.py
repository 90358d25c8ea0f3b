"""`imixer analyze iterations`: a run measured, written down and told on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no display, no global state
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
from imixer.analysis.statistics import plus_minus, spread
from imixer.plotting import BLUE, ORANGE
from imixer.training.finished_run import FinishedRun


def _measure(finished: FinishedRun, *, images: int | None = None, data: str | None = None) -> Comparison:
    settings = [*(Setting(n_iter=n) for n in NUMBERS), *(Setting(tolerance=t) for t in TOLERANCES)]
    return compare_iterations(finished.model, held_out_batches(finished, images, BATCH_SIZE, data), settings)


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


_STYLES = {"n iterations": (BLUE, "o", "-"), "to a tolerance": (ORANGE, "s", "--")}


def draw_iterations(found: Comparison, path: Path) -> None:
    """Left: accuracy with its standard error. Right: median latency with its quartiles. Both against the evaluations of
    F per block and image, which are n, or the mean of what a tolerance takes.

    Args:
        found: What `compare_iterations` gave.
        path: PNG to write.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    accuracy, latency = figure.subplots(1, 2)
    for kind, (color, marker, ls) in _STYLES.items():
        outcomes = [o for o in found.outcomes if (o.setting.tolerance is None) == (kind == "n iterations")]
        if not outcomes:
            continue
        style = dict(color=color, marker=marker, ls=ls, capsize=3, label=kind)
        x = [float(o.evaluations.double().mean()) for o in outcomes]
        accuracy.errorbar(x, [100 * o.accuracy for o in outcomes], [100 * o.accuracy_error for o in outcomes], **style)
        low, middle, high = zip(*(o.latency_quartiles for o in outcomes), strict=True)
        below = [m - q for m, q in zip(middle, low, strict=True)]
        above = [q - m for m, q in zip(middle, high, strict=True)]
        latency.errorbar(x, middle, [below, above], **style)
        if kind == "to a tolerance":
            for axes, y in ((accuracy, [100 * o.accuracy for o in outcomes]), (latency, middle)):
                for x_i, y_i, o in zip(x, y, outcomes, strict=True):
                    axes.annotate(
                        f"{o.setting.tolerance:.0e}", (x_i, y_i), (4, -11), textcoords="offset points", fontsize=7
                    )
    images = len(found.outcomes[0].correct)
    accuracy.set(ylabel="accuracy in %", title=f"{images} held-out images, trained with {found.trained}")
    latency.set(ylabel="ms per image", title=f"Latency, batches of {found.batch_size}, {found.device}")
    latency.set_ylim(bottom=0)
    for axes in (accuracy, latency):
        axes.set_xlabel("evaluations of F per block")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


ANALYSIS = Analysis("iterations", _measure, _numbers, draw_iterations, _show)
