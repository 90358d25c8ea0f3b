"""Write down and show how a run tells other images from its own: `imixer analyze ood`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.escaping import for_figure, for_legend

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor

    from imixer.analysis.ood.measure import Interval, OutOfDistribution
    from imixer.training.finished_run import FinishedRun

_BATCH_SIZE = 256


def measure(
    finished: FinishedRun,
    *,
    images: int | None = None,
    ood_dataset: Sequence[str] | None = None,
    data: str | None = None,
) -> OutOfDistribution:
    """Score held-out images of a run and images of another kind, and compare the scores.

    Args:
        finished: The run.
        images: Held-out images to measure on, evenly spread. Default: all.
        ood_dataset: Images of another kind: `noise`, `shuffled`, `rotated` or `inverted`, made from the run's own, or a
            data set, as for --data.name. Default: those four.
        data: Where the run's data lie now. Default: where they lay.
    """
    import torch

    from imixer.analysis.images import held_out_batches
    from imixer.analysis.ood.data import SYNTHETIC_OOD, ood_batches
    from imixer.analysis.ood.measure import compare_ood
    from imixer.analysis.ood.scores import ood_scores

    def scores(batches: Iterable[Tensor]) -> dict[str, Tensor]:
        parts = [ood_scores(finished.model, batch) for batch in batches]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    names = dict.fromkeys(SYNTHETIC_OOD if ood_dataset is None else ood_dataset)
    own = held_out_batches(finished, images, _BATCH_SIZE, data)
    # all are opened before any is scored, so that a misspelt name costs no time
    others = {name: ood_batches(finished, name, images, _BATCH_SIZE, data) for name in names}
    in_dist = scores(batch for batch, _ in own)
    return compare_ood(in_dist, {name: scores(batches) for name, batches in others.items()})


def numbers(comparison: OutOfDistribution) -> dict[str, Any]:
    """Collect what is written as JSON."""
    from imixer.analysis.ood.measure import RESAMPLES
    from imixer.analysis.ood.scores import SCORES

    return {
        "images": _count(comparison.in_dist),
        "scores": {name: asdict(SCORES[name]) for name in comparison.in_dist},
        "missing": list(comparison.missing),
        "intervals": f"95 %, percentiles of {RESAMPLES} bootstrap resamples, in and out drawn apart",
        "ood_datasets": {
            ood_dataset: {
                "images": _count(comparison.out_dist[ood_dataset]),
                "detection": {
                    name: {
                        measure: dict(zip(("estimate", "lower", "upper"), interval, strict=True))
                        for measure, interval in asdict(detection).items()
                    }
                    for name, detection in detections.items()
                },
            }
            for ood_dataset, detections in comparison.detections.items()
        },
    }


def _count(scores: dict[str, Tensor]) -> int:
    return len(next(iter(scores.values())))


def table(comparison: OutOfDistribution) -> Table:
    """Make the table of the screen, a row per data set and score."""
    from imixer.analysis.ood.scores import SCORES

    made = Table("out", "score", "AUROC %", "AUPR in %", "AUPR out %", "FPR at 95 % TPR", box=None)
    for column in made.columns[2:]:
        column.justify = "right"
    for ood_dataset, detections in comparison.detections.items():
        for number, (name, d) in enumerate(detections.items()):
            cells = map(_per_cent, (d.auroc, d.aupr_in, d.aupr_out, d.fpr95))
            made.add_row("" if number else ood_dataset, SCORES[name].label, *cells)
    return made


def _per_cent(interval: Interval) -> str:
    estimate, lower, upper = (f"{100 * value:.1f}" for value in interval)
    return f"{estimate} ({lower}-{upper})"


def show(comparison: OutOfDistribution, console: Console) -> None:
    """Print the table, how each score is computed, and which ones the model does not have."""
    from imixer.analysis.ood.scores import SCORES

    images = _count(comparison.in_dist)
    console.print(f"{images:,} held-out images (in) against others (out), with 95 % intervals")
    console.print(table(comparison))
    console.print("all scores are meant to be higher on in; an AUROC below 50 % says that one is not")
    for name in comparison.in_dist:
        console.print(f"{SCORES[name].label}: {SCORES[name].formula}")
    if comparison.missing:
        console.print(f"the model of this run has no {', '.join(SCORES[name].label for name in comparison.missing)}")


_LINES = ("-", "--", "-.", ":")
_FEWEST_BINS, _MOST_BINS = 4, 30


def draw(comparison: OutOfDistribution) -> Figure:
    """Draw receiver operating characteristics (above), a panel per data set, and histograms (below), one per score."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    from imixer.analysis.ood.scores import SCORES
    from imixer.plotting import DOUBLE, print_figure

    sets, names = list(comparison.out_dist), list(comparison.in_dist)
    with print_figure(max(DOUBLE, 1.7 * len(sets)), 4.4) as figure:
        halves: Any = figure.subfigures(2, 1, height_ratios=[1.15, 1])
        above, below = halves
        for axes, ood_dataset in zip(_row(above, len(sets)), sets, strict=True):
            for number, name in enumerate(names):
                curve = _characteristic(
                    comparison.in_dist[name].numpy(), comparison.out_dist[ood_dataset][name].numpy()
                )
                axes.plot(*curve, **_style(number), label=SCORES[name].label)
            axes.plot([0, 1], [0, 1], color="0.7", lw=0.6, zorder=0)
            title = f"against {for_figure(Path(ood_dataset).name, 24)}"
            axes.set(xlabel="share of out accepted", title=title, aspect="equal")
        above.axes[0].set_ylabel("share of in accepted")
        above.legend(*above.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        for axes, name in zip(_row(below, len(names)), names, strict=True):
            samples = [scores[name].numpy() for scores in (comparison.in_dist, *comparison.out_dist.values())]
            shown = [values[np.isfinite(values)] for values in samples]
            low, high = np.percentile(np.concatenate(shown), [0.5, 99.5])
            ends = np.linspace(low, high, _bins(min(map(len, shown))) + 1)
            for number, (label, values) in enumerate(zip(("in", *sets), shown, strict=True), -1):
                kind = {"color": "0.8", "histtype": "stepfilled"} if label == "in" else _style(number)
                axes.hist(values.clip(ends[0], ends[-1]), ends, density=True, label=for_legend(Path(label).name, 24),
                          **{"histtype": "step", **kind})  # fmt: skip
            axes.set(xlabel=SCORES[name].label, yticks=[])
            axes.xaxis.set_major_locator(MaxNLocator(3))
        below.axes[0].set_ylabel("density")
        below.legend(*below.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _bins(images: int) -> int:
    """Choose the number of bins by Rice's rule: with few images, many bins would show single ones."""
    return max(_FEWEST_BINS, min(_MOST_BINS, round(2 * images ** (1 / 3))))


def _row(part: Any, count: int) -> Any:
    row = part.subplots(1, count, squeeze=False)[0]
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
    return row


def _style(number: int) -> dict[str, Any]:
    from imixer.plotting import COLORS

    return {"color": COLORS[number % len(COLORS)], "ls": _LINES[number % len(_LINES)]}


def _characteristic(in_dist: np.ndarray, out_dist: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of out and of in at or above each threshold, falling, after a first of 0."""
    import numpy as np

    thresholds = np.unique(np.concatenate([in_dist, out_dist]))[::-1]
    shares = [1 - np.searchsorted(np.sort(each), thresholds) / len(each) for each in (out_dist, in_dist)]
    return np.append(0, shares[0]), np.append(0, shares[1])


ANALYSIS = Analysis(
    name="ood",
    summary="whether energies, residuals and logits tell images of another kind from the run's own",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("ood", "Ood", draw, for_print=True),),
)
