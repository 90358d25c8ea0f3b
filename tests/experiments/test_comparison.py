"""Tests, intervals, corrections and verdicts, against their formulas, numbers worked out by hand, and simulation."""

import math

import numpy as np
import pytest
from scipy import integrate
from scipy.stats import nct, t

from imixer.experiments.comparison import MeanDifference, compare_means, holm, judge

A, B = [88.1, 88.9, 88.4, 88.7], [87.2, 88.3, 87.9]


def trials(values):
    return dict(enumerate(values))


def tail(value, df):
    """P(|T| > value) of Student's t, by integrating its density."""
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    return 2 * integrate.quad(lambda x: scale * (1 + x * x / df) ** (-(df + 1) / 2), value, math.inf)[0]


def verdicts(*pairs, margin=0.5):
    return [each.verdict for each in judge([(compare_means(trials(a), trials(b)), margin) for a, b in pairs])]


def test_the_paired_test_is_as_by_hand():
    # differences 0.2, 0.4, 0.6: mean 0.4, standard deviation 0.2, error 0.2 / sqrt(3) = 0.11547, t = 3.4641;
    # with 2 degrees of freedom the tail is p = 1 - t / sqrt(2 + t^2) = 0.0742, and t(0.975) = 4.3027
    found = compare_means(trials([1.2, 3.4, 2.6]), trials([1.0, 3.0, 2.0]))
    assert (found.test, found.pairs, found.df) == ("paired", 3, 2)
    assert found.difference == pytest.approx(0.4)
    assert found.error == pytest.approx(0.11547, rel=1e-4)
    assert found.p == pytest.approx(0.0742, abs=5e-5)
    assert found.interval == pytest.approx((0.4 - 4.3027 * 0.11547, 0.4 + 4.3027 * 0.11547), rel=1e-4)


def test_pairing_takes_the_seeds_that_both_have_whatever_their_order():
    found = compare_means({7: 2.0, 0: 1.5, 3: 9.0}, {0: 1.0, 5: 100.0, 7: 1.0})
    assert (found.difference, found.pairs, found.df) == (0.75, 2, 1)
    assert found.error == pytest.approx(0.25)


def test_what_all_trials_of_a_seed_have_in_common_cancels():
    common = [80.0, 90.0, 85.0]
    a, b = trials([c + d for c, d in zip(common, [0.3, 0.4, 0.35], strict=True)]), trials(common)
    paired, unpaired = (compare_means(a, b, shared_weights=shared) for shared in (True, False))
    assert np.ptp(paired.interval) < 0.3 < 20 < np.ptp(unpaired.interval)


def test_interval_and_p_of_an_unpaired_test_are_welchs():
    found = compare_means(trials(A), trials(B), shared_weights=False)
    parts = [np.var(sample, ddof=1) / len(sample) for sample in (A, B)]
    df = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (A, B), strict=True))
    assert found.test == "Welch"
    assert found.difference == pytest.approx(np.mean(A) - np.mean(B))
    assert found.p == pytest.approx(tail(found.difference / math.sqrt(sum(parts)), df), rel=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_the_interval_ends_where_the_test_would_be_at_5_percent(shared):
    found = compare_means(trials(A), trials(B), shared_weights=shared)
    for end in found.interval:
        assert tail(abs(end - found.difference) / found.error, found.df) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_the_order_gives_the_sign_only(shared):
    one = compare_means(trials(A), trials(B), shared_weights=shared)
    other = compare_means(trials(B), trials(A), shared_weights=shared)
    assert one.difference == pytest.approx(-other.difference)
    assert one.interval == pytest.approx([-end for end in reversed(other.interval)])
    assert (one.p, one.detectable(0.05)) == pytest.approx((other.p, other.detectable(0.05)))


@pytest.mark.parametrize("margin", [0.05, 0.39, 0.41, 0.5, 0.95, 3.0])
def test_equivalence_is_shown_if_and_only_if_the_interval_lies_inside_the_margin(margin):
    for values in ([0.2, 0.4, 0.6], [-0.2, -0.4, -0.6], [-0.1, 0.02, 0.05], [0.0, 0.01, 0.3]):
        found = compare_means(trials(values), trials([0.0] * 3))
        low, high = found.interval
        assert (found.p_equivalence(margin) <= 0.05) == (-margin < low and high < margin)
        (judgement,) = judge([(found, margin)])
        assert judgement.within == (-margin < low and high < margin)


@pytest.mark.parametrize(("n", "level"), [(10, 0.05), (10, 0.005), (20, 0.05), (4, 0.02)])
def test_the_detectable_difference_is_found_with_80_percent_power(n, level):
    rng = np.random.default_rng(0)
    found = compare_means(trials(rng.normal(0, 1, n)), trials([0.0] * n))
    noncentrality, critical = found.detectable(level) / found.error, t.isf(level / 2, n - 1)
    draws = rng.normal(noncentrality, 1, 200_000) / np.sqrt(rng.chisquare(n - 1, 200_000) / (n - 1))
    assert np.mean(np.abs(draws) > critical) == pytest.approx(0.8, abs=0.005)


def test_the_detectable_difference_agrees_with_the_noncentral_t():
    found = MeanDifference(0.0, "paired", 10, 1.0, 9)
    assert nct.sf(t.isf(0.0025, 9), 9, found.detectable(0.005)) == pytest.approx(0.8, abs=1e-4)


def test_holm_is_as_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04, and none may fall below the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_verdicts_follow_from_intervals():
    near, far, wide = [0.01, -0.01, 0.0, 0.02], [2.0, 2.1, 1.9, 2.05], [3.0, -2.0, 1.0, 0.0]
    zero, minus = [0.0] * 4, [-value for value in far]
    assert verdicts((near, zero), (far, zero), (minus, zero), (wide, zero)) == [
        "equivalent",
        "larger",
        "smaller",
        "undecided",
    ]


def test_a_difference_that_is_found_may_lie_within_the_margin():
    (judgement,) = judge([(compare_means(trials([0.1, 0.11, 0.09, 0.1]), trials([0.0] * 4)), 0.5)])
    assert (judgement.verdict, judgement.within) == ("larger", True)


def test_a_page_of_many_comparisons_asks_more_of_each():
    one = ([0.2, 0.45, 0.6, 0.5], [0.0] * 4)
    assert verdicts(one) == ["larger"]
    assert verdicts(*[one] * 20) == ["undecided"] * 20
    alone, among = (judge([(compare_means(*map(trials, one)), 0.5)] * count)[0].detectable for count in (1, 20))
    assert among > 2 * alone


def test_a_large_p_is_no_equivalence():
    (judgement,) = judge([(compare_means(trials([3.0, -3.0, 0.1]), trials([0.0] * 3)), 0.5)])
    assert judgement.p > 0.9 and judgement.verdict == "undecided"


def simulate(rng, deltas, spread, trials_per_row=3, margin=0.5):
    """A page: rows that share a seed's luck, and their true differences to the baseline."""
    luck = rng.normal(0, 5, trials_per_row)
    baseline = trials(luck + rng.normal(0, spread, trials_per_row))
    page = [
        (compare_means(trials(luck + delta + rng.normal(0, spread, trials_per_row)), baseline), margin)
        for delta in deltas
    ]
    judgements = judge(page)
    return [each.verdict for each in judgements], [each.within for each in judgements]


def test_no_more_than_5_percent_of_pages_call_a_zero_a_difference():
    rng = np.random.default_rng(0)
    wrong = sum(bool({"larger", "smaller"} & set(simulate(rng, [0.0] * 8, 0.3)[0])) for _ in range(400))
    assert wrong / 400 < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    plain = np.mean([compare_means(*(trials(rng.normal(0, 1, 3)) for _ in range(2))).p < 0.05 for _ in range(2000)])
    assert plain == pytest.approx(0.05, abs=0.015)  # each alone has its level; without correction 8 would have 34 %


def test_no_more_than_5_percent_of_pages_call_a_difference_of_the_margin_equivalent():
    rng = np.random.default_rng(1)
    wrong = sum(any(simulate(rng, [0.5, -0.5, 0.5, -0.5], 0.05)[1]) for _ in range(400))
    assert wrong / 400 < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_true_equivalence_and_true_differences_are_found_where_the_spread_allows():
    rng = np.random.default_rng(2)
    found, _ = simulate(rng, [0.0, 0.0, 2.0, -2.0], 0.02, trials_per_row=10)
    assert found == ["equivalent", "equivalent", "larger", "smaller"]


@pytest.mark.parametrize("shared", [True, False])
def test_the_interval_covers_the_truth_as_often_as_it_says(shared):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        sample, baseline = trials(rng.normal(1.0, 3.0, 6)), trials(rng.normal(0.0, 0.5, 10))
        low, high = compare_means(sample, baseline, shared_weights=shared).interval
        hits += low < 1.0 < high
    assert 0.93 < hits / 1000 < 0.97


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_said_is_left_out():
    for shared in (True, False):
        assert compare_means({}, trials(B), shared_weights=shared) is None
        assert compare_means(trials(A), {}, shared_weights=shared) is None
        assert compare_means({0: 3.0}, {0: 1.0}, shared_weights=shared).p is None
    assert compare_means({0: 1.0}, {1: 2.0}) is None
    assert compare_means({0: 3.0}, {0: 1.0, 1: 2.0}, shared_weights=False) == MeanDifference(1.5, "Welch", 1)
    # spreads that are rounding only are none: 0.1 + 0.2 is not 0.3
    found = compare_means({0: 0.1 + 0.2, 1: 0.3}, {0: 0.0, 1: 0.0})
    assert (found.error, found.interval, found.p, found.p_equivalence(1.0), found.detectable(0.05)) == (None,) * 5
    # nor do the six digits that files keep of an accuracy: one image of 360 each
    right, wrong = {0: 355, 1: 354}, {0: 354, 1: 353}
    kept, others = ({seed: 100 * float(f"{n / 360:.6g}") for seed, n in each.items()} for each in (right, wrong))
    assert compare_means(kept, others).error is None
    # one that varies is enough
    assert compare_means({0: 3.0, 1: 3.0}, {0: 1.0, 1: 2.0}, shared_weights=False).p is not None
    (judgement,) = judge([(found, 0.5)])
    assert (judgement.verdict, judgement.p) == ("undecided", None)


@pytest.mark.parametrize("margin", [0, -1, math.nan, math.inf])
def test_a_margin_that_is_none_is_refused(margin):
    with pytest.raises(ValueError, match="margin is"):
        judge([(compare_means(trials(A), trials(B)), margin)])
