"""Detection of images of another kind, on the screen."""

from rich.console import Console
from rich.table import Table

from imixer.analysis.ood import OutOfDistribution
from imixer.analysis.ood_detection import Interval
from imixer.analysis.ood_scores import SCORES


def report_ood(found: OutOfDistribution, console: Console) -> None:
    """A row per set and score.

    Args:
        found: What `compare_ood` gave.
        console: Where to print.
    """
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
