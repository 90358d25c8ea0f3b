"""What has become of an experiment."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from imixer.errors import InputError
from imixer.experiments.comparison import Comparison, Judgement, compare, judge
from imixer.experiments.complexity import Costs
from imixer.experiments.data_sets import DataSet
from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale
from imixer.experiments.trained_contraction import TrainedContraction, worst_contraction
from imixer.reading import read_json
from imixer.sweep.results import Outcome
from imixer.training.run.config import TrainConfig
from imixer.training.run.directory import RunDirectory

_log = logging.getLogger(__name__)
_ENVIRONMENT = ("run", "python", "torch", "timm", "imixer", "cpu", "cores", "gpus")


@dataclass(frozen=True)
class Run:
    """A trial of a row.

    Args:
        seed: Its seed.
        path: Its run directory.
        outcome: How far it has come.
        contraction: Of its blocks, if the experiment asks for it and the trial is finished.
    """

    seed: int
    path: Path
    outcome: Outcome
    contraction: TrainedContraction | None = None


@dataclass(frozen=True)
class Spread:
    """Mean of a figure over the finished trials of a row.

    Args:
        mean: The mean.
        std: Standard deviation of the sample (n - 1). None below two trials.
    """

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class RowResult:
    """A row and what came out of it.

    Args:
        row: The row.
        config: What was trained, but for seed and place. None if its data are missing.
        costs: What its model costs. None likewise.
        runs: The trials that are planned; none likewise.
    """

    row: Row
    config: TrainConfig | None = None
    costs: Costs | None = None
    runs: tuple[Run, ...] = ()

    @property
    def finished(self) -> list[Run]:
        """The trials that are."""
        return [run for run in self.runs if run.outcome.status == "finished"]

    @property
    def last(self) -> dict[int, float]:
        """Top-1 in % after the last epoch, of each finished trial, by seed."""
        return {run.seed: 100 * run.outcome.val_acc for run in self.finished if run.outcome.val_acc is not None}

    @property
    def best(self) -> dict[int, float]:
        """Top-1 in % after the best epoch, likewise. The epoch is chosen on the images that it is measured on."""
        outcomes = {run.seed: run.outcome.best_val_acc for run in self.finished}
        return {seed: 100 * accuracy for seed, accuracy in outcomes.items() if accuracy is not None}

    @property
    def seconds(self) -> dict[int, float]:
        """Seconds of training, likewise."""
        return {run.seed: run.outcome.seconds for run in self.finished if run.outcome.seconds is not None}

    @property
    def contraction(self) -> TrainedContraction | None:
        """The worst of the finished trials. None if none was measured."""
        return worst_contraction([run.contraction for run in self.finished if run.contraction])

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by status."""
        return dict(Counter(run.outcome.status for run in self.runs))


@dataclass(frozen=True)
class ExperimentResult:
    """An experiment at a scale, as far as it has come.

    Args:
        experiment: The experiment.
        scale: The scale.
        trials: How many are planned per row; a row may have fewer.
        margin: Points within which a difference counts as none.
        data: Its data sets by name.
        lines: One per row.
        folder: Where to write what is made of it.
    """

    experiment: Experiment
    scale: Scale
    trials: int
    margin: float
    data: dict[str, DataSet]
    lines: tuple[RowResult, ...]
    folder: Path

    def baseline(self, line: RowResult) -> RowResult | None:
        """What a line is compared to. None if it is a baseline itself."""
        return next((other for other in self.lines if other.row.name == line.row.baseline), None)

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Each row against its baseline, in points after the last epoch, by name; without those that lack a trial."""
        found: dict[str, Comparison] = {}
        for line in self.lines:
            baseline = self.baseline(line)
            if baseline is None or line.costs is None or baseline.costs is None:
                continue
            shared = line.costs.drawn == baseline.costs.drawn
            if compared := compare(line.last, baseline.last, shared_weights=shared):
                found[line.row.name] = compared
        return found

    @property
    def failed(self) -> list[Run]:
        """The trials that failed."""
        return [run for line in self.lines for run in line.runs if run.outcome.status == "failed"]

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Versions and hardware of the finished trials, each once."""
        found: list[dict[str, Any]] = []
        for run in (run for line in self.lines for run in line.finished):
            try:
                environment = read_json(RunDirectory(run.path).environment, _ENVIRONMENT)
            except InputError as error:
                _log.warning(f"{error}; what this run ran on is not told")
                continue
            environment.pop("run")
            if environment not in found:
                found.append(environment)
        return found


def spread(values: dict[int, float]) -> Spread | None:
    """Mean and standard deviation of what each trial gave. None without any."""
    numbers = list(values.values())
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None) if numbers else None


def judge_page(page: Sequence[ExperimentResult]) -> list[dict[str, Judgement]]:
    """Judge all comparisons that stand on one page together, so that their number is corrected for.

    Args:
        page: The experiments on it.

    Returns:
        For each experiment, its judgements by row.
    """
    compared = [each.comparisons for each in page]
    pairs = [(found, each.margin) for each, own in zip(page, compared, strict=True) for found in own.values()]
    judged = iter(judge(pairs))
    return [{name: next(judged) for name in own} for own in compared]
