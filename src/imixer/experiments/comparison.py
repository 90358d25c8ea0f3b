"""Compare the mean accuracy of two rows, and judge all comparisons of a page together.

A t-test shows a difference. A confidence interval inside a margin shows an equivalence. Both are corrected by Holm for
the number of comparisons on the page. Where neither shows anything, the comparison is undecided: a large p shows
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev, variance
from typing import Literal

from imixer.errors import InputError

CONFIDENCE = 0.95
POWER = 0.8
MARGIN = 0.5  # points of accuracy: what the paper's Table 1 counts as an improvement in size S

Test = Literal["paired", "Welch"]
ComparisonVerdict = Literal["larger", "smaller", "equivalent", "undecided"]


@dataclass(frozen=True)
class MeanDifference:
    """The difference of two means, with what a t-test needs, in the unit of the trials. `compare_means` makes one.

    Args:
        difference: The mean less the baseline's. In a paired test, over the seeds that both have.
        test: `paired` by seed, or `Welch`.
        pairs: Number of seeds that both have.
        error: Standard error of the difference. None where it cannot be estimated, for want of trials or of spread.
        df: Degrees of freedom of t. None where there is no error.
        exact_p: Two-sided p-value of another test, where there is no error.
    """

    difference: float
    test: Test
    pairs: int
    error: float | None = None
    df: float | None = None
    exact_p: float | None = None

    @property
    def p(self) -> float | None:
        """Two-sided p-value of no difference, uncorrected."""
        return self.exact_p if self.error is None else min(1.0, 2 * self._tail(abs(self.difference) / self.error))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of the difference at `CONFIDENCE`, uncorrected."""
        if self.error is None or self.df is None:
            return None
        half = _quantile((1 + CONFIDENCE) / 2, self.df) * self.error
        return self.difference - half, self.difference + half

    def p_equivalence(self, margin: float) -> float | None:
        """Return the p-value of a difference of `margin` or more.

        It is at most 1 - `CONFIDENCE` if and only if `interval` lies inside the margin. Two one-sided tests (TOST) at
        that level take an interval of 90 %; this one is stricter, so that the interval which is shown decides.

        Args:
            margin: What counts as no difference, in the unit of the trials.
        """
        return None if self.error is None else min(1.0, 2 * self._tail((margin - abs(self.difference)) / self.error))

    def detectable(self, level: float) -> float | None:
        """Return the smallest true difference that such trials find with probability `POWER`.

        Args:
            level: Level of the two-sided test.

        Returns:
            The difference, for the spread that was observed. None where there is no spread to go by.
        """
        if self.error is None or self.df is None:
            return None
        return self.error * _noncentrality(self.df, level)

    def _tail(self, value: float) -> float:
        """Return P(T > value)."""
        from scipy.special import stdtr

        return float(stdtr(self.df, -value))


@dataclass(frozen=True)
class Judgement:
    """What a page may say of one comparison. `judge` makes one.

    Args:
        comparison: The comparison.
        margin: What counts as no difference.
        verdict: `larger` or `smaller` than the baseline; `equivalent` within the margin; or `undecided`.
        within: Whether the equivalence is shown. A difference may be significant and yet lie within the margin.
        p: p-value of no difference, corrected. None where there is no test.
        p_equivalence: p-value of a difference of the margin or more, corrected. None where there is no test.
        detectable: See `MeanDifference.detectable`, at the level of the first step of the correction.
    """

    comparison: MeanDifference
    margin: float
    verdict: ComparisonVerdict
    within: bool = False
    p: float | None = None
    p_equivalence: float | None = None
    detectable: float | None = None


def check_margin(margin: float) -> None:
    """Check that a user's margin is possible, before anything is trained or read.

    Args:
        margin: Points within which a difference counts as none.

    Raises:
        InputError: If it is not a number above 0.
    """
    if not 0 < margin < math.inf:
        raise InputError(f"margin is {margin:g}; give a number of points above 0")


def compare_means(
    sample: Mapping[int, float], baseline: Mapping[int, float], *, shared_weights: bool = True
) -> MeanDifference | None:
    """Compare the mean of a sample with that of a baseline.

    Choose the paired test where trials of one seed begin with the same weights: what the seed does to both cancels.
    Where they cannot, since the parameters are others, a seed gives the two nothing but order and augmentation in
    common. Welch's test, which does not take the spreads for equal, has up to twice the degrees of freedom there, and
    a positive correlation that is left makes it only more cautious.

    Args:
        sample: Accuracy of each trial, by seed.
        baseline: Accuracy of each trial of the baseline, by seed.
        shared_weights: Whether trials of one seed begin with the same weights.

    Returns:
        None if a sample is empty, or a paired test has no pair.
    """
    seeds = sorted(sample.keys() & baseline.keys())
    if shared_weights:
        if not seeds:
            return None
        differences = [sample[seed] - baseline[seed] for seed in seeds]
        mean = fmean(differences)
        if len(seeds) < 2 or not _varies(differences):
            return MeanDifference(mean, "paired", len(seeds))
        return MeanDifference(mean, "paired", len(seeds), stdev(differences) / math.sqrt(len(seeds)), len(seeds) - 1)
    if not sample or not baseline:
        return None
    values, others = list(sample.values()), list(baseline.values())
    mean = fmean(values) - fmean(others)
    if min(len(values), len(others)) < 2 or not (_varies(values) or _varies(others)):
        return MeanDifference(mean, "Welch", len(seeds))
    parts = [variance(each) / len(each) for each in (values, others)]
    df = sum(parts) ** 2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (values, others), strict=True))
    return MeanDifference(mean, "Welch", len(seeds), math.sqrt(sum(parts)), df)


def judge(comparisons: Sequence[tuple[MeanDifference, float]]) -> list[Judgement]:
    """Judge all comparisons of a page together.

    Holm's correction is made over the tests of no difference, and again over the tests of equivalence. Of the pages on
    which all true differences are zero, at most 5 % call one larger or smaller. Of all pages, at most 5 % call a
    difference equivalent that is not.

    Args:
        comparisons: The comparisons, each with its margin. A margin must be chosen before the trials.

    Returns:
        The judgements, in the same order.

    Raises:
        ValueError: If a margin is not positive.
    """
    for _, margin in comparisons:
        if not 0 < margin < math.inf:
            raise ValueError(f"margin is {margin}; give a number above 0, in points")
    tested = [each.p for each, _ in comparisons]
    p = holm(tested)
    p_equivalence = holm([each.p_equivalence(margin) for each, margin in comparisons])
    level = (1 - CONFIDENCE) / max(1, sum(each is not None for each in tested))
    return [
        _judged(each, margin, p[place], p_equivalence[place], level) for place, (each, margin) in enumerate(comparisons)
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number, by Holm's step-down procedure.

    Args:
        p_values: Uncorrected p-values. None where there was no test, which does not count.

    Returns:
        The corrected p-values, in the same order. Each is compared with the level of the whole family.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for step, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - step) * p))
        corrected[place] = largest
    return corrected


def _judged(
    comparison: MeanDifference, margin: float, p: float | None, p_equivalence: float | None, level: float
) -> Judgement:
    if p is None:
        return Judgement(comparison, margin, "undecided")
    within = p_equivalence is not None and p_equivalence <= 1 - CONFIDENCE
    verdict: ComparisonVerdict = "equivalent" if within else "undecided"
    if p <= 1 - CONFIDENCE:
        verdict = "larger" if comparison.difference > 0 else "smaller"
    return Judgement(comparison, margin, verdict, within, p, p_equivalence, comparison.detectable(level))


_ROUNDING = 5e-4  # of values in points: files keep six digits of an accuracy


def _varies(values: Sequence[float]) -> bool:
    """Tell whether values differ by more than rounding: accuracies are counts of images over their number."""
    return max(values) - min(values) > _ROUNDING


def _quantile(p: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, p))


@lru_cache
def _noncentrality(df: float, level: float) -> float:
    """Return the noncentrality of t at which a two-sided test of a level has the power `POWER`.

    scipy's noncentral t gives NaN at few degrees of freedom. Given s / sigma = sqrt(chi^2 / df), t is normal: its power
    is a mean over the quantiles of chi^2.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import chdtri, ndtr

    critical = _quantile(1 - level / 2, df)
    spreads = np.sqrt(chdtri(df, (np.arange(4000) + 0.5) / 4000) / df)

    def lacking(noncentrality: float) -> float:
        power = ndtr(noncentrality - critical * spreads) + ndtr(-noncentrality - critical * spreads)
        return POWER - float(power.mean())

    return float(brentq(lacking, 0.0, 10 + 3 * critical))
