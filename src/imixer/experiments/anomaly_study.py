"""Compare scores of anomalies: each digit is normal in turn, over several seeds, with paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console

from imixer.analysis.anomaly.detect import AnomalyScores, detect_anomalies
from imixer.analysis.anomaly.detection_quality import DetectionQuality
from imixer.analysis.anomaly.detectors import DETECTORS
from imixer.analysis.anomaly.find import features_of
from imixer.analysis.anomaly.samples import OTHER_CLASS, digit_samples
from imixer.errors import InputError
from imixer.experiments.comparison import Judgement, compare_means, judge
from imixer.progress import with_progress
from imixer.tables import Grid, markdown, on_screen, plus_minus
from imixer.training.finished_run import WhichWeights, load_run
from imixer.training.run.directory import check_out, create_run
from imixer.writing import write_json, write_text

SEEDS = (0, 1, 2, 3, 4)
CLASSES = (0, 2, 4, 6, 8)
SOURCES = ("model", "pixels")
MARGIN = 1.0  # points of AUROC that count as no difference, chosen before the trials
REFERENCE = "memory_energy"

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


def compare_detectors(
    run: str,
    *,
    memory: int = 1000,
    neighbours: int = 3,
    out: str | None = None,
    device: str = "auto",
    checkpoint: WhichWeights = "last",
    seeds: Sequence[int] = SEEDS,
    classes: Sequence[int] = CLASSES,
) -> tuple[list[DetectorTrials], list[DetectorComparison], Path]:
    """Measure all scores on the digits, compare the memory's energy with each other, and write the tables.

    A seed decides which digits are learned from, the defects, and which vectors are stored. Its value is the mean over
    the classes, each being normal in turn.

    Args:
        run: Directory of a run or of a packaged model, whose features are compared.
        memory: Largest number of feature vectors to store.
        neighbours: Number of nearest neighbours.
        out: Folder to make. Default: the next free `runs/anomaly-study-<number>`.
        device: `cpu`, `cuda` or `auto`.
        checkpoint: Whose weights to take.
        seeds: The seeds.
        classes: The digits that are normal in turn.

    Returns:
        What was measured, the comparisons, and the folder.

    Raises:
        InputError: If the run or an option is impossible.
    """
    check_out(out)
    if memory < 1 or neighbours < 1:
        raise InputError(f"memory is {memory} and neighbours is {neighbours}; give 1 or more of each")
    finished = load_run(run, device, checkpoint)
    in_chans, height, width = finished.input_size
    size = (height, width)
    sources = {name: features_of(finished, name, size) for name in SOURCES}
    units = [(seed, normal, source) for seed in seeds for normal in classes for source in SOURCES]

    def measured() -> Iterator[list[tuple[int, str, AnomalyScores]]]:
        for seed, normal, source in units:
            samples = digit_samples(in_chans, size, normal=normal, seed=seed)
            scores = detect_anomalies(
                samples, sources[source], memory=memory, neighbours=neighbours, seed=seed, device=finished.device
            )
            yield [(seed, source, scores)]

    parts: dict[tuple[str, str, str, int], list[float]] = {}
    for seed, source, scores in with_progress(measured(), len(units), "finding anomalies"):
        for score, quality in scores.quality.items():
            for measure, value in _measures(quality).items():
                parts.setdefault((source, score, measure, seed), []).append(100 * value)
    trials = []
    for source, score in dict.fromkeys((source, score) for source, score, _, _ in parts):
        of_score: dict[str, dict[int, float]] = {}
        for (own, name, measure, seed), values in parts.items():
            if (own, name) == (source, score):
                of_score.setdefault(measure, {})[seed] = fmean(values)
        trials.append(DetectorTrials(source, score, of_score))
    comparisons = judge_detectors(trials)
    folder = create_run(out, "anomaly", "study").path
    settings = dict(model=finished.name, memory=memory, neighbours=neighbours, margin=MARGIN, classes=list(classes))
    rows = [{"source": each.source, "score": each.score, **each.values} for each in trials]
    write_json(folder / "anomaly.json", {**settings, "trials": rows})
    tables = "\n".join(markdown(grid) for grid in (trials_grid(trials), comparison_grid(comparisons)))
    write_text(folder / "anomaly.md", tables)
    return trials, comparisons, folder


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


def judge_detectors(trials: Sequence[DetectorTrials]) -> list[DetectorComparison]:
    """Compare the energy of the memory with every other score on the same features, by seed, all judged together.

    What is compared: the AUROC of images, and of pixels where a score has maps.
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
    judgements = judge([(difference, MARGIN) for _, _, difference in pairs])
    return [
        DetectorComparison(each.source, each.score, measure, judgement)
        for (each, measure, _), judgement in zip(pairs, judgements, strict=True)
    ]


def trials_grid(trials: Sequence[DetectorTrials]) -> Grid:
    """Make the table of all scores, in per cent, mean and standard deviation over the seeds."""
    rows = [
        (each.source, DETECTORS[each.score].label, *(_cell(each.values.get(measure)) for measure in _MEASURES))
        for each in trials
    ]
    return Grid(("features", "score", *_MEASURES.values()), tuple(rows), 2)


def _cell(values: dict[int, float] | None) -> str:
    if not values:
        return "-"
    every = list(values.values())
    return plus_minus(fmean(every), stdev(every) if len(every) > 1 else None, 1)


def comparison_grid(comparisons: Sequence[DetectorComparison]) -> Grid:
    """Make the table of the comparisons: memory energy minus the other score, in points."""
    rows = []
    for each in comparisons:
        judgement = each.judgement
        interval = judgement.comparison.interval
        rows.append(
            (
                each.source,
                DETECTORS[each.score].label,
                _MEASURES[each.measure],
                f"{judgement.comparison.difference:+.2f}",
                "-" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
                "-" if judgement.p is None else f"{judgement.p:.2g}",
                judgement.verdict,
            )
        )
    header = ("features", "memory energy minus", "measure", "points", "95 % interval", "p, corrected", "verdict")
    return Grid(header, tuple(rows), 3)


def show_detectors(
    trials: Sequence[DetectorTrials], comparisons: Sequence[DetectorComparison], folder: Path, console: Console
) -> None:
    """Print both tables and the files.

    Args:
        trials: What was measured.
        comparisons: What was compared.
        folder: Folder that they were written into.
        console: Console to print on.
    """
    console.print(on_screen(trials_grid(trials), ""))
    console.print()
    console.print(on_screen(comparison_grid(comparisons), ""))
    console.print(f"in per cent; equivalent: within {MARGIN:g} point; p after Holm's correction for {len(comparisons)}")
    console.print(f"written: {folder / 'anomaly.json'}, {folder / 'anomaly.md'}", soft_wrap=True)
