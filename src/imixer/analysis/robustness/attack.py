"""Describe an attack. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imixer.errors import InputError

_MOST_STEPS = 10_000
_REACH = 2.5  # all steps together, in epsilons: from one side of the ball to the other, and some more


@dataclass(frozen=True)
class Attack:
    """Describe PGD within several epsilons, for `score_attack`.

    Args:
        epsilons: Largest changes of a pixel, of 255. They are put in rising order.
        steps: Steps of the attack.
        step_size: Change of a pixel in a step, of 255. Default: 2.5 epsilon / steps.

    Raises:
        InputError: If an epsilon or the step size is not above 0 and up to 255, or steps is not 1 to 10,000.
    """

    epsilons: Sequence[float] = (1.0, 2.0, 4.0, 8.0)
    steps: int = 20
    step_size: float | None = None

    def __post_init__(self) -> None:
        if not self.epsilons or not all(0 < epsilon <= 255 for epsilon in self.epsilons):
            raise InputError(f"epsilon is {list(self.epsilons)}; give numbers above 0, up to 255")
        if not 1 <= self.steps <= _MOST_STEPS:
            raise InputError(f"steps is {self.steps}; give 1 or more, at most {_MOST_STEPS:,}")
        if self.step_size is not None and not 0 < self.step_size <= 255:
            raise InputError(f"step_size is {self.step_size}; give a number above 0, up to 255")
        object.__setattr__(self, "epsilons", tuple(sorted(set(self.epsilons))))

    def step(self, epsilon: float) -> float:
        """Return the size of a step within an epsilon, both of 255."""
        return _REACH * epsilon / self.steps if self.step_size is None else self.step_size
