"""Whether two samples of trials differ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Optional

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """Difference of two means, in the samples' unit.

    Args:
        difference: The mean less the baseline's.
        low, high: Confidence interval of the difference at `CONFIDENCE`. None if nothing can be said about it.
        p: p-value of Welch's test of no difference, two-sided. None likewise.
    """

    difference: float
    low: Optional[float] = None
    high: Optional[float] = None
    p: Optional[float] = None


def compare(sample: Sequence[float], baseline: Sequence[float]) -> Optional[Comparison]:
    """Welch's test, which does not take the spreads for equal.

    Args:
        sample, baseline: Results of independent trials.

    Returns:
        None if a sample is empty. Without interval and p if one has a single trial, or neither varies.
    """
    from scipy.stats import ttest_ind  # takes half a second

    if not sample or not baseline:
        return None
    difference = fmean(sample) - fmean(baseline)
    if min(len(sample), len(baseline)) < 2 or len(set(sample)) == len(set(baseline)) == 1:
        return Comparison(difference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about the precision of a sample that does not vary
        found = ttest_ind(sample, baseline, equal_var=False)
    low, high = found.confidence_interval(CONFIDENCE)
    return Comparison(difference, float(low), float(high), float(found.pvalue))
