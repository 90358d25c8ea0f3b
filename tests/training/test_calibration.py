"""Calibration against its definition."""

import json

import pytest
import torch

from imixer.cli import main
from imixer.training.validation import BINS, calibration_error, reliability


@pytest.mark.parametrize("scale", [0.5, 3.0, 100.0])  # unsure, in between, sure to the last bit
def test_the_error_is_that_of_the_bins(scale):
    torch.manual_seed(0)
    logits, targets = scale * torch.randn(500, 4), torch.randint(4, (500,))
    bins = reliability(logits, targets)
    assert len(bins) == BINS and sum(b.images for b in bins) == 500
    filled = [b for b in bins if b.images]
    assert all(b.lower - 1e-6 <= b.confidence <= b.upper + 1e-6 for b in filled)
    expected = sum(b.images / 500 * abs(b.accuracy - b.confidence) for b in filled)
    assert calibration_error(logits, targets) == pytest.approx(expected, abs=1e-6)
    assert all(b.confidence is None and b.accuracy is None for b in bins if not b.images)


def test_a_confidence_where_two_bins_meet_is_in_the_upper_one():
    logits = torch.stack([torch.zeros(3), torch.tensor([0.35, 0.33, 0.32]).log()])  # surest by 1/3 = 5/15, and 0.35
    assert float(logits.softmax(1)[0].max()) == float(torch.linspace(0, 1, BINS + 1)[5])
    targets = torch.tensor([1, 0])  # missed, and recognised
    bins = reliability(logits, targets)
    assert [number for number, b in enumerate(bins) if b.images] == [5]
    assert (bins[5].images, bins[5].accuracy) == (2, 0.5)
    assert calibration_error(logits, targets) == pytest.approx(0.5 - (1 / 3 + 0.35) / 2, abs=1e-6)


def test_a_model_that_is_right_as_often_as_it_says_has_none():
    logits = torch.tensor([[0.75, 0.25]]).log().expand(8, 2)
    targets = torch.tensor([0, 0, 0, 1] * 2)
    assert calibration_error(logits, targets) == pytest.approx(0, abs=1e-6)
    assert calibration_error(logits, 1 - targets) == pytest.approx(0.5, abs=1e-6)


def test_evaluate_reports_it(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    written = json.loads((run / "evaluation.json").read_text())
    assert sum(b["images"] for b in written["reliability"]) == written["images"]
    weighted = [b["images"] * abs(b["accuracy"] - b["confidence"]) for b in written["reliability"] if b["images"]]
    assert written["ece"] == pytest.approx(sum(weighted) / written["images"], abs=1e-5)
    assert f"calibration error {written['ece']:.2%}" in capsys.readouterr().out
