"""Compare scores of anomalies: each digit is normal in turn, over several seeds, with paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.console import Console

from imixer.analysis.anomaly.detect import detect_anomalies
from imixer.analysis.anomaly.detection_quality import DetectionQuality
from imixer.analysis.anomaly.detector_run import DEFAULT_MODEL, features_of
from imixer.analysis.anomaly.detectors import DETECTORS
from imixer.analysis.anomaly.samples import OTHER_CLASS, digit_samples
from imixer.errors import InputError
from imixer.experiments.anomalies import MARGIN
from imixer.experiments.comparison import CONFIDENCE, Judgement, compare_means, judge
from imixer.experiments.experiment_result import ExperimentResult
from imixer.experiments.measured_page import MeasuredPage
from imixer.experiments.sentences import (
    OF_EXPERIMENT,
    describe_measures,
    interval_words,
    mean_words,
    p_words,
    verdict_legend,
    verdict_words,
)
from imixer.experiments.table_output import machine
from imixer.progress import with_progress
from imixer.reading import read_json
from imixer.tables import Grid, on_screen
from imixer.training.finished_run import load_run
from imixer.training.run.config import AnomalyConfig
from imixer.training.run.environment import environment
from imixer.weights import find_packaged
from imixer.writing import write_json

SEEDS = (0, 1, 2, 3, 4)
CLASSES = tuple(range(10))
SOURCES: tuple[Literal["model", "pixels"], ...] = ("model", "pixels")
REFERENCE = "memory_energy"
_MEASUREMENT = 1  # raise it where the same seeds would give other values

_MEASURES = {
    "image": "image AUROC",
    "other": "other digits",
    "defects": "defects",
    "pixel": "pixel AUROC",
    "pro": "PRO",
    "f1": "image F1",
}


@dataclass(frozen=True)
class DetectorTrials:
    """Hold what one score reaches with one source of features.

    Attributes:
        source: `model` or `pixels`.
        score: Name in `DETECTORS`.
        values: Mean over the normal classes in per cent, by measure and seed. Measures: `image`, AUROC of images;
            `other` and `defects`, of other digits and of made defects alone; `pixel`; `pro`; `f1` of images.
    """

    source: str
    score: str
    values: dict[str, dict[int, float]]


@dataclass(frozen=True)
class DetectorComparison:
    """Hold the comparison of one score with the energy of the memory, on the same features.

    Attributes:
        source: Source of the features.
        score: The other score.
        measure: What is compared.
        judgement: Memory energy minus the other score.
    """

    source: str
    score: str
    measure: str
    judgement: Judgement


def measure_detectors(
    run: str,
    folder: Path,
    *,
    memory: int = 1000,
    neighbours: int = 3,
    seeds: Sequence[int] = SEEDS,
    classes: Sequence[int] = CLASSES,
) -> list[DetectorTrials]:
    """Measure all scores on the digits, each being normal in turn.

    A seed decides which digits are learned from, the defects, and which vectors are stored. Its value is the mean over
    the classes. What the folder has already is read, if it was measured alike.

    Args:
        run: Directory of a run or of a packaged model, whose features are compared.
        folder: Folder for the numbers of each seed, class and source, which may hold an earlier start.
        memory: Largest number of feature vectors to store.
        neighbours: Number of nearest neighbours.
        seeds: The seeds.
        classes: The digits that are normal in turn.

    Raises:
        InputError: If the run is not there, or the numbers in the folder are damaged or of another run, memory or
            number of neighbours.
    """
    finished = load_run(run)
    alike = {"model": finished.name, "memory": memory, "neighbours": neighbours}
    in_chans, height, width = finished.input_size
    size = (height, width)
    sources = {name: features_of(finished, AnomalyConfig(features=name), size) for name in SOURCES}
    folder.mkdir(parents=True, exist_ok=True)
    units = list(product(seeds, classes, SOURCES))

    def measured() -> Iterator[list[tuple[int, str, dict[str, dict[str, float]]]]]:
        for seed, normal, source in units:
            file = _numbers(folder, source, normal, seed)
            there: dict[str, Any] = read_json(file, [*alike, "scores"]) if file.is_file() else alike
            for name, value in alike.items():
                if there[name] != value:
                    raise InputError(f"{file} has {name} {there[name]}, and not {value}; give another folder")
            if there.get("measurement") != _MEASUREMENT:
                samples = digit_samples(in_chans, size, normal=normal, seed=seed)
                scores = detect_anomalies(
                    samples, sources[source], memory=memory, neighbours=neighbours, seed=seed, device=finished.device
                )
                own = {name: _measures(quality) for name, quality in scores.quality.items()}
                there = {"measurement": _MEASUREMENT, **alike, "scores": own, "ran_on": machine(environment())}
                write_json(file, there)
            yield [(seed, source, there["scores"])]

    parts: dict[tuple[str, str, str, int], list[float]] = {}
    for seed, source, by_score in with_progress(measured(), len(units), "finding anomalies"):
        for score, values in by_score.items():
            for measure, value in values.items():
                parts.setdefault((source, score, measure, seed), []).append(100 * value)
    trials = []
    for source, score in dict.fromkeys((source, score) for source, score, _, _ in parts):
        of_score: dict[str, dict[int, float]] = {}
        for (own, name, measure, seed), shares in parts.items():
            if (own, name) == (source, score):
                of_score.setdefault(measure, {})[seed] = fmean(shares)
        trials.append(DetectorTrials(source, score, of_score))
    return trials


def _numbers(folder: Path, source: str, normal: int, seed: int) -> Path:
    return folder / f"{source}-{normal}-seed-{seed}.json"


def _is_measured(file: Path) -> bool:
    """Tell whether numbers are there that were measured as this version does."""
    return file.is_file() and read_json(file).get("measurement") == _MEASUREMENT


def write_detectors(result: ExperimentResult, console: Console, *, measure: bool = True) -> None:
    """Measure the scores of anomalies, compare them, write `<experiment>.md` and `.json`, and print them.

    Args:
        result: The experiment, with the folder to write into.
        console: Where to print.
        measure: Whether to measure what is missing. Without, nothing is written unless all is there.

    Raises:
        InputError: If the packaged model is missing, or earlier numbers are damaged.
    """
    name, title = result.experiment.name, result.experiment.title
    run, folder, own_seeds = str(find_packaged(DEFAULT_MODEL)), result.folder / "runs" / name, range(result.trials)
    files = [_numbers(folder, source, normal, seed) for seed, normal, source in product(own_seeds, CLASSES, SOURCES)]
    missing = sum(not _is_measured(file) for file in files)
    if missing and not measure:
        console.print(f"{name}: {missing} of {len(files)} parts are not measured, and no page is written", markup=False)
        return
    trials = measure_detectors(run, folder, seeds=own_seeds, classes=CLASSES)
    comparisons = judge_detectors(trials, result.margin)
    tests = sum(each.judgement.p is not None for each in comparisons)
    seeds = "1 seed" if result.trials == 1 else f"{result.trials} seeds"
    page = MeasuredPage(
        f"Digits, each of the ten normal in turn; {seeds}, each the mean over the ten; features: of the packaged "
        f"{DEFAULT_MODEL}, which never saw a digit, or squares of pixels",
        describe_detectors(comparisons),
        {"Scores": trials_grid(trials), "Differences": comparison_grid(comparisons)},
        [
            "in per cent, mean +- standard deviation over the seeds; defects: mean of cut, blot and shift",
            "differences: memory energy minus the other score on the same features, in points, paired by seed",
            verdict_legend(tests, result.margin, OF_EXPERIMENT),
            f"ran on: {_ran_on(files)}",
        ],
    )
    written = page.write(result, {"classes": list(CLASSES), "trials": [asdict(each) for each in trials]})
    for caption, grid in page.tables.items():
        console.print(on_screen(grid, title if caption == "Scores" else caption))
    page.print_notes(written, console)


def describe_detectors(comparisons: Sequence[DetectorComparison]) -> list[str]:
    """Describe what the comparisons decide, in a sentence each, and what they leave open, in one."""
    names = [
        f"{_MEASURES[each.measure]}, features of {each.source}, against {DETECTORS[each.score].label}"
        for each in comparisons
    ]
    judged = zip(names, comparisons, strict=True)
    return describe_measures("the memory's energy", [(name, each.judgement, True) for name, each in judged])


def _ran_on(files: Sequence[Path]) -> str:
    """Name the machines that measured the parts: a page may be written elsewhere, or from parts of several."""
    return "; ".join(dict.fromkeys(read_json(file, []).get("ran_on", "a machine that is not noted") for file in files))


def _measures(quality: DetectionQuality) -> dict[str, float]:
    made = [value for kind, value in quality.by_kind.items() if kind != OTHER_CLASS]
    values = {
        "image": quality.image_auroc,
        "other": quality.by_kind[OTHER_CLASS],
        "defects": fmean(made),
        "pixel": quality.pixel_auroc,
        "pro": quality.pro,
        "f1": quality.image_f1,
    }
    return {name: value for name, value in values.items() if value is not None}


def judge_detectors(trials: Sequence[DetectorTrials], margin: float = MARGIN) -> list[DetectorComparison]:
    """Compare the energy of the memory with every other score on the same features, by seed, all judged together.

    What is compared: the AUROC of images, and of pixels where a score has maps.

    Args:
        trials: What was measured.
        margin: Points of AUROC that count as no difference.
    """
    by_key = {(each.source, each.score): each.values for each in trials}
    pairs = []
    for each in trials:
        if each.score == REFERENCE:
            continue
        for measure in ("image", "pixel"):
            if measure in each.values:
                own = by_key[each.source, REFERENCE][measure]
                difference = compare_means(own, each.values[measure])
                if difference is not None:
                    pairs.append((each, measure, difference))
    judgements = judge([(difference, margin) for _, _, difference in pairs])
    return [
        DetectorComparison(each.source, each.score, measure, judgement)
        for (each, measure, _), judgement in zip(pairs, judgements, strict=True)
    ]


def trials_grid(trials: Sequence[DetectorTrials]) -> Grid:
    """Make the table of all scores, in per cent, mean and standard deviation over the seeds."""
    rows = [
        (
            each.source,
            DETECTORS[each.score].label,
            *(mean_words(each.values.get(measure, {}), 1) for measure in _MEASURES),
        )
        for each in trials
    ]
    return Grid(("features", "score", *_MEASURES.values()), tuple(rows), 2)


def comparison_grid(comparisons: Sequence[DetectorComparison]) -> Grid:
    """Make the table of the comparisons: memory energy minus the other score, in points."""
    rows = [
        (
            each.source,
            DETECTORS[each.score].label,
            _MEASURES[each.measure],
            f"{each.judgement.comparison.difference:+.2f}",
            interval_words(each.judgement),
            p_words(each.judgement.p),
            verdict_words(each.judgement),
        )
        for each in comparisons
    ]
    interval = f"{CONFIDENCE:.0%} interval"
    header = ("features", "memory energy minus", "measure", "difference", interval, "p", "verdict")
    return Grid(header, tuple(rows), 3)
