"""Welch's test, against its formulas and against repeated sampling."""

import math

import numpy as np
import pytest
from scipy import integrate

from imixer.experiments.comparison import Comparison, compare

A, B = [88.1, 88.9, 88.4, 88.7], [87.2, 88.3, 87.9]


def tail(t, df):
    """P(|T| > t) of Student's t, by integrating its density."""
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    return 2 * integrate.quad(lambda x: scale * (1 + x * x / df) ** (-(df + 1) / 2), t, math.inf)[0]


def test_interval_and_p_are_welchs():
    found = compare(A, B)
    parts = [np.var(sample, ddof=1) / len(sample) for sample in (A, B)]
    error = math.sqrt(sum(parts))
    df = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (A, B), strict=True))
    assert found.difference == pytest.approx(np.mean(A) - np.mean(B))
    assert found.p == pytest.approx(tail(found.difference / error, df), rel=1e-6)
    for end in (found.low, found.high):  # the interval ends where the test would be at 5 %
        assert tail(abs(end - found.difference) / error, df) == pytest.approx(0.05, rel=1e-6)
    assert found.low < found.difference < found.high


def test_the_order_gives_the_sign_only():
    one, other = compare(A, B), compare(B, A)
    assert (one.difference, one.low, one.high, one.p) == pytest.approx(
        (-other.difference, -other.high, -other.low, other.p)
    )


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        found = compare(rng.normal(1.0, 3.0, 6).tolist(), rng.normal(0.0, 0.5, 10).tolist())
        hits += found.low < 1.0 < found.high
    assert 0.93 < hits / 1000 < 0.97


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_said_is_left_out():
    assert compare([], B) is None
    assert compare(A, []) is None
    assert compare([3.0], [1.0, 2.0]) == Comparison(1.5)
    assert compare([3.0, 3.0], [1.0, 1.0, 1.0]) == Comparison(2.0)
    assert compare([3.0, 3.0], [1.0, 2.0]).p is not None  # one sample that varies is enough
