"""Compare trained models image by image, on the same images: what one model sees, and another does not."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from imixer.data.names import SCENES
from imixer.errors import InputError
from imixer.escaping import from_csv, one_line
from imixer.experiments.comparison import MARGIN, Judgement, MeanDifference, compare_means, judge
from imixer.experiments.sentences import interval_words, p_words, verdict_words
from imixer.reading import read_json, read_text
from imixer.tables import Grid, on_screen
from imixer.training.best_weights import WhichWeights
from imixer.training.evaluate import EvaluationFiles, evaluate, evaluation_files
from imixer.training.evaluate_masks import evaluate_masks
from imixer.training.finished_run import load_run
from imixer.writing import csv_text, write_text

FEWEST_DIFFERENT = 10  # images, of which a test needs as many for its normal approximation


@dataclass(frozen=True)
class ImageScores:
    """The score of a model on each image: 1 or 0 for right or wrong, or the mean IoU of its classes.

    Args:
        model: The run's directory, or the name of a packaged model.
        data: The name of the data set, or the test folder.
        metric: Name of the score.
        scores: The score of each image, by its name.
        true_classes: The true class of each image, by its name. Empty for segmentations.
        drawn: What images without a file of their own are drawn by: the seed and the share of the held-out ones.
    """

    model: str
    data: str
    metric: str
    scores: dict[str, float]
    true_classes: dict[str, str]
    drawn: tuple[int, float] | None = None

    @property
    def per_cent(self) -> float:
        """The mean score, in %."""
        return 100 * sum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True)
class ImagewiseDifference:
    """A model beside the first, on the same images.

    Args:
        own: The model.
        better: Images on which it scores higher than the first.
        worse: Images on which it scores lower.
        judgement: The difference in points, tested over the images.
    """

    own: ImageScores
    better: int
    worse: int
    judgement: Judgement


@dataclass(frozen=True)
class ImageComparison:
    """Several models beside the first of them, on the same images.

    Args:
        first: The first model.
        others: The others, each beside the first.
    """

    first: ImageScores
    others: tuple[ImagewiseDifference, ...]

    def write(self, file: Path) -> None:
        """Write the score of every model on every image as CSV, the images first on which the models differ most."""
        models = [self.first, *(each.own for each in self.others)]
        names = sorted(self.first.scores, key=lambda name: -_spread([each.scores[name] for each in models]))
        truth = self.first.true_classes
        header = ["image", *["true_class"] * bool(truth), *(each.model for each in models)]
        rows = [[name, *[truth[name]] * bool(truth), *(f"{each.scores[name]:g}" for each in models)] for name in names]
        write_text(file, csv_text(header, rows))


def compare_on_images(
    paths: Sequence[str],
    *,
    data: str | None = None,
    test: str | None = None,
    device: str = "auto",
    checkpoint: WhichWeights = "last",
    margin: float = MARGIN,
) -> ImageComparison:
    """Compare finished runs with the first of them, image by image.

    What `imixer evaluate` has written is read; a run without it is evaluated, and so is one whose test set has changed
    since. The differences of the images' scores get a paired t-test, which for right and wrong is McNemar's, and Holm's
    correction for the number of models. It is a statement on these weights and more such images. On what other seeds
    would give, it says nothing.

    Args:
        paths: Directories of runs or of packaged models, two or more, of one task and of the same images.
        data: The place where their data lie now. Default: where they lay in training.
        test: A folder of test images to compare on. Default: the held-out images.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.
        checkpoint: Whose weights to compare: those of the `last` epoch, or of the `best`.
        margin: Points within which a difference counts as none.

    Raises:
        InputError: If there are fewer than two runs, both data and test are given, one is no finished classification or
            segmentation, their tasks, images or true classes differ, or `evaluate` refuses one.
    """
    if len(paths) < 2:
        raise InputError(f"a comparison takes two runs or more, and there is {len(paths)}; give another RUN")
    if test is not None and data is not None:
        raise InputError("data is given, which is about the runs' own images; leave out one of it and --test")
    first, *others = (_scores(path, data, test, device, checkpoint) for path in paths)
    for other in others:
        _require_same_images(first, other)
    differences = [_difference(first, other) for other in others]
    judgements = judge([(difference, margin) for difference in differences])
    return ImageComparison(
        first,
        tuple(
            ImagewiseDifference(
                other,
                better=sum(other.scores[name] > score for name, score in first.scores.items()),
                worse=sum(other.scores[name] < score for name, score in first.scores.items()),
                judgement=judgement,
            )
            for other, judgement in zip(others, judgements, strict=True)
        ),
    )


def show_image_comparison(compared: ImageComparison, console: Console) -> None:
    """Show models beside the first, and what may be said of them.

    Args:
        compared: The models.
        console: Where to print.
    """
    first = compared.first
    count, metric = len(first.scores), first.metric
    grid = Grid(
        ("model", metric, "better on", "worse on", "difference", "95 % interval", "p", "verdict"),
        ((first.model, f"{first.per_cent:.2f} %", *[""] * 6), *(_row(each) for each in compared.others)),
        1,
    )
    console.print(on_screen(grid, f"{count:,} images of {first.data}, each model beside the first"))
    console.print(
        "better on, worse on: images on which it scores higher or lower. difference: in points. p: of a paired test "
        f"over the images, from {FEWEST_DIFFERENT} that differ, or of a sign test if all differ alike, corrected for "
        "the number of models. It tells what these weights do on more such images, and nothing of other seeds: `imixer "
        "sweep` trains several",
        markup=False,
    )


def _row(each: ImagewiseDifference) -> tuple[str, ...]:
    judgement = each.judgement
    return (
        each.own.model,
        f"{each.own.per_cent:.2f} %",
        f"{each.better:,}",
        f"{each.worse:,}",
        f"{judgement.comparison.difference:+.2f}",
        interval_words(judgement) or "-",
        p_words(judgement.p) or "-",
        verdict_words(judgement),
    )


def _spread(scores: Sequence[float]) -> float:
    return max(scores) - min(scores)


def _difference(first: ImageScores, other: ImageScores) -> MeanDifference:
    """Test a difference over the images; without a test where hardly any image tells the two apart."""
    names = list(first.scores)
    own, baseline = ({i: 100 * each.scores[name] for i, name in enumerate(names)} for each in (other, first))
    difference = compare_means(own, baseline)
    assert difference is not None  # there are images
    differences = [own[i] - baseline[i] for i in own]
    if sum(each != 0 for each in differences) < FEWEST_DIFFERENT:
        return MeanDifference(difference.difference, difference.test, difference.pairs)
    if difference.error is None and difference.difference != 0 and _spread(differences) < 1e-9:
        # The same on every image, as of all right and all wrong: McNemar's exact test, or any other score's sign test.
        return replace(difference, exact_p=0.5 ** (difference.pairs - 1))
    return difference


def _scores(path: str, data: str | None, test: str | None, device: str, checkpoint: WhichWeights) -> ImageScores:
    """Read the scores of a run on each image, and evaluate it if they are not there."""
    run = load_run(path, device, checkpoint)
    if run.config.task == "anomaly":
        raise InputError(f"{run.name} is a detector of anomalies, and this is for classes; leave it out")
    masks = run.config.task == "segment"
    files = evaluation_files(run.outputs, is_test=test is not None)
    if data is not None or not _are_there(files, test, run.config.data.name):  # what is there may be of other data
        if masks:
            evaluate_masks(run, data, 0, test)
        else:
            evaluate(path, data=data, test=test, device=device, checkpoint=checkpoint)
    scores, true_classes = _read_predictions(files.predictions, "miou" if masks else "correct")
    return ImageScores(
        run.name,
        str(read_json(files.scores, ["data"])["data"]),
        "mIoU of an image" if masks else "accuracy",  # the former is no mIoU of all pixels
        scores,
        true_classes,
        (run.config.data.split_seed, run.config.data.val_fraction) if run.config.data.name == SCENES else None,
    )


def _are_there(files: EvaluationFiles, test: str | None, data: str) -> bool:
    """Tell whether a run has been evaluated already, on this test set, or the folder of its data, as it is now."""
    if not (files.scores.is_file() and files.predictions.is_file()):
        return False
    if test is None:
        return not os.path.isdir(data) or _last_change(Path(data)) < files.predictions.stat().st_mtime
    same = Path(read_json(files.scores, ["data"])["data"]).resolve() == Path(test).resolve()
    return same and _last_change(Path(test)) < files.predictions.stat().st_mtime


def _last_change(path: Path) -> float:
    """Return when a file, or anything in a folder, was last written, added, removed or renamed; in seconds.

    It is infinity where that cannot be seen: of what is no longer there, or not on this machine.
    """
    inside = [os.path.join(folder, name) for folder, _, files in os.walk(path) for name in ("", *files)]
    changes = [os.stat(each).st_ctime for each in (str(path), *inside) if os.path.exists(each)]
    return max(changes, default=math.inf)


def _read_predictions(file: Path, column: str) -> tuple[dict[str, float], dict[str, str]]:
    """Read the score and the true class of each image from what `imixer evaluate` has written."""
    scores: dict[str, float] = {}
    true_classes: dict[str, str] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(file)), strict=True):
            name = _resolved(from_csv(row["image"]))
            scores[name] = float(row[column])
            if "true_class" in row:
                true_classes[name] = from_csv(row["true_class"])
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged: {one_line(error)}; `imixer evaluate` writes it anew") from error
    if not scores:
        raise InputError(f"{file} has no images; `imixer evaluate` writes it anew")
    return scores, true_classes


def _resolved(name: str) -> str:
    """Name an image by the real path of its file or shard, which has several names where folders do."""
    if os.path.exists(name):
        return os.path.realpath(name)
    place = re.fullmatch(r"(.* of )?(.*?)( row \d+)?", name)  # of a row of a shard
    if place is None or not os.path.exists(place[2]):
        return name
    return f"{place[1] or ''}{os.path.realpath(place[2])}{place[3] or ''}"


def _require_same_images(first: ImageScores, other: ImageScores) -> None:
    """Refuse to compare models on images that are not the same."""
    if first.metric != other.metric:
        raise InputError(f"{first.model} has {first.metric} and {other.model} {other.metric}; compare runs of one task")
    shared = first.scores.keys() & other.scores.keys()
    if len(shared) < max(len(first.scores), len(other.scores)):
        raise InputError(
            f"{first.model} was evaluated on {len(first.scores):,} images and {other.model} on {len(other.scores):,}, "
            f"of which {len(shared):,} are the same; give --test FOLDER with images for both"
        )
    if first.drawn != other.drawn:
        raise InputError(
            f"{first.model} and {other.model} hold out other images, by data.split_seed or data.val_fraction; give "
            "--test FOLDER with images for both"
        )
    for name, true_class in first.true_classes.items():
        if other.true_classes.get(name) != true_class:
            raise InputError(
                f"{name} is of class {true_class} to {first.model} and {other.true_classes.get(name)} to "
                f"{other.model}: the images are others; give --test FOLDER with images for both"
            )
