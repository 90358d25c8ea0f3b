"""Write down and show accuracy under attack: `imixer evaluate --adversarial`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis
from imixer.analysis.robustness.attack import Attack

if TYPE_CHECKING:
    from imixer.analysis.robustness.adversarial import AttackScores
    from imixer.training.finished_run import FinishedRun

_BATCH_SIZE = 64


def check(
    *,
    epsilon: Sequence[float] = Attack.epsilons,
    steps: int = Attack.steps,
    step_size: float | None = None,
    **_: object,
) -> None:
    """Raise InputError if the attack is impossible; the arguments are those of `measure`."""
    Attack(epsilon, steps, step_size)


def measure(
    finished: FinishedRun,
    *,
    images: int | None = None,
    epsilon: Sequence[float] = Attack.epsilons,
    steps: int = Attack.steps,
    step_size: float | None = None,
    data: str | None = None,
) -> AttackScores:
    """Attack a run on its held-out images, at the size of the model's input.

    Args:
        finished: The run.
        images: Held-out images, evenly spread. Default: all.
        epsilon: Largest changes of a pixel in an attack, of 255.
        steps: Steps of an attack.
        step_size: Change of a pixel in a step, of 255. Default: 2.5 epsilon / steps.
        data: Where the run's data lie now. Default: where they lay.
    """
    from imixer.analysis.images import count_held_out, held_out_batches, pixels_of
    from imixer.analysis.robustness.adversarial import score_attack

    return score_attack(
        finished.model,
        held_out_batches(finished, images, _BATCH_SIZE, data),
        pixels_of(finished),
        Attack(epsilon, steps, step_size),
        total=count_held_out(finished, images),
    )


def numbers(scores: AttackScores) -> dict[str, Any]:
    """Collect what is written as JSON."""
    return {
        "images": scores.survives.shape[1],
        "attack": "PGD, L-infinity, on the cross entropy, one random start",
        "steps": scores.attack.steps,
        "accuracy": [
            {
                "epsilon": epsilon,
                "step_size": scores.attack.step(epsilon) if epsilon else None,
                "accuracy": float(accuracy),
                "standard_error": float(error),
            }
            for epsilon, accuracy, error in zip(scores.epsilons, scores.accuracy, scores.accuracy_error, strict=True)
        ],
    }


def table(scores: AttackScores) -> Table:
    """Make the table of the screen, a row per epsilon."""
    made = Table("epsilon", "step", "accuracy", "", box=None)
    for column in made.columns:
        column.justify = "right"
    for epsilon, accuracy, error in zip(scores.epsilons, scores.accuracy, scores.accuracy_error, strict=True):
        step = f"{scores.attack.step(epsilon):g}/255" if epsilon else "-"
        made.add_row(f"{epsilon:g}/255", step, f"{accuracy:.2%}", f"+- {error:.2%}")
    return made


def show(scores: AttackScores, console: Console) -> None:
    """Print what was attacked, and the table."""
    console.print(
        f"accuracy of {scores.survives.shape[1]:,} held-out images under PGD, {scores.attack.steps} steps, one random "
        "start: an upper bound of what stronger attacks leave"
    )
    console.print(table(scores))


ANALYSIS = Analysis(
    name="adversarial",
    summary="accuracy under attack by PGD (L-infinity)",
    measure=measure,
    numbers=numbers,
    show=show,
    check=check,
    beside_run=True,
)
