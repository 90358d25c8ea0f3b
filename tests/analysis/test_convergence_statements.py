"""What the paper reads off its figures is confirmed, not confirmed or left open by measurements made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from imixer.analysis.convergence import BlockConvergence, Convergence
from imixer.analysis.convergence_statements import (
    agree,
    first_block,
    first_two_blocks,
    last_block,
    middle_blocks,
)

ALL = (first_block, first_two_blocks, middle_blocks, last_block)
JITTER = torch.linspace(-1, 1, 16, dtype=torch.float64)  # of the images, around the rate of the block


def model(n, rates, spread=0.02, n_iter=10, images=16):
    """A model trained with n, whose block b shrinks by rates[b] a step, and by up to e^spread[b] more or less."""
    spreads = spread if isinstance(spread, list) else [spread] * len(rates)
    blocks = []
    for block, (rate, width) in enumerate(zip(rates, spreads, strict=True)):
        each = math.log(rate) + width * JITTER.roll(5 * block + 3 * n)[:images]  # paired neither by block nor by model
        norms = 0.3 * (torch.arange(n_iter)[:, None] * each).exp()
        blocks.append(BlockConvergence(block, norms, 1 - norms, S=16, C=8, D=4))
    return Convergence(n, tuple(blocks))


def models(rates_by_n, **kwargs):
    return [model(n, rates, **kwargs) for n, rates in rates_by_n.items()]


def verdicts(statement):
    return [condition.verdict for condition in statement.conditions]


@pytest.mark.parametrize(
    ("one", "two", "four", "conditions"),
    [
        (0.2, 0.2, 0.2, ["confirmed"] * 4),
        (0.2, 0.2, 0.25, ["confirmed"] * 4),
        (0.05, 0.2, 0.2, ["confirmed", "confirmed", "confirmed", "not confirmed"]),  # one step suffices
        (0.2, 0.2, 0.05, ["not confirmed", "confirmed", "confirmed", "confirmed"]),  # n = 2 is slower
        (0.6, 0.5, 0.5, ["confirmed", "not confirmed", "confirmed", "confirmed"]),  # two steps leave a quarter
        (0.9, 0.8, 0.8, ["confirmed", "not confirmed", "not confirmed", "confirmed"]),
    ],
)
def test_first_block(one, two, four, conditions):
    found = first_block(models({1: [one], 2: [two], 4: [four]}))
    assert verdicts(found) == conditions
    assert found.verdict == ("confirmed" if set(conditions) == {"confirmed"} else "not confirmed")
    same, left_two, left_four, left_one = (condition.value for condition in found.conditions)
    assert (same, left_two, left_four, left_one) == pytest.approx((two / four, two**2, four**4, one), rel=1e-2)


def test_a_boundary_inside_the_interval_leaves_it_open():
    found = first_block(models({1: [0.1], 2: [0.1**0.5], 4: [0.1**0.5 / 1.5]}, spread=0.05))
    assert verdicts(found) == ["not decidable"] * 2 + ["confirmed", "not decidable"]
    assert found.verdict == "not decidable"


@pytest.mark.parametrize(
    ("one", "others", "verdict"),
    [
        ([0.5, 0.6, 0.1], [0.2, 0.2, 0.1], "confirmed"),
        ([0.1, 0.1, 0.1], [0.2, 0.2, 0.1], "confirmed"),  # clear, whichever is faster
        ([0.2, 0.6, 0.9], [0.2, 0.2, 0.1], "not confirmed"),  # in one block only
        ([0.25, 0.25, 0.9], [0.2, 0.2, 0.1], "not confirmed"),
        ([0.3, 0.6, 0.1], [0.2, 0.2, 0.1], "not decidable"),  # by the factor itself
    ],
)
def test_first_two_blocks(one, others, verdict):
    found = first_two_blocks(models({1: one, 2: others, 4: others}))
    assert found.verdict == verdict
    assert [condition.value for condition in found.conditions] == pytest.approx(
        [one[block] / others[block] for block in (0, 0, 1, 1)], rel=1e-2
    )


def test_first_two_blocks_need_a_difference_from_both_models():
    assert first_two_blocks(models({1: [0.5] * 2, 2: [0.2] * 2, 4: [0.5] * 2})).verdict == "not confirmed"


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        ([0.3, 0.3, 0.1, 0.2, 0.4], "confirmed"),
        ([0.3, 0.3, 0.1, 0.2, 0.1], "not confirmed"),  # the last is faster
        ([0.1, 0.1, 0.2, 0.2, 0.4], "not confirmed"),  # the first two are
        ([0.2, 0.2, 0.2, 0.2, 0.4], "not decidable"),
    ],
)
def test_middle_blocks(rates, verdict):
    found = middle_blocks(models(dict.fromkeys((1, 2, 4), rates)))
    assert found.verdict == verdict
    middle = (rates[2] * rates[3]) ** 0.5
    expected = [middle / (rates[0] * rates[1]) ** 0.5, middle / rates[4]] * 3
    assert [condition.value for condition in found.conditions] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("slow", [1, 2, 4])
def test_middle_blocks_have_to_be_fast_in_every_model(slow):
    rates = {n: [0.3, 0.3, 0.6 if n == slow else 0.1, 0.3] for n in (1, 2, 4)}
    found = middle_blocks(models(rates))
    assert found.verdict == "not confirmed"
    assert {c.what.split(":")[0] for c in found.conditions if c.verdict == "not confirmed"} == {f"n = {slow}"}


@pytest.mark.parametrize(
    ("spread", "verdict"),
    [
        ([0.05, 0.1, 0.05, 0.6], "confirmed"),
        ([0.05, 0.8, 0.05, 0.1], "not confirmed"),
        ([0.05, 0.3, 0.05, 0.3], "not decidable"),
    ],
)
def test_last_block(spread, verdict):
    found = last_block(models({n: [0.3, 0.2, 0.1, 0.4] for n in (1, 2, 4)}, spread=spread))
    assert found.verdict == verdict
    assert all("minus block 1" in condition.what for condition in found.conditions)  # the one that comes next
    mean = float(JITTER.abs().mean())
    assert found.conditions[0].value == pytest.approx((spread[3] - spread[1]) * mean, abs=0.01)


def test_intervals_are_students_and_hold_together():
    found = models({1: [0.3, 0.2], 2: [0.2, 0.2], 4: [0.2, 0.3]}, spread=0.3)
    (first, *_), count = first_two_blocks(found).conditions, 4
    logs = np.log((found[0].blocks[0].rate / found[1].blocks[0].rate).numpy())
    expected = stats.ttest_1samp(logs, 0).confidence_interval(1 - 0.05 / count)
    assert np.log([first.low, first.high]) == pytest.approx([expected.low, expected.high], abs=1e-9)
    spread = models({1: [0.3] * 4, 2: [0.3] * 4, 4: [0.3] * 4}, spread=[0.1, 0.2, 0.1, 0.4])
    condition = last_block(spread).conditions[0]
    rates = np.log(torch.stack([block.rate for block in spread[0].blocks]).numpy())
    median = np.sort(rates, axis=1)[:, 7:8]
    differences = np.abs(rates - median)[3] - np.abs(rates - median)[1]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(1 - 0.05 / 9)  # three others in three models
    assert (condition.low, condition.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("statement", ALL)
def test_the_order_of_the_models_does_not_matter(statement):
    found = models({1: [0.5, 0.6, 0.2, 0.7], 2: [0.3, 0.2, 0.1, 0.4], 4: [0.3, 0.2, 0.1, 0.4]}, spread=0.1)
    assert statement(found) == statement(found[::-1])


@pytest.mark.parametrize("statement", ALL)
@pytest.mark.parametrize(
    ("kwargs", "missing"),
    [
        (dict(), ""),
        (dict(n_iter=4), "more than 4 iterations"),
        (dict(images=1), "two images"),
    ],
)
def test_what_a_measurement_lacks_is_said(statement, kwargs, missing):
    found = statement(models({n: [0.3, 0.2, 0.1, 0.4] for n in (1, 2, 4)}, **kwargs))
    assert missing in found.missing and bool(found.conditions) == (not missing)
    if missing:
        assert found.verdict == "not decidable"


@pytest.mark.parametrize("statement", ALL)
def test_all_three_models_are_needed(statement):
    found = models({n: [0.3, 0.2, 0.1, 0.4] for n in (1, 2, 4)})
    for absent in range(3):
        open_ = statement([each for place, each in enumerate(found) if place != absent])
        assert open_.verdict == "not decidable" and "n = 1, 2, 4" in open_.missing
    assert statement([*found[:2], replace(found[2], trained=None)]).verdict == "not decidable"


@pytest.mark.parametrize(("statement", "least"), list(zip(ALL, (1, 2, 4, 2), strict=True)))
def test_too_few_blocks_decide_nothing(statement, least):
    for blocks in range(1, 5):
        found = statement(models({n: [0.3, 0.2, 0.1, 0.4][:blocks] for n in (1, 2, 4)}))
        assert bool(found.missing) == (blocks < least)
        assert (f"there are {blocks}" in found.missing) == (blocks < least)


@pytest.mark.parametrize("statement", ALL)
@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
def test_what_is_not_finite_decides_nothing(statement, value):
    found = models({n: [0.3, 0.2, 0.1, 0.4] for n in (1, 2, 4)})
    for each in found:
        for block in each.blocks:
            block.norms[1:, 3] = value
    assert statement(found).verdict == "not decidable"


def test_trials_have_to_agree():
    assert agree(["confirmed", "confirmed"]) == "confirmed"
    assert agree(["not confirmed"]) == "not confirmed"
    assert agree(["confirmed", "not confirmed"]) == agree(["confirmed", "not decidable"]) == "not decidable"


@pytest.mark.parametrize("statement", ALL)
def test_criteria_are_stated(statement):
    found = statement(models({n: [0.3, 0.2, 0.1, 0.4] for n in (1, 2, 4)}))
    assert len(found.text) > 20 and len(found.criterion) > 40
    assert all(condition.asked for condition in found.conditions)
