"""`imixer analyze ood`: a run measured, written down and told on the screen."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from imixer.analysis.analyze import Analysis
from imixer.analysis.images import held_out_batches
from imixer.analysis.ood import OutOfDistribution, compare_ood
from imixer.analysis.ood_detection import RESAMPLES, Interval
from imixer.analysis.ood_figure import draw_ood
from imixer.analysis.ood_scores import SCORES, ood_scores
from imixer.analysis.ood_sets import SPOILT, outside_batches
from imixer.training.reload import Reloaded

_BATCH_SIZE = 256


def _measure(
    reloaded: Reloaded,
    *,
    against: Sequence[str] = tuple(SPOILT),
    images: int | None = None,
    data: str | None = None,
) -> OutOfDistribution:
    def scores(batches: Iterable[Tensor]) -> dict[str, Tensor]:
        parts = [ood_scores(reloaded.model, batch) for batch in batches]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    inside = scores(batch for batch, _ in held_out_batches(reloaded, images, _BATCH_SIZE, data))
    outside = {
        name: scores(outside_batches(reloaded, name, images, _BATCH_SIZE, data)) for name in dict.fromkeys(against)
    }
    return compare_ood(inside, outside)


def _show(found: OutOfDistribution, console: Console) -> None:
    """A row per set and score."""
    images = len(next(iter(found.inside.values())))
    table = Table("against", "score", "AUROC %", "AUPR in %", "AUPR out %", "FPR at 95 % TPR", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for against, scores in found.detections.items():
        for name, detected in scores.items():
            cells = (detected.auroc, detected.aupr_in, detected.aupr_out, detected.fpr95)
            table.add_row(against, SCORES[name].label, *map(_per_cent, cells))
            against = ""
    console.print(f"{images:,} held-out images (in) against others (out), with 95 % intervals")
    console.print(table)
    console.print("all scores are meant to be higher on in; an AUROC below 50 % says that one is not")
    for name in found.inside:
        console.print(f"{SCORES[name].label}: {SCORES[name].formula}")
    if found.missing:
        console.print(f"the model of this run has no {', '.join(SCORES[name].label for name in found.missing)}")


def _per_cent(interval: Interval) -> str:
    estimate, lower, upper = (f"{100 * value:.1f}" for value in interval)
    return f"{estimate} ({lower}-{upper})"


def _numbers(found: OutOfDistribution) -> dict[str, Any]:
    return {
        "images": len(next(iter(found.inside.values()))),
        "scores": {name: asdict(SCORES[name]) for name in found.inside},
        "missing": list(found.missing),
        "intervals": f"95 %, percentiles of {RESAMPLES} bootstrap resamples, in and out drawn apart",
        "against": {
            against: {
                "images": len(next(iter(found.outside[against].values()))),
                "detection": {
                    name: {
                        measure: dict(zip(("estimate", "lower", "upper"), interval, strict=True))
                        for measure, interval in asdict(detected).items()
                    }
                    for name, detected in scores.items()
                },
            }
            for against, scores in found.detections.items()
        },
    }


ANALYSIS = Analysis("ood", _measure, _numbers, draw_ood, _show)
