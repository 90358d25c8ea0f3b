"""Count what an experiment takes to train: multiply-adds in all and still to go, and the time at the pace so far."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from imixer.experiments.data_sets import DatasetLocation
from imixer.experiments.experiment_result import ExperimentResult, RowResult
from imixer.progress import clock
from imixer.tables import Grid, with_unit
from imixer.training.model import FORWARDS_PER_STEP
from imixer.training.run.config import parse_budget


@dataclass(frozen=True)
class TrainingCost:
    """What the trials of an experiment take to train.

    Args:
        trials: Trials in all.
        left: Trials to train that are not finished.
        multiply_adds: Multiply-adds of all trials. None if those of one depend on its images.
        to_go: Those of the epochs that are not trained yet.
        seconds: Time for them at the pace of the finished trials, one after the other. None before the first.
    """

    trials: int
    left: int
    multiply_adds: float | None
    to_go: float | None
    seconds: float | None


def training_cost(result: ExperimentResult, rows: Collection[str] | None = None) -> TrainingCost:
    """Count what an experiment takes to train.

    A trial costs 3 forward passes for each image of each epoch, or its budget. Validation is not counted. A run that
    another experiment has finished, and that this one will link, counts as to go.

    Args:
        result: The experiment, as far as it has come.
        rows: Rows to train, by name. Default: all.
    """
    costs = {each.row.name: _of_a_trial(each, result.data[each.row.data]) for each in result.rows}
    runs = [(costs[each.row.name], run.outcome) for each in result.rows for run in each.runs]
    wanted = [
        (costs[each.row.name], run.outcome)
        for each in result.rows
        if rows is None or each.row.name in rows
        for run in each.runs
        if run.outcome.status != "finished"
    ]
    to_go = _sum(cost and cost * (1 - outcome.epoch / (outcome.epochs or math.inf)) for cost, outcome in wanted)
    paces = [
        outcome.seconds / cost for cost, outcome in runs if cost and outcome.seconds and outcome.status == "finished"
    ]
    seconds = fmean(paces) * to_go if paces and to_go is not None else None
    return TrainingCost(len(runs), len(wanted), _sum(cost for cost, _ in runs), to_go, seconds)


def _of_a_trial(row_result: RowResult, data: DatasetLocation) -> float | None:
    config, complexity = row_result.config, row_result.complexity
    if config is None or complexity is None or complexity.multiply_adds is None:
        return None
    if config.budget is not None:
        return parse_budget(config.budget)
    images = config.steps * config.data.batch_size if config.steps else data.training * config.all_epochs
    return float(FORWARDS_PER_STEP * complexity.multiply_adds * images)


def _sum(costs: Iterable[float | None]) -> float | None:
    known = list(costs)
    return None if None in known else float(sum(cost for cost in known if cost is not None))


def describe_cost(name: str, cost: TrainingCost) -> str:
    """Say in a line what is left of an experiment to train.

    Args:
        name: Its name.
        cost: Its cost.
    """
    left = f"{name}: {cost.left} of {cost.trials} trials to train"
    if cost.to_go is None:
        return f"{left}, whose multiply-adds depend on the images"
    duration = f", about {clock(cost.seconds)} one by one at the pace of the finished ones" if cost.seconds else ""
    return f"{left}, {with_unit(cost.to_go)} multiply-adds{duration}"


def cost_grid(results: Sequence[ExperimentResult]) -> Grid:
    """Build the table of what experiments cost, a row each.

    Args:
        results: The experiments, as far as they have come.
    """
    header = ("experiment", "", "rows", "trials finished", "multiply-adds", "to go")
    return Grid(header, tuple(_cost_row(result) for result in results), 2)


def _cost_row(result: ExperimentResult) -> tuple[str, ...]:
    name, title, cost = result.experiment.name, result.experiment.title, training_cost(result)
    if not cost.trials:
        return name, title, f"{len(result.rows)}", "-", "-", "-"
    costs = ("-" if each is None else with_unit(each) for each in (cost.multiply_adds, cost.to_go))
    return name, title, f"{len(result.rows)}", f"{cost.trials - cost.left} of {cost.trials}", *costs
