"""Hold the results of an experiment: trials, rows, and the comparisons that a page makes of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from imixer.errors import InputError
from imixer.experiments.comparison import Judgement, MeanDifference, compare_means, judge
from imixer.experiments.complexity import ModelComplexity
from imixer.experiments.data_sets import DatasetLocation
from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale
from imixer.experiments.trained_contraction import TrainedContraction, worst_contraction
from imixer.reading import read_json
from imixer.sweep.results import TrialOutcome
from imixer.training.run.config import TrainConfig
from imixer.training.run.directory import RunDirectory

_log = logging.getLogger(__name__)
_ENVIRONMENT = ("run", "python", "torch", "timm", "imixer", "cpu", "cores", "gpus")


@dataclass(frozen=True)
class TrialRun:
    """A trial of a row, with its run directory.

    Args:
        seed: Its seed.
        path: Its run directory.
        outcome: How far it has come.
        contraction: Contraction of its blocks. None unless the experiment asks for it and the trial is finished.
    """

    seed: int
    path: Path
    outcome: TrialOutcome
    contraction: TrainedContraction | None = None


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation over the finished trials of a row.

    Args:
        mean: Mean.
        std: Standard deviation of the sample (n - 1 in the denominator). None below two trials.
    """

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class RowResult:
    """A row and its trials, as far as they have come.

    Args:
        row: The row.
        config: Its configuration, without seed and folder. None if its data are missing.
        complexity: Parameters and multiply-adds of its model. None if its data are missing.
        runs: All planned trials. Empty if its data are missing.
    """

    row: Row
    config: TrainConfig | None = None
    complexity: ModelComplexity | None = None
    runs: tuple[TrialRun, ...] = ()

    @property
    def finished(self) -> list[TrialRun]:
        """Its finished trials."""
        return [run for run in self.runs if run.outcome.status == "finished"]

    @property
    def last(self) -> dict[int, float]:
        """Top-1 or mIoU in % after the last epoch, of each finished trial, by seed."""
        return {run.seed: 100 * run.outcome.score for run in self.finished if run.outcome.score is not None}

    @property
    def best(self) -> dict[int, float]:
        """Top-1 or mIoU in % after the best epoch, of each finished trial, by seed.

        It is optimistic: the epoch is chosen on the images that it is measured on.
        """
        outcomes = {run.seed: run.outcome.best_score for run in self.finished}
        return {seed: 100 * accuracy for seed, accuracy in outcomes.items() if accuracy is not None}

    @property
    def seconds(self) -> dict[int, float]:
        """Seconds of training of each finished trial, by seed."""
        return {run.seed: run.outcome.seconds for run in self.finished if run.outcome.seconds is not None}

    @property
    def contraction(self) -> TrainedContraction | None:
        """The worst contraction of the finished trials. None if none was measured."""
        return worst_contraction([run.contraction for run in self.finished if run.contraction])

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by status."""
        return dict(Counter(run.outcome.status for run in self.runs))


@dataclass(frozen=True)
class ExperimentResult:
    """An experiment at a scale, as far as it has come. `reproduce` returns one per experiment.

    Args:
        experiment: The experiment.
        scale: The scale.
        trials: Trials planned per row. A row may have fewer.
        margin: Points of accuracy within which a difference counts as none.
        data: Its data sets, by name.
        rows: The result of each row.
        folder: Folder for its tables and figures.
    """

    experiment: Experiment
    scale: Scale
    trials: int
    margin: float
    data: dict[str, DatasetLocation]
    rows: tuple[RowResult, ...]
    folder: Path

    def baseline(self, row_result: RowResult) -> RowResult | None:
        """Return the row that a row is compared to. None if it is a baseline itself.

        Args:
            row_result: The row.
        """
        return next((other for other in self.rows if other.row.name == row_result.row.baseline), None)

    @property
    def comparisons(self) -> dict[str, MeanDifference]:
        """Each row against its baseline, by name, in points of the metric after the last epoch.

        Rows that lack a trial, or whose baseline lacks one, are left out.
        """
        comparisons: dict[str, MeanDifference] = {}
        for row_result in self.rows:
            baseline = self.baseline(row_result)
            if baseline is None or row_result.complexity is None or baseline.complexity is None:
                continue
            shared = row_result.complexity.seeded_parameters == baseline.complexity.seeded_parameters
            if compared := compare_means(row_result.last, baseline.last, shared_weights=shared):
                comparisons[row_result.row.name] = compared
        return comparisons

    @property
    def failed(self) -> list[TrialRun]:
        """Its failed trials."""
        return [run for row_result in self.rows for run in row_result.runs if run.outcome.status == "failed"]

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Versions and hardware of the finished trials, each once."""
        environments: list[dict[str, Any]] = []
        for run in (run for row_result in self.rows for run in row_result.finished):
            try:
                environment = read_json(RunDirectory(run.path).environment, _ENVIRONMENT)
            except InputError as error:
                _log.warning(f"{error}; what this run ran on is not told")
                continue
            environment.pop("run")
            if environment not in environments:
                environments.append(environment)
        return environments


def mean_and_std(values: Mapping[int, float]) -> MeanStd | None:
    """Return the mean and the standard deviation over trials. None without a trial.

    Args:
        values: A number of each trial, by seed.
    """
    numbers = list(values.values())
    return MeanStd(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None) if numbers else None


def judge_page(page: Sequence[ExperimentResult]) -> list[dict[str, Judgement]]:
    """Judge all comparisons of a page together, so that their number is corrected for.

    Args:
        page: The experiments on the page.

    Returns:
        The judgements of each experiment, by row.
    """
    compared = [each.comparisons for each in page]
    pairs = [(one, each.margin) for each, own in zip(page, compared, strict=True) for one in own.values()]
    judgements = iter(judge(pairs))
    return [{name: next(judgements) for name in own} for own in compared]
