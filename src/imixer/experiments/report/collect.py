"""Read runs and reproduced experiments from their folders. Free of torch."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imixer.analysis.registry import figure_titles
from imixer.analysis.views.convergence import ANALYSIS as CONVERGENCE
from imixer.analysis.views.energy import ANALYSIS as ENERGY
from imixer.errors import InputError, in_short
from imixer.escaping import one_line, shell_word
from imixer.experiments.registry import EXPERIMENTS
from imixer.reading import read_json, read_rows
from imixer.training.run.confusion import read_confusion
from imixer.training.run.directory import RunDirectory, short_names
from imixer.training.run.parsing import flatten, load_config
from imixer.training.run.result import best_by, best_row
from imixer.training.run.safetensors_file import first_non_finite_in
from imixer.training.run.summary import runs_below

_log = logging.getLogger(__name__)
_METRICS = ("epoch", "step", "train_loss", "val_loss", "val_acc", "lr", "images_per_s", "seconds")
_DETECTOR_METRICS = ("epoch", "val_loss", "val_acc", "val_auroc", "seconds")  # of a run that takes no steps
_RUN_FILES = ("environment.json", "metrics.csv", "checkpoints", "model")  # of a run, one of which may be lost
_MANY_CLASSES = 200  # of which a confusion matrix is a picture only


@dataclass(frozen=True)
class RunPicture:
    """A picture of a run.

    Args:
        title: Title of the picture.
        file: PNG.
    """

    title: str
    file: Path


@dataclass(frozen=True)
class IterationCurves:
    """The iterations of several models, as `comparison_numbers` of `imixer.analysis` has them.

    Args:
        models: Name and own n of each model, and Norm_a and cos_a of each of its blocks.
        panels: Block of each panel, and `norm` or `cosine`.
    """

    models: Sequence[dict[str, Any]]
    panels: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class ReportedTable:
    """A table of a reproduced experiment, as it is printed.

    Args:
        caption: What it shows.
        header: Title of each column.
        rows: The rows.
        text: Number of leading columns that hold text. The others hold numbers.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int


@dataclass(frozen=True)
class ReportedExperiment:
    """A table or figure that `imixer reproduce` has written.

    Args:
        name: Name on the command line of `imixer reproduce`.
        title: Title of its page.
        conditions: Scale, data and epochs.
        tables: Its tables. Empty for a figure.
        sentences: Sentences that its comparisons allow.
        notes: Remarks on both.
        curves: Numbers of a figure about the iterations.
        picture: Any other figure.
    """

    name: str
    title: str
    conditions: str = ""
    tables: Sequence[ReportedTable] = ()
    sentences: Sequence[str] = ()
    notes: Sequence[str] = ()
    curves: IterationCurves | None = None
    picture: Path | None = None


@dataclass(frozen=True)
class ReportedRun:
    """A run, finished or not, as plain data.

    Args:
        name: Its directory, shortened as far as the runs still differ.
        path: Its directory.
        settings: Its configuration, by dotted name.
        environment: Versions and hardware.
        rows: `metrics.csv`.
        convergence: `convergence.csv`.
        result: `result.json`, empty if the run is not finished.
        evaluation: `evaluation.json`, if there is one.
        test_evaluation: `test_evaluation.json`, if there is one.
        classes: Class names and counts of true (row) against predicted (column) class, unless there are very many.
        test_classes: The same of the test set, if there is one.
        iterations: What `imixer analyze convergence` measured in each block, if it did.
        energy: What `imixer analyze energy` measured at each mixing step, if it did.
        anomaly_data: The name of the images of these.
        anomalies: The quality of each score that tells anomalies, if the run is a detector or was evaluated as one.
        pictures: What `imixer train`, `predict` and `analyze` have drawn, without what is in the numbers above.
    """

    name: str
    path: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: list[dict[str, float]]
    convergence: list[dict[str, float]]
    result: dict[str, Any]
    evaluation: dict[str, Any]
    test_evaluation: dict[str, Any]
    classes: tuple[list[str], list[list[int]]] | None
    test_classes: tuple[list[str], list[list[int]]] | None
    iterations: list[dict[str, Any]]
    energy: list[dict[str, Any]]
    anomaly_data: str
    anomalies: dict[str, Any]
    pictures: list[RunPicture]

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the best epoch so far, empty before the first."""
        return best_row(self.rows) if self.rows else {}

    @property
    def metric(self) -> str:
        """The metric that decides which epoch is the best, such as `val_acc`, or `val_miou` of a segmentation."""
        return best_by(self.rows[0]) if self.rows else "val_acc"

    @property
    def finished(self) -> bool:
        """Whether training has finished."""
        return bool(self.result)


def find_runs(paths: Sequence[str]) -> list[ReportedRun]:
    """Find and read the runs at some paths.

    Args:
        paths: Run directories, and folders that hold some at any depth.

    Raises:
        InputError: If a path does not exist or holds no run, or a run's files are damaged.
    """
    directories: dict[Path, Path] = {}  # keeps order, drops repetition, also by links
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"no run and no folder of runs at {path}; correct the path")
        runs = [each for each in runs_below(path) if _is_run(each)]
        if not runs and any((path / name).exists() for name in _RUN_FILES):
            raise InputError(f"{path} is a run that has lost its config.yaml, without which nobody knows what it is")
        if not runs:
            raise InputError(f"{path} holds no run; give what `imixer train`, `sweep` or `reproduce` has written")
        for run in runs:
            directories.setdefault(run.resolve(), run)
    chosen = list(directories.values())
    return [_read(path, name) for path, name in zip(chosen, short_names(chosen), strict=True)]


def find_experiments(path: str) -> list[ReportedExperiment]:
    """Find and read the tables and figures that `imixer reproduce` has written into a folder, in its order.

    Args:
        path: The folder. Any other has none.

    Raises:
        InputError: If a file is damaged.
    """
    experiments: list[ReportedExperiment] = []
    for name, experiment in EXPERIMENTS.items():
        file = Path(path) / f"{name}.json"
        if not file.is_file():
            continue
        try:
            facts = read_json(file)
            if "shown" in facts:
                shown = facts["shown"]
                tables = [ReportedTable(**table) for table in shown["tables"]]
                experiments.append(
                    ReportedExperiment(
                        name, facts["title"], facts["conditions"], tables, shown["sentences"], shown["notes"]
                    )
                )
            elif "panels" in facts:
                read = [f"{each['text']} Here: {each['verdict']}" for each in facts["statements"]]
                curves = IterationCurves(facts["models"], facts["panels"])
                experiments.append(
                    ReportedExperiment(
                        name, facts["title"], facts["conditions"], notes=[*read, *facts["notes"]], curves=curves
                    )
                )
            elif file.with_suffix(".png").is_file():
                told, notes = str(facts.get("conditions", "")), list(facts.get("notes", ()))
                picture = file.with_suffix(".png")
                experiments.append(ReportedExperiment(name, experiment.title, told, notes=notes, picture=picture))
        except (ValueError, KeyError, TypeError) as error:
            again = f"`imixer reproduce {name}`, with the options that it had, writes it again"
            raise InputError(f"{file} is damaged; {again}") from error
    return experiments


def differing_settings(runs: Sequence[ReportedRun]) -> list[tuple[str, list[Any]]]:
    """List the settings that are not the same in all runs, each with its value in every run."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name != "out")
    values = [(name, [run.settings.get(name) for run in runs]) for name in names]
    return [(name, each) for name, each in values if any(value != each[0] for value in each)]


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").exists() and any((path / name).exists() for name in _RUN_FILES)


def _read(path: Path, name: str) -> ReportedRun:
    run = RunDirectory(path)
    weights = run.model / "model.safetensors"
    try:
        if weights.is_file() and (place := first_non_finite_in(weights)):
            raise InputError(f"the model of {path} is not finite, from {place}; its results are none, leave it out")
        classes, test_classes = _classes(run.confusion_counts), _classes(run.test_confusion_counts)
        energy = _energy(run)
        iterations = _json(run.analysis / f"{CONVERGENCE.name}.json").get("blocks", [])
        charted: dict[str, Sized | None] = {
            run.confusion_matrix.stem: classes,
            run.test_confusion_matrix.stem: test_classes,
            CONVERGENCE.name: iterations,
            ENERGY.name: energy,
        }
        config = load_config(run.config)
        masks = config.task == "segment"
        scores = ("miou" if masks else "top1", "images", "per_class")
        columns = {"anomaly": _DETECTOR_METRICS, "segment": (*_METRICS, "val_miou")}.get(config.task, _METRICS)
        return ReportedRun(
            name=name,
            path=path,
            settings=flatten(asdict(config)),
            environment=_json(run.environment),
            rows=_table(run.metrics, columns),
            convergence=_table(run.convergence, ("epoch", "block")),
            result=_json(run.result, ("data", "parameters", "device")),
            evaluation=_json(run.evaluation, scores),
            test_evaluation=_json(run.test_evaluation, scores),
            classes=classes,
            test_classes=test_classes,
            iterations=iterations,
            energy=energy,
            anomaly_data=str(_json(run.anomalies).get("data", "")),
            anomalies=_json(run.anomalies, ("scores",)).get("scores", {}),
            pictures=_pictures(run, [name for name, numbers in charted.items() if numbers], masks=masks),
        )
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: {in_short(error)}; the run's files are damaged") from error


def _classes(file: Path) -> tuple[list[str], list[list[int]]] | None:
    if not file.is_file():
        return None
    try:
        names, counts = read_confusion(file)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file} is damaged ({one_line(error)}); remove it, and the report does without") from error
    return (names, counts) if len(names) <= _MANY_CLASSES else None


def _energy(run: RunDirectory) -> list[dict[str, Any]]:
    file = run.analysis / f"{ENERGY.name}.json"
    mixings = _json(file).get("mixings", [])
    if not isinstance(mixings, list) or not all(isinstance(each, dict) for each in mixings):
        again = f"`imixer analyze {ENERGY.name} {shell_word(run.path)}` writes it again"
        raise InputError(f"{file} is damaged: mixings is no list; {again}")
    return mixings if all("change" in each for each in mixings) else []  # of an earlier version


def _pictures(run: RunDirectory, charted: Sequence[str], *, masks: bool) -> list[RunPicture]:
    """List the pictures of a run that no chart shows as well. Learning curves always are a chart."""
    drawn = [
        run.heat_maps,
        run.worst_images,
        run.test_worst_images,
        run.confusion_matrix,
        run.test_confusion_matrix,
        run.prediction,
    ]
    drawn += sorted(run.analysis.glob("*.png"))
    shown = [file for file in drawn if file.is_file() and file.stem not in charted]
    for file in [file for file in shown if not _is_png(file)]:
        _log.warning(f"{file} is no picture any more, and left out")
        shown.remove(file)
    worst = "lowest mIoU, the worst first" if masks else "largest loss"
    titles = figure_titles() | {
        run.heat_maps.stem: "Least normal images of each kind, and their heat maps",
        run.worst_images.stem: f"Held-out images with the {worst}",
        run.test_worst_images.stem: f"Images of the test set with the {worst}",
    }
    return [RunPicture(titles.get(file.stem, file.stem.replace("_", " ").capitalize()), file) for file in shown]


def _is_png(file: Path) -> bool:
    """Tell whether a file begins and ends as a PNG does."""
    content = file.read_bytes()
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")


def _json(file: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    return read_json(file, keys) if file.exists() else {}


def _table(file: Path, columns: Sequence[str]) -> list[dict[str, float]]:
    rows, damaged = read_rows(file, columns)
    if damaged and not rows:
        raise InputError(
            f"{file} is damaged, and no line of it whole; `imixer train --resume {shell_word(file.parent)}` writes it "
            "again"
        )
    if damaged:
        _log.warning(f"{file}: {damaged} damaged lines are left out")
    return [{name: float(value) for name, value in row.items()} for row in rows]
