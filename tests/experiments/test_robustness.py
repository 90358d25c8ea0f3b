"""Robustness of an iMixer beside a Mixer: what is compared, what a page may say, and the page itself."""

import csv
import json
import re
from statistics import fmean

import pytest

from imixer.cli import main
from imixer.errors import InputError
from imixer.experiments.registry import EXPERIMENTS
from imixer.experiments.robustness_output import (
    compare_robustness,
    corruption_table,
    describe_robustness,
    ood_table,
    robustness_table,
)
from imixer.experiments.scales import SCALES
from imixer.experiments.trained_robustness import TrainedRobustness, measure_robustness

NOISE = (0.0, 0.3, -0.2, 0.1, -0.1)


def trials(accuracy, corrupted, error=5.0, **scores):
    """Five trials; a little apart, and not in the same way for every number."""
    return {
        seed: TrainedRobustness(
            accuracy=accuracy + noise,
            calibration_error=error + noise,
            corrupted={"fog": corrupted - 10 + noise, "gaussian_noise": corrupted + 10 - 2 * noise},
            attacked={"8": 50.0 + noise},
            ood_auroc={name: {"noise": value + noise, "rotated": value - 10} for name, value in scores.items()},
        )
        for seed, noise in enumerate(NOISE)
    }


IMIXER = trials(98.0, 70.0, error=9.0, max_softmax=90.0, residual=20.0)
MIXER = trials(98.05, 60.0, error=5.0, max_softmax=90.0)


def compared(imixer=IMIXER, mixer=MIXER, margin=1.0):
    return {each.measure.name: each for each in compare_robustness(imixer, mixer, margin)}


def test_every_measure_is_compared_by_seed_and_corrected_for_all_of_the_page():
    spread = trials(97.0, 50.0)
    spread[4] = TrainedRobustness(90.0, 5.0, {"fog": 55.0}, {"8": 10.0}, {"max_softmax": {"noise": 80.0}})
    own = compared(imixer=spread)
    difference = own["accuracy"].judgement.comparison
    assert difference.test == "paired" and difference.pairs == 5
    expected = fmean(spread[seed].accuracy - MIXER[seed].accuracy for seed in spread)
    assert difference.difference == pytest.approx(expected)
    tested = [each.judgement for each in own.values() if each.judgement.p is not None]
    assert all(each.p >= each.comparison.p for each in tested)
    assert min(tested, key=lambda each: each.comparison.p).p > min(each.comparison.p for each in tested)


def test_a_score_that_one_model_lacks_is_listed_and_not_compared():
    assert "ood_residual" not in compared()
    assert ("rotated", "fixed point residual", "10.0 +- 0.0", "-") in ood_table(IMIXER, MIXER).rows


def test_tables_have_both_models_and_their_difference_in_this_order():
    grid = robustness_table(list(compared().values()))
    assert grid.header[:4] == ("measure", "iMixer", "Mixer", "difference")
    by_measure = {row[0]: row for row in grid.rows}
    assert by_measure["accuracy on corrupted images"][1:4] == ("70.0 +- 0.1", "60.0 +- 0.1", "+10.00")
    assert corruption_table(IMIXER, MIXER).rows[0][:2] == ("fog", "60.0 +- 0.2")


def test_a_larger_calibration_error_is_worse_and_a_larger_accuracy_better():
    better = trials(98.0, 70.0, error=9.0, max_softmax=90.0)
    jittered = {
        seed: TrainedRobustness(
            t.accuracy, t.calibration_error + 0.1 * n, {"fog": t.mean_corrupted + 0.1 * n}, t.attacked, t.ood_auroc
        )
        for (seed, t), n in zip(better.items(), NOISE, strict=True)
    }
    said = describe_robustness(list(compared(imixer=jittered).values()))
    (error,) = [line for line in said if line.startswith("calibration error")]
    (corrupted,) = [line for line in said if line.startswith("accuracy on corrupted")]
    assert "the iMixer is worse (+4.0" in error and "the iMixer is better (+10.0" in corrupted
    assert any(line.startswith("Undecided: ") and "neither" in line.lower() for line in said)


def test_no_difference_and_no_equivalence_is_said_of_one_trial():
    one = {0: IMIXER[0]}
    assert {each.judgement.verdict for each in compared(one, {0: MIXER[0]}).values()} == {"undecided"}
    (said,) = describe_robustness(list(compared(one, {0: MIXER[0]}).values()))
    assert said.startswith("Undecided: accuracy; calibration error;")


@pytest.mark.parametrize("scale", ["smoke", "digits", "cpu", "paper"])
def test_the_mixer_has_as_many_multiply_adds(scale):
    from imixer.experiments.complexity import model_complexity
    from imixer.sweep.spec import build_sweep

    rows = EXPERIMENTS["robustness"].rows(SCALES[scale])
    cells = build_sweep({"cases": {row.name: row.settings for row in rows}}).cells
    mixer, imixer = (model_complexity(cell.config, 3, 10).multiply_adds for cell in cells)
    assert mixer == pytest.approx(imixer, rel=0.005)


def test_the_command_measures_each_run_once_and_writes_page_numbers_and_index(tiny, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr("imixer.experiments.trained_robustness.IMAGES", 60)
    assert main(["reproduce", "robustness", "tied"]) == 0
    text = capsys.readouterr().out
    assert "accuracy within 8/255" in text and "Hopfield energy, mean" in text
    folder = elsewhere / "reproduced/smoke"
    facts = json.loads((folder / "robustness.json").read_text())
    assert set(facts["trials"]) == {"imixer", "mixer"} and set(facts["trials"]["imixer"]) == {"0", "1"}
    with (folder / "robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows if (r["measure"], r["model"], r["seed"]) == ("accuracy", "mixer", "1")]
    assert float(row["value"]) == pytest.approx(facts["trials"]["mixer"]["1"]["accuracy"])
    page = (folder / "robustness.md").read_text()
    assert "| accuracy on corrupted images |" in page and "| fog |" in page
    index = (folder / "index.md").read_text()
    assert "## Beyond the paper: robustness" in index and "### Corruptions" in index
    assert "robustness: differences in measures of their own" in index and "in the tables of this page: 1;" in index
    assert re.search(r"corrected by Holm for the \d+ tests of this experiment", index)
    assert "corrected by Holm for the 1 test in the tables of this page" in index
    run = folder / "runs/robustness/imixer/seed-0"
    stored = run / "analysis/trained_robustness.json"
    assert measure_robustness(run).accuracy == json.loads(stored.read_text())["accuracy"]
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"what": 2}))
    with pytest.raises(InputError, match=r"trained_robustness\.json is damaged"):
        measure_robustness(run)
