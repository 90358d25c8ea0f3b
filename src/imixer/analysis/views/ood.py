"""`imixer analyze ood`: a run measured, written down and told on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table
from torch import Tensor

from imixer.analysis.analyze import Analysis
from imixer.analysis.images import held_out_batches
from imixer.analysis.ood.data import SYNTHETIC_OOD, outside_batches
from imixer.analysis.ood.measure import RESAMPLES, Interval, OutOfDistribution, compare_ood
from imixer.analysis.ood.scores import SCORES, ood_scores
from imixer.escaping import for_figure, for_legend
from imixer.plotting import COLORS, DOUBLE, print_figure
from imixer.training.finished_run import FinishedRun

_BATCH_SIZE = 256


def _measure(
    finished: FinishedRun,
    *,
    against: Sequence[str] = tuple(SYNTHETIC_OOD),
    images: int | None = None,
    data: str | None = None,
) -> OutOfDistribution:
    def scores(batches: Iterable[Tensor]) -> dict[str, Tensor]:
        parts = [ood_scores(finished.model, batch) for batch in batches]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    in_dist = scores(batch for batch, _ in held_out_batches(finished, images, _BATCH_SIZE, data))
    out_dist = {
        name: scores(outside_batches(finished, name, images, _BATCH_SIZE, data)) for name in dict.fromkeys(against)
    }
    return compare_ood(in_dist, out_dist)


def _show(found: OutOfDistribution, console: Console) -> None:
    """A row per set and score."""
    images = len(next(iter(found.in_dist.values())))
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
    for name in found.in_dist:
        console.print(f"{SCORES[name].label}: {SCORES[name].formula}")
    if found.missing:
        console.print(f"the model of this run has no {', '.join(SCORES[name].label for name in found.missing)}")


def _per_cent(interval: Interval) -> str:
    estimate, lower, upper = (f"{100 * value:.1f}" for value in interval)
    return f"{estimate} ({lower}-{upper})"


def _numbers(found: OutOfDistribution) -> dict[str, Any]:
    return {
        "images": len(next(iter(found.in_dist.values()))),
        "scores": {name: asdict(SCORES[name]) for name in found.in_dist},
        "missing": list(found.missing),
        "intervals": f"95 %, percentiles of {RESAMPLES} bootstrap resamples, in and out drawn apart",
        "against": {
            against: {
                "images": len(next(iter(found.out_dist[against].values()))),
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


_LINES = ("-", "--", "-.", ":")
_BINS = 30


def draw_ood(found: OutOfDistribution, path: Path) -> None:
    """Above: receiver operating characteristics, a panel per set. Below: histograms, a panel per score.

    Args:
        found: What `compare_ood` gave.
        path: PNG to write. A PDF lies beside it.
    """
    sets, names = list(found.out_dist), list(found.in_dist)
    with print_figure(path, max(DOUBLE, 1.7 * len(sets)), 4.4) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1])  # type: ignore[misc]  # typed as one
        for axes, against in zip(_row(above, len(sets)), sets, strict=True):
            for number, name in enumerate(names):
                curve = _characteristic(found.in_dist[name].numpy(), found.out_dist[against][name].numpy())
                axes.plot(*curve, **_style(number), label=SCORES[name].label)
            axes.plot([0, 1], [0, 1], color="0.7", lw=0.6, zorder=0)
            axes.set(
                xlabel="share of out accepted", title=f"against {for_figure(Path(against).name, 24)}", aspect="equal"
            )
        above.axes[0].set_ylabel("share of in accepted")
        above.legend(*above.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        for axes, name in zip(_row(below, len(names)), names, strict=True):
            samples = [values[name].numpy() for values in (found.in_dist, *found.out_dist.values())]
            shown = [values[np.isfinite(values)] for values in samples]
            low, high = np.percentile(np.concatenate(shown), [0.5, 99.5])
            ends = np.linspace(low, high, _BINS + 1)
            for number, (label, values) in enumerate(zip(("in", *sets), shown, strict=True), -1):
                kind = {"color": "0.8", "histtype": "stepfilled"} if label == "in" else _style(number)
                axes.hist(values.clip(ends[0], ends[-1]), ends, density=True, label=for_legend(Path(label).name, 24),
                          **{"histtype": "step", **kind})  # fmt: skip
            axes.set(xlabel=SCORES[name].label, yticks=[])
            axes.xaxis.set_major_locator(MaxNLocator(3))
        below.axes[0].set_ylabel("density")
        below.legend(*below.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)


def _row(part: Any, count: int) -> Any:
    row = part.subplots(1, count, squeeze=False)[0]
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
    return row


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "ls": _LINES[number % len(_LINES)]}


def _characteristic(in_dist: Any, out_dist: Any) -> tuple[Any, Any]:
    """Shares of out and of in at or above each threshold."""
    thresholds = np.unique(np.concatenate([in_dist, out_dist]))[::-1]
    shares = [1 - np.searchsorted(np.sort(each), thresholds) / len(each) for each in (out_dist, in_dist)]
    return np.append(0, shares[0]), np.append(0, shares[1])


ANALYSIS = Analysis("ood", _measure, _numbers, draw_ood, _show)
