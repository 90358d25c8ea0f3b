"""Write down and show accuracy on corrupted images: `imixer evaluate --corruptions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.tables import plus_minus

if TYPE_CHECKING:
    from imixer.analysis.robustness.corruptions import CorruptionScores
    from imixer.training.finished_run import FinishedRun

_BATCH_SIZE = 64


def check(**_: object) -> None:
    """Raise InputError if what corrupts images is not installed."""
    from imixer.analysis.robustness.corruptions import require_corruptions

    require_corruptions()


def measure(finished: FinishedRun, *, images: int | None = None, data: str | None = None) -> CorruptionScores:
    """Measure a run on its held-out images, corrupted at the size of the model's input.

    Args:
        finished: The run.
        images: Held-out images, evenly spread. Default: all.
        data: Where the run's data lie now. Default: where they lay.
    """
    from imixer.analysis.images import count_held_out, held_out_batches, pixels_of
    from imixer.analysis.robustness.corruptions import applicable, require_corruptions, score_corruptions

    require_corruptions()
    return score_corruptions(
        finished.model,
        held_out_batches(finished, images, _BATCH_SIZE, data),
        pixels_of(finished),
        applicable(*finished.input_size[1:]),
        total=count_held_out(finished, images),
    )


def numbers(scores: CorruptionScores) -> dict[str, Any]:
    """Collect what is written as JSON."""
    return {
        "images": len(scores.clean),
        "input_size": list(scores.input_size),
        "clean_accuracy": float(scores.clean.double().mean()),
        "accuracy_by_severity": {name: row.tolist() for name, row in zip(scores.names, scores.accuracy, strict=True)},
        "mean_error": dict(zip(("mean", "standard_error"), scores.mean_error, strict=True)),
        "mean_error_above_clean": dict(zip(("mean", "standard_error"), scores.mean_rise, strict=True)),
        "left_out": list(scores.left_out),
    }


def table(scores: CorruptionScores) -> Table:
    """Make the table of the screen, a row per corruption, a column per severity."""
    from imixer.analysis.robustness.corruptions import GROUPS, SEVERITIES

    made = Table("corruption", "", *(f"severity {s}" for s in SEVERITIES), "mean", box=None)
    for column in made.columns[2:]:
        column.justify = "right"
    rows = dict(zip(scores.names, scores.accuracy, strict=True))
    for group, names in GROUPS.items():
        for name in names:
            if name in rows:
                shares = [*rows[name].tolist(), float(rows[name].mean())]
                made.add_row(group, name.replace("_", " "), *(f"{100 * share:.1f}" for share in shares))
    return made


def show(scores: CorruptionScores, console: Console) -> None:
    """Print the table, the means, and what images this small were spared."""
    from imixer.analysis.robustness.corruptions import SMALLEST

    console.print(f"accuracy in % on {len(scores.clean):,} corrupted held-out images")
    console.print(table(scores))
    error, rise = (
        plus_minus(100 * mean, 100 * uncertainty, unit="%")
        for mean, uncertainty in (scores.mean_error, scores.mean_rise)
    )
    console.print(
        f"clean {scores.clean.double().mean():.2%}  mean corruption error {error}, above the clean error by {rise}"
    )
    if scores.left_out:
        left_out = ", ".join(scores.left_out).replace("_", " ")
        console.print(f"made for {SMALLEST} pixels a side and more, and left out: {left_out}")


ANALYSIS = Analysis(
    name="corruptions",
    summary="accuracy on images with common corruptions at five severities",
    measure=measure,
    numbers=numbers,
    show=show,
    check=check,
    beside_run=True,
)
