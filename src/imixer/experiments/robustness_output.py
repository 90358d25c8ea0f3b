"""Write how robust an iMixer and a Mixer are side by side: on screen, as Markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from operator import attrgetter, methodcaller
from typing import Any

from rich.console import Console

from imixer.analysis.ood.scores import SCORES
from imixer.experiments.comparison import CONFIDENCE, POWER, Judgement, compare_means, judge
from imixer.experiments.experiment_result import ExperimentResult
from imixer.experiments.measured_page import MeasuredPage
from imixer.experiments.sentences import (
    OF_EXPERIMENT,
    describe_measures,
    detectable_words,
    interval_words,
    mean_words,
    p_words,
    verdict_legend,
    verdict_words,
)
from imixer.experiments.table_output import conditions, remarks
from imixer.experiments.trained_robustness import IMAGES, TrainedRobustness, measure_robustness
from imixer.progress import with_progress
from imixer.tables import Grid, on_screen
from imixer.writing import write_csv

_OOD_SCORES = ("max_softmax", "logsumexp", "hopfield_mean", "hopfield_last")  # which iMixer and Mixer both have

Trials = Mapping[int, TrainedRobustness]  # by seed


@dataclass(frozen=True)
class RobustnessMeasure:
    """Name one number of a run that the two models are compared by.

    Args:
        name: Name in files.
        label: Name in tables and sentences.
        take: From the robustness of a run to the number, in per cent. None if the run lacks it.
        higher_is_better: Whether a larger number is the better one.
    """

    name: str
    label: str
    take: Callable[[TrainedRobustness], float | None]
    higher_is_better: bool = True


@dataclass(frozen=True)
class RobustnessComparison:
    """Hold the comparison of the iMixer with the Mixer by one measure.

    Args:
        measure: The measure.
        imixer: Its value of each trial of the iMixer, by seed.
        mixer: Its value of each trial of the Mixer, by seed.
        judgement: iMixer minus Mixer. None without a seed that both have.
    """

    measure: RobustnessMeasure
    imixer: dict[int, float]
    mixer: dict[int, float]
    judgement: Judgement | None = None


def measures_of(trials: Sequence[TrainedRobustness]) -> list[RobustnessMeasure]:
    """List what is compared: the same numbers for every run, chosen before any was measured."""
    attacks = dict.fromkeys(epsilon for trial in trials for epsilon in trial.attacked)
    return [
        RobustnessMeasure("accuracy", "accuracy", attrgetter("accuracy")),
        RobustnessMeasure("calibration_error", "calibration error", attrgetter("calibration_error"), False),
        RobustnessMeasure("corrupted", "accuracy on corrupted images", attrgetter("mean_corrupted")),
        *(
            RobustnessMeasure(f"within_{each}", f"accuracy within {each}/255", partial(_accuracy_within, each))
            for each in attacks
        ),
        *(
            RobustnessMeasure(f"ood_{score}", f"AUROC of other images, {label}", methodcaller("mean_ood_auroc", score))
            for score, label in ((name, SCORES[name].label) for name in _OOD_SCORES)
        ),
    ]


def _accuracy_within(epsilon: str, trial: TrainedRobustness) -> float | None:
    return trial.attacked.get(epsilon)


def compare_robustness(imixer: Trials, mixer: Trials, margin: float) -> list[RobustnessComparison]:
    """Compare an iMixer and a Mixer by every measure, in pairs of one seed, all judged together.

    A seed decides on order and shifts of the training images in both. Pairing is valid whether or not that makes their
    trials alike.

    Args:
        imixer: The trials of the iMixer.
        mixer: The trials of the Mixer.
        margin: Points within which a difference counts as none.
    """
    drafts = [
        RobustnessComparison(measure, _values(measure, imixer), _values(measure, mixer))
        for measure in measures_of([*imixer.values(), *mixer.values()])
    ]
    differences = [compare_means(draft.imixer, draft.mixer) for draft in drafts]
    judgements = iter(judge([(each, margin) for each in differences if each is not None]))
    return [
        RobustnessComparison(draft.measure, draft.imixer, draft.mixer, None if each is None else next(judgements))
        for draft, each in zip(drafts, differences, strict=True)
        if draft.imixer or draft.mixer
    ]


def _values(measure: RobustnessMeasure, trials: Trials) -> dict[int, float]:
    taken = {seed: measure.take(trial) for seed, trial in trials.items()}
    return {seed: value for seed, value in taken.items() if value is not None}


def robustness_table(comparisons: Sequence[RobustnessComparison]) -> Grid:
    """Make the table of all measures, a row each: both models in per cent, and the iMixer minus the Mixer in points."""
    header = ("measure", "iMixer", "Mixer", "difference", f"{CONFIDENCE:.0%} interval", "p", "detectable", "verdict")
    rows = []
    for each in comparisons:
        judgement = each.judgement
        compared = ("",) * 5
        if judgement is not None:
            compared = (
                f"{judgement.comparison.difference:+.2f}",
                interval_words(judgement),
                p_words(judgement.p),
                detectable_words(judgement.detectable),
                verdict_words(judgement),
            )
        rows.append((each.measure.label, mean_words(each.imixer, 1), mean_words(each.mixer, 1), *compared))
    return Grid(header, tuple(rows), 1)


def corruption_table(imixer: Trials, mixer: Trials) -> Grid:
    """Make the table of accuracies in per cent, a row per corruption, which are not compared one by one."""
    names = dict.fromkeys(name for trial in [*imixer.values(), *mixer.values()] for name in trial.corrupted)
    rows = [
        (
            name.replace("_", " "),
            *(mean_words({seed: t.corrupted[name] for seed, t in trials.items()}, 1) for trials in (imixer, mixer)),
        )
        for name in names
    ]
    return Grid(("corruption", "iMixer", "Mixer"), tuple(rows), 1)


def ood_table(imixer: Trials, mixer: Trials) -> Grid:
    """Make the table of the areas under the ROC curve in per cent, a row per kind of images and score."""
    every = [trial.ood_auroc for trial in [*imixer.values(), *mixer.values()]]
    scores = [score for score in SCORES if any(score in own for own in every)]
    kinds = dict.fromkeys(kind for own in every for of_score in own.values() for kind in of_score)
    rows = []
    for kind, score in product(kinds, scores):
        cells = [
            mean_words({seed: t.ood_auroc[score][kind] for seed, t in trials.items() if score in t.ood_auroc}, 1)
            for trials in (imixer, mixer)
        ]
        rows.append((kind, SCORES[score].label, *cells))
    return Grid(("images", "score", "iMixer", "Mixer"), tuple(rows), 2)


def describe_robustness(comparisons: Sequence[RobustnessComparison]) -> list[str]:
    """Describe what the comparisons decide, in a sentence each, and what they leave open, in one."""
    judged = [(each.measure, each.judgement) for each in comparisons if each.judgement is not None]
    return describe_measures(
        "the iMixer", [(measure.label, judgement, measure.higher_is_better) for measure, judgement in judged]
    )


def write_robustness(result: ExperimentResult, console: Console) -> None:
    """Measure the finished runs of an experiment on robustness, write its page, and print it.

    `<experiment>.md` has the tables and what they allow to be said, `.csv` the numbers of every run, `.json` all.

    Args:
        result: The experiment.
        console: Where to print.

    Raises:
        InputError: If a run cannot be measured.
    """
    console.print(result.experiment.title, style="bold")
    runs = [(row_result.row.name, run) for row_result in result.rows for run in row_result.finished]
    if not runs:
        missing = "; ".join(data.missing for data in result.data.values() if data.missing)
        console.print(f"not run: {missing or 'no trial is finished'}", markup=False)
        return
    measured: dict[str, dict[int, TrainedRobustness]] = {"imixer": {}, "mixer": {}}
    chunks = ([(row, run.seed, measure_robustness(run.path))] for row, run in runs)
    for row, seed, robustness in with_progress(chunks, len(runs), "measuring robustness"):
        measured[row][seed] = robustness
    imixer, mixer = measured["imixer"], measured["mixer"]
    comparisons = compare_robustness(imixer, mixer, result.margin)
    page = MeasuredPage(
        conditions(result),
        describe_robustness(comparisons),
        {
            "iMixer and Mixer": robustness_table(comparisons),
            "Corruptions": corruption_table(imixer, mixer),
            "Images of another kind": ood_table(imixer, mixer),
        },
        [*_legend(result, comparisons), *remarks(result)],
    )
    text, numbers = page.write(result, _facts(result, measured, comparisons), non_finite="null")
    records = text.with_suffix(".csv")
    write_csv(records, _records(comparisons))
    for caption, grid in page.tables.items():
        console.print(on_screen(grid, caption))
    page.print_notes([text, records, numbers], console)


def _legend(result: ExperimentResult, comparisons: Sequence[RobustnessComparison]) -> list[str]:
    costs = [
        f"{row_result.row.labels['model']}: {row_result.complexity.parameters:,} parameters, "
        f"{row_result.complexity.multiply_adds or 0:,} multiply-adds"
        for row_result in result.rows
        if row_result.complexity is not None
    ]
    tests = sum(each.judgement is not None and each.judgement.p is not None for each in comparisons)
    return [
        "; ".join(costs),
        f"per cent, mean +- standard deviation over the trials; on the held-out images, {IMAGES:,} of them at most, "
        "evenly spread; the calibration error on all of them. Corrupted: mean over corruptions and severities. Within "
        "epsilon: whatever PGD of 20 steps did. AUROC of other images: mean over images of noise, shuffled, rotated "
        "and inverted ones; a score is meant to be higher on the model's own",
        "difference: iMixer minus Mixer, in points; t-test on the differences seed by seed: a seed gives both the same "
        "order and shifts in training, and all runs are measured on the same harder images. detectable: the smallest "
        f"that such trials find with {POWER:.0%} power",
        verdict_legend(tests, result.margin, OF_EXPERIMENT),
        "single corruptions and kinds of images are listed, not tested",
    ]


def _records(comparisons: Sequence[RobustnessComparison]) -> list[dict[str, Any]]:
    return [
        {"measure": each.measure.name, "model": model, "seed": seed, "value": value}
        for each in comparisons
        for model, values in (("imixer", each.imixer), ("mixer", each.mixer))
        for seed, value in values.items()
    ]


def _facts(
    result: ExperimentResult,
    measured: Mapping[str, Trials],
    comparisons: Sequence[RobustnessComparison],
) -> dict[str, Any]:
    return {
        "scale": result.scale.name,
        "environments": result.environments,
        "trials": {
            model: {str(seed): asdict(trial) for seed, trial in trials.items()} for model, trials in measured.items()
        },
        "comparisons": [
            {
                "measure": each.measure.name,
                "difference": each.judgement.comparison.difference,
                "interval": each.judgement.comparison.interval,
                "p": each.judgement.p,
                "verdict": each.judgement.verdict,
            }
            for each in comparisons
            if each.judgement is not None
        ],
    }
