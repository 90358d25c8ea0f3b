"""What has become of an experiment."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Dict, List, Optional, Tuple

from imixer.experiments.comparison import Comparison, compare
from imixer.experiments.costs import Costs
from imixer.experiments.data_sets import DataSet
from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale
from imixer.sweep.results import Outcome
from imixer.training.config import TrainConfig
from imixer.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Run:
    """A trial of a row.

    Args:
        seed: Its seed.
        path: Its run directory.
        outcome: How far it has come.
    """

    seed: int
    path: Path
    outcome: Outcome


@dataclass(frozen=True)
class Line:
    """A row and what came out of it.

    Args:
        row: The row.
        config: What was trained, but for seed and place. None if its data are missing.
        costs: What its model costs. None likewise.
        runs: The trials that are planned; none likewise.
    """

    row: Row
    config: Optional[TrainConfig] = None
    costs: Optional[Costs] = None
    runs: Tuple[Run, ...] = ()

    @property
    def finished(self) -> List[Run]:
        """The trials that are."""
        return [run for run in self.runs if run.outcome.status == "finished"]

    @property
    def accuracies(self) -> List[float]:
        """Top-1 in %, of each finished trial."""
        return [100 * run.outcome.val_acc for run in self.finished if run.outcome.val_acc is not None]

    @property
    def mean(self) -> Optional[float]:
        """Of the accuracies. None without any."""
        return fmean(self.accuracies) if self.accuracies else None

    @property
    def std(self) -> Optional[float]:
        """Standard deviation of the sample. None below two trials."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def counts(self) -> Dict[str, int]:
        """Number of trials by status."""
        return dict(Counter(run.outcome.status for run in self.runs))


@dataclass(frozen=True)
class Reproduced:
    """An experiment at a scale, as far as it has come.

    Args:
        experiment: The experiment.
        scale: The scale.
        trials: How many are planned per row.
        data: Its data sets by name.
        lines: One per row.
        folder: Where to write what is made of it.
    """

    experiment: Experiment
    scale: Scale
    trials: int
    data: Dict[str, DataSet]
    lines: Tuple[Line, ...]
    folder: Path

    def compared(self, line: Line) -> Optional[Comparison]:
        """A line against its baseline, in points. None if it has none, or one of the two has no finished trial."""
        baseline = next((other for other in self.lines if other.row.name == line.row.baseline), None)
        return None if baseline is None else compare(line.accuracies, baseline.accuracies)

    @property
    def failed(self) -> List[Run]:
        """The trials that failed."""
        return [run for line in self.lines for run in line.runs if run.outcome.status == "failed"]

    @property
    def environments(self) -> List[Dict[str, Any]]:
        """Versions and hardware of the finished trials, each once."""
        found: List[Dict[str, Any]] = []
        for run in (run for line in self.lines for run in line.finished):
            environment = json.loads(RunDirectory(run.path).environment.read_text(encoding="utf-8"))
            environment.pop("run")
            if environment not in found:
                found.append(environment)
        return found
