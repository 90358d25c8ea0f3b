"""What an experiment is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from imixer.experiments.comparison import MARGIN
from imixer.experiments.paper import PaperAccuracy
from imixer.experiments.scales import Scale

FigureKind = Literal["first block", "norms", "cosines", "features"]


@dataclass(frozen=True)
class Row:
    """One configuration, trained with several seeds.

    Args:
        name: Unique in its experiment, and safe as the name of a folder.
        labels: What the table calls it: a text for each of its first columns.
        settings: All its settings, by dotted name, but for where the data lie.
        data: Its data set.
        baseline: Name of the row that it is compared to. Default: it is one itself.
        paper: What the paper reports.
        trials: Its trials where they are fewer than the scale's, as those of a training that the paper did once.
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
    """Rows to train, and what is then made of them.

    Args:
        name: What the command line calls it.
        title: What it shows.
        baseline: What its rows are compared to, in words.
        rows: Its rows at a scale.
        figure: What is drawn of the trained runs. Default: nothing, but a table of all rows is written.
        margin: Points of accuracy within which a difference counts as none. It is named before the trials.
        notes: What the paper leaves open, or what is done otherwise here; each in a line.
        show_contraction: Whether the contraction of the trained blocks is measured in every row.
        show_time: Whether the time of training is shown.
    """

    name: str
    title: str
    baseline: str
    rows: Callable[[Scale], list[Row]]
    figure: FigureKind | None = None
    margin: float = MARGIN
    notes: tuple[str, ...] = ()
    show_contraction: bool = False
    show_time: bool = False
