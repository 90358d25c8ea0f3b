"""Robustness on the screen."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from imixer.analysis.robustness.adversarial import AttackScores
from imixer.analysis.robustness.corruptions import GROUPS, SEVERITIES, SMALLEST, CorruptionScores


def report_corruptions(found: CorruptionScores, file: Path, console: Console) -> None:
    """A row per corruption, and the means.

    Args:
        found: What `score_corruptions` gave.
        file: Where it was written.
        console: Where to print.
    """
    table = Table("corruption", "", *(f"severity {s}" for s in SEVERITIES), "mean", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    rows = dict(zip(found.names, found.accuracy, strict=True))
    for group, names in GROUPS.items():
        for name in names:
            if name in rows:
                shares = [*rows[name].tolist(), float(rows[name].mean())]
                table.add_row(group, name.replace("_", " "), *(f"{100 * share:.1f}" for share in shares))
    console.print(f"accuracy in % on {len(found.clean):,} corrupted held-out images")
    console.print(table)
    (mean, error), (rise, rise_error) = found.mean_error, found.mean_rise
    console.print(
        f"clean {found.clean.double().mean():.2%}  mean corruption error {mean:.2%} +- {error:.2%}, above the clean "
        f"error by {rise:.2%} +- {rise_error:.2%}"
    )
    if found.left_out:
        left_out = ", ".join(found.left_out).replace("_", " ")
        console.print(f"made for {SMALLEST} pixels a side and more, and left out: {left_out}")
    console.print(f"written: {file}")


def report_adversarial(found: AttackScores, file: Path, console: Console) -> None:
    """A row per epsilon.

    Args:
        found: What `score_attack` gave.
        file: Where it was written.
        console: Where to print.
    """
    table = Table("epsilon", "step", "accuracy", "", box=None)
    for column in table.columns:
        column.justify = "right"
    for epsilon, accuracy, error in zip(found.epsilons, found.accuracy, found.accuracy_error, strict=True):
        step = f"{found.attack.step(epsilon):g}/255" if epsilon else "-"
        table.add_row(f"{epsilon:g}/255", step, f"{accuracy:.2%}", f"+- {error:.2%}")
    console.print(
        f"accuracy of {found.survives.shape[1]:,} held-out images under PGD, {found.attack.steps} steps, one random "
        "start: an upper bound of what stronger attacks leave"
    )
    console.print(table)
    console.print(f"written: {file}")
