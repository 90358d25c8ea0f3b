"""What an experiment costs to train: in all, what is left, and at which pace."""

from dataclasses import replace
from pathlib import Path

import pytest

from imixer.experiments.complexity import ModelComplexity
from imixer.experiments.data_sets import DatasetLocation
from imixer.experiments.experiment_result import ExperimentResult, RowResult, TrialRun
from imixer.experiments.registry import EXPERIMENTS
from imixer.experiments.scales import SCALES
from imixer.experiments.training_cost import TrainingCost, cost_grid, describe_cost, training_cost
from imixer.sweep.results import TrialOutcome
from imixer.training.run.config import ScheduleConfig, TrainConfig

MACS, IMAGES = 1000, 50
WAITING = TrialOutcome("waiting", epochs=4)
FINISHED = TrialOutcome("finished", epoch=4, epochs=4, seconds=30.0)
HALF = TrialOutcome("unfinished", epoch=2, epochs=4, seconds=9.0)
PLAIN = TrainConfig(epochs=3, schedule=ScheduleConfig(warmup_epochs=0, cooldown_epochs=1))
OF_A_TRIAL = 3 * MACS * IMAGES * 4


def result(*trials, config=PLAIN, macs=MACS):
    experiment = EXPERIMENTS["tied"]
    data = DatasetLocation("digits", {}, training=IMAGES)
    rows = experiment.rows(SCALES["smoke"])
    runs = [tuple(TrialRun(seed, Path("x"), outcome) for seed, outcome in enumerate(own)) for own in trials]
    lines = [RowResult(row, config, ModelComplexity(1, macs), own) for row, own in zip(rows, runs, strict=True)]
    return ExperimentResult(experiment, SCALES["smoke"], 2, 0.5, {"digits": data}, tuple(lines), Path("x"))


def test_what_is_to_go_is_the_epochs_that_are_not_trained():
    cost = training_cost(result([FINISHED, HALF], [WAITING, WAITING]))
    assert cost == TrainingCost(4, 3, 4 * OF_A_TRIAL, 2.5 * OF_A_TRIAL, 2.5 * 30)


def test_rows_that_are_not_asked_for_are_not_to_go_and_still_tell_the_pace():
    cost = training_cost(result([FINISHED, HALF], [WAITING, WAITING]), ["tied"])
    assert cost == TrainingCost(4, 2, 4 * OF_A_TRIAL, 2 * OF_A_TRIAL, 60)


def test_nothing_is_known_of_the_time_before_a_trial_is_finished():
    assert training_cost(result([HALF, HALF], [WAITING, WAITING])).seconds is None


def test_a_budget_is_what_a_trial_costs_and_steps_count_batches():
    begun = replace(WAITING, epochs=None)  # a run alone knows how many epochs its budget is
    assert training_cost(result([begun] * 2, [begun] * 2, config=TrainConfig(budget="0.5P"))).to_go == 4 * 0.5e15
    steps = replace(PLAIN, steps=7, schedule=ScheduleConfig(warmup_epochs=0))
    assert training_cost(result([begun], [begun], config=steps)).to_go == 2 * 3 * MACS * 7 * steps.data.batch_size


def test_a_cost_that_depends_on_the_images_is_said_to():
    cost = training_cost(result([FINISHED], [WAITING], macs=None))
    assert (cost.multiply_adds, cost.to_go, cost.seconds) == (None, None, None)
    assert describe_cost("solver", cost) == "solver: 1 of 2 trials to train, whose multiply-adds depend on the images"


def test_the_line_before_training_has_count_cost_and_time():
    whole = TrainingCost(25, 24, 12.5e15, 12e15, 151_200)
    assert describe_cost("laptop", whole) == (
        "laptop: 24 of 25 trials to train, 12.0 P multiply-adds, about 42:00:00 one by one at the pace of the finished "
        "ones"
    )
    assert describe_cost("laptop", replace(whole, seconds=None)).endswith("12.0 P multiply-adds")


@pytest.mark.parametrize(
    ("trials", "macs", "cells"),
    [
        (([FINISHED, WAITING], [WAITING, WAITING]), 10**9, ("2", "1 of 4", "2.4 T", "1.8 T")),
        (([FINISHED], [WAITING]), None, ("2", "1 of 2", "-", "-")),
        (([], []), 10**9, ("2", "-", "-", "-")),
    ],
)
def test_the_list_tells_rows_trials_and_costs(trials, macs, cells):
    (row,) = cost_grid([result(*trials, macs=macs)]).rows
    assert row == ("tied", EXPERIMENTS["tied"].title, *cells)
