"""Define what an experiment is: rows to train, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from imixer.experiments.comparison import MARGIN
from imixer.experiments.paper import PaperAccuracy
from imixer.experiments.scales import Scale

FigureKind = Literal["first block", "norms", "cosines", "features"]
Measured = Literal["robustness", "anomalies"]


@dataclass(frozen=True)
class Row:
    """A row of a table: one configuration, trained with several seeds.

    Args:
        name: Unique in its experiment, and safe as the name of a folder.
        labels: Cells of the table's first columns, by title of the column.
        settings: All its settings by dotted name, without the folder of the data.
        data: Its data set.
        baseline: Name of the row that it is compared to. Default: none, since it is a baseline itself.
        paper: Accuracy that the paper reports.
        trials: Number of trials, where it is smaller than the scale's, since the paper trained this row once.
    """

    name: str
    labels: dict[str, str]
    settings: dict[str, Any]
    data: str
    baseline: str | None = None
    paper: PaperAccuracy | None = None
    trials: int | None = None


@dataclass(frozen=True)
class Experiment:
    """An experiment: rows to train, and the table or figure that is made of them.

    Args:
        name: Name on the command line.
        title: Title of its page.
        baseline: Baseline of its rows, in words.
        rows: Gives its rows at a scale. It has none if it trains nothing.
        figure: Figure to draw of the trained runs. Default: none; a table of all rows is written instead.
        measured: What its page compares of the trained runs, instead of their accuracy. Default: their accuracy.
        margin: Points of accuracy within which a difference counts as none. It is chosen before the trials.
        notes: Sentences on what the paper leaves open, or on what is done otherwise here.
        show_contraction: Whether to measure the contraction of the trained blocks of every row.
        show_time: Whether to show the time of training.
        scale: Name of the only scale that has it. Default: all have that have the paper's experiments.
        metric: What is compared, in words.
        models: The models, in words. Default: those of the scale.
    """

    name: str
    title: str
    baseline: str
    rows: Callable[[Scale], list[Row]]
    figure: FigureKind | None = None
    measured: Measured | None = None
    margin: float = MARGIN
    notes: tuple[str, ...] = ()
    show_contraction: bool = False
    show_time: bool = False
    scale: str | None = None
    metric: str = "top-1"
    models: str | None = None

    @property
    def tabulated(self) -> bool:
        """Whether its page is the table of scores that all such experiments have."""
        return self.figure is None and self.measured is None
