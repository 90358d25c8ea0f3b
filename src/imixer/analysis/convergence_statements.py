"""Test what the paper reads off Figures 3, 5 and 6 on a measurement of models trained with n = 1, 2 and 4.

A statement is a conjunction of conditions. Each condition is about the mean over the images of one number per image.
The t interval of that mean decides. Inside what the statement asks for, the condition is confirmed; outside, it is not
confirmed; otherwise it is not decidable. The intervals of a statement hold together with 95 % (Bonferroni).

The rate of an image in a block is the geometric mean of Norm_(a+1) / Norm_a over all a.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import t as student
from torch import Tensor

from imixer.analysis.convergence import Convergence

StatementVerdict = Literal["confirmed", "not confirmed", "not decidable"]

TRAINED = (1, 2, 4)
CONFIDENCE = 0.95
SAME = 1.5  # rates within this factor of each other are about the same, beyond it clearly different
SETTLED = 0.1  # of the first step: where a further step would change less, the iteration has converged


@dataclass(frozen=True)
class Condition:
    """Hold one condition of a statement, and what a measurement says of it.

    Attributes:
        what: Name of the number.
        asked: What the number has to be.
        value: Mean over the images; of a ratio the geometric one. NaN if it cannot be measured.
        low: Lower end of the interval.
        high: Upper end of the interval.
        verdict: Whether the interval lies inside what is asked, outside, or neither.
    """

    what: str
    asked: str
    value: float
    low: float
    high: float
    verdict: StatementVerdict


@dataclass(frozen=True)
class Statement:
    """Hold a statement of the paper, and what a measurement says of it.

    Attributes:
        text: The statement.
        criterion: How it is tested.
        conditions: Conditions, all of which have to hold. Empty if the measurement does not allow to test them.
        missing: Reason if there are none.
    """

    text: str
    criterion: str
    conditions: tuple[Condition, ...]
    missing: str = ""

    @property
    def verdict(self) -> StatementVerdict:
        """Verdict: confirmed if all conditions are, not confirmed if one is not, otherwise not decidable."""
        verdicts = {condition.verdict for condition in self.conditions}
        if "not confirmed" in verdicts:
            return "not confirmed"
        return "confirmed" if verdicts == {"confirmed"} else "not decidable"


def agree(verdicts: Sequence[StatementVerdict]) -> StatementVerdict:
    """Reduce the verdicts of several trials to one: theirs if they agree, otherwise not decidable."""
    return verdicts[0] if len(set(verdicts)) == 1 else "not decidable"


def first_block(measurements: Sequence[Convergence]) -> Statement:
    """Test that in the first block n = 2 and n = 4 converge alike and far enough, and n = 1 does not.

    Args:
        measurements: Measurements of models on the same images, in any order.

    Source: paper section 5.1, on Figure 3.
    """

    def conditions(models: dict[int, Convergence]) -> list[_Asked]:
        def left(n: int) -> Tensor:
            norms = models[n].blocks[0].norms
            return (norms[n] / norms[0]).log()

        rates = {n: _log_rates(models[n])[0] for n in (2, 4)}
        settled = (-math.inf, math.log(SETTLED))
        return [
            _Asked("rate, n = 2 over n = 4", f"{1 / SAME:.3g} to {SAME:g}", rates[2] - rates[4], _ABOUT_THE_SAME),
            *(_Asked(f"Norm_{n} / Norm_0, n = {n}", f"below {SETTLED:g}", left(n), settled) for n in (2, 4)),
            _Asked("Norm_1 / Norm_0, n = 1", f"above {SETTLED:g}", left(1), settled, outside=True),
        ]

    return _test(
        "Block 0: n = 2 and n = 4 converge at about the same rate, and two to four steps suffice; one does not.",
        f"The rates of n = 2 and n = 4 are within a factor of {SAME:g} of each other; after its own n steps, a further "
        f"one would change less than {SETTLED:g} of the first for n = 2 and n = 4, and more for n = 1.",
        measurements,
        conditions,
    )


def first_two_blocks(measurements: Sequence[Convergence]) -> Statement:
    """Test that the first two blocks show a clear difference between n = 1 and the two others.

    Args:
        measurements: Measurements of models on the same images, in any order.

    Source: paper appendix C.3, on Figures 5 and 6.
    """

    def conditions(models: dict[int, Convergence]) -> list[_Asked]:
        rates = {n: _log_rates(model) for n, model in models.items()}
        asked = f"below {1 / SAME:.3g} or above {SAME:g}"
        return [
            _Asked(
                f"block {block}: rate, n = 1 over n = {n}",
                asked,
                rates[1][block] - rates[n][block],
                _ABOUT_THE_SAME,
                outside=True,
            )
            for block in (0, 1)
            for n in (2, 4)
        ]

    return _test(
        "The first two blocks show a clear difference between n = 1 and the two others.",
        f"In both blocks the rate of n = 1 differs from those of n = 2 and n = 4 by more than a factor of {SAME:g}.",
        measurements,
        conditions,
        least_blocks=2,
    )


def middle_blocks(measurements: Sequence[Convergence]) -> Statement:
    """Test that the blocks between the first two and the last converge faster than these.

    Args:
        measurements: Measurements of models on the same images, in any order.

    Source: paper appendix C.3, on Figures 5 and 6.
    """

    def conditions(models: dict[int, Convergence]) -> list[_Asked]:
        asked = []
        for n, model in models.items():
            rates = _log_rates(model)
            middle = rates[2:-1].mean(0)
            for name, others in (("first two", rates[:2].mean(0)), ("last", rates[-1])):
                what = f"n = {n}: rate, middle over {name}"
                asked.append(_Asked(what, "below 1", middle - others, (-math.inf, 0.0)))
        return asked

    return _test(
        "Middle blocks converge fast.",
        "In each model the rate of the blocks between the first two and the last, in the geometric mean, is smaller "
        "than that of the first two, and than that of the last.",
        measurements,
        conditions,
        least_blocks=4,
    )


def last_block(measurements: Sequence[Convergence]) -> Statement:
    """Test that images differ most in the last block.

    Args:
        measurements: Measurements of models on the same images, in any order.

    Source: paper appendix C.3, on Figures 5 and 6.
    """

    def conditions(models: dict[int, Convergence]) -> list[_Asked]:
        asked = []
        for n, model in models.items():
            rates = _log_rates(model)
            deviation = (rates - rates.median(1, keepdim=True).values).abs()
            rival = int(deviation[:-1].mean(1).argmax())
            asked.append(
                _Asked(
                    f"n = {n}: deviation, last minus block {rival}",
                    "above 0",
                    deviation[-1] - deviation[rival],
                    (0.0, math.inf),
                    ratio=False,
                    among=len(rates) - 1,
                )
            )
        return asked

    return _test(
        "The last block varies most between images.",
        "In each model the absolute deviation of log(rate) from its median over the images is larger in the last "
        "block than in the one that comes next (difference).",
        measurements,
        conditions,
        least_blocks=2,
    )


@dataclass(frozen=True)
class _Asked:
    """Ask for the mean of `values` (images,) inside `target`, or outside it.

    Args:
        what: Name of the number.
        asked: What it has to be, in words.
        values: Value of each image, (images,); of a ratio, its logarithm.
        target: Lower and upper end.
        outside: Whether the mean has to be outside the target instead.
        ratio: Whether the values are logarithms.
        among: How many numbers this one was chosen from, for the width of the interval.
    """

    what: str
    asked: str
    values: Tensor
    target: tuple[float, float]
    outside: bool = False
    ratio: bool = True
    among: int = 1


_ABOUT_THE_SAME = (-math.log(SAME), math.log(SAME))


def _test(
    text: str,
    criterion: str,
    measurements: Sequence[Convergence],
    conditions: Callable[[dict[int, Convergence]], list[_Asked]],
    least_blocks: int = 1,
) -> Statement:
    models = {model.trained: model for model in measurements}
    missing = ""
    if not set(TRAINED) <= set(models):
        missing = f"it takes models trained with n = {', '.join(map(str, TRAINED))}"
    elif min(len(model.blocks) for model in measurements) < least_blocks:
        missing = f"it takes {least_blocks} blocks, and there are {min(len(model.blocks) for model in measurements)}"
    elif min(model.n_iter for model in measurements) <= max(TRAINED):
        missing = f"it takes more than {max(TRAINED)} iterations"
    elif min(model.images for model in measurements) < 2:
        missing = "it takes two images or more"
    if missing:
        return Statement(text, criterion, (), missing)
    asked = conditions({n: models[n] for n in TRAINED})
    level = 1 - (1 - CONFIDENCE) / sum(each.among for each in asked)
    return Statement(text, criterion, tuple(_decide(each, level) for each in asked))


def _decide(asked: _Asked, level: float) -> Condition:
    mean, low, high = _interval(asked.values, level)
    verdict: StatementVerdict = "not decidable"
    if low >= asked.target[0] and high <= asked.target[1]:
        verdict = "not confirmed" if asked.outside else "confirmed"
    elif low > asked.target[1] or high < asked.target[0]:
        verdict = "confirmed" if asked.outside else "not confirmed"
    value, low, high = (_exp(number) if asked.ratio else number for number in (mean, low, high))
    return Condition(asked.what, asked.asked, value, low, high, verdict)


def _interval(values: Tensor, level: float) -> tuple[float, float, float]:
    """Return the mean of a sample (N,) and the ends of its t interval; NaN, which decides nothing, if not finite."""
    if not values.isfinite().all():
        return math.nan, math.nan, math.nan
    values = values.double()
    half = float(student.ppf((1 + level) / 2, len(values) - 1)) * float(values.std()) / len(values) ** 0.5
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def _exp(number: float) -> float:
    return math.inf if number > 700 else math.exp(number)


def _log_rates(model: Convergence) -> Tensor:
    """Return the logarithm of each block's rate, (blocks, images)."""
    rates = [block.rate for block in model.blocks]
    assert None not in rates  # there are several iterations
    return torch.stack([rate for rate in rates if rate is not None]).log()
