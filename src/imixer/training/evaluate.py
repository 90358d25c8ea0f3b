"""Evaluate the model of a finished run, on its held-out images or a test set."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.data.batches import HeldOutBatches, batches_in_order, worker_message
from imixer.data.image_data import LabelledImages, SizedDataset
from imixer.data.sources.folder import open_test_folder
from imixer.errors import InputError, user_line
from imixer.escaping import printable
from imixer.plotting import drawn
from imixer.progress import announce, with_progress
from imixer.training.best_weights import WhichWeights
from imixer.training.figures import WorstImage, draw_confusion_matrix, draw_worst_images
from imixer.training.finished_run import FinishedRun, load_run
from imixer.training.finite_checks import checked_logits, unsolved_note
from imixer.training.run.confusion import write_confusion
from imixer.training.run.directory import RunDirectory
from imixer.training.validation import ConfidenceBin, calibration_error, reliability
from imixer.writing import check_output_file, csv_text, json_text, write_text

_WARM_UP = 2  # batches left out of the speed
_WORST = 20  # images in the picture
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class.

    Args:
        name: The name of the class.
        images: The number of images of the class.
        accuracy: The share of its images that were recognised, its recall. None without images.
        precision: The share of the images taken for this class that are of it. None if no image was taken for it.
    """

    name: str
    images: int
    accuracy: float | None
    precision: float | None


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on labelled images.

    Args:
        model: The directory of the model, or the name of a packaged one.
        data: The name of the data set, or the test folder.
        images: The number of images.
        top1: The accuracy: the share of images whose most probable class is the true one.
        top5: The share of images whose true class is among the five most probable. None with five classes or fewer.
        loss: The mean cross entropy, in nats.
        ece: The expected calibration error; see `imixer.training.validation.calibration_error`.
        images_per_s: The speed of loading and model together.
        device: The device that computed.
        skipped: The names of unreadable images that were left out.
        per_class: The scores of each class, in the order of the logits.
        reliability: The accuracy by confidence; see `imixer.training.validation.reliability`.
        checkpoint: Whose weights were evaluated: those of the `last` epoch, or of the `best`.
        unsolved: The number of images of which the inverse of a block was not found.
    """

    model: str
    data: str
    images: int
    top1: float
    top5: float | None
    loss: float
    ece: float
    images_per_s: float
    device: str
    skipped: Sequence[str] = ()
    per_class: list[ClassScore] = field(default_factory=list)
    reliability: list[ConfidenceBin] = field(default_factory=list)
    checkpoint: WhichWeights = "last"
    unsolved: int = 0

    def write(self, file: Path) -> None:
        """Write the scores as JSON, rounded to six decimals, which is more than the number of images can tell."""
        write_text(file, json_text(rounded(asdict(self))))


@dataclass(frozen=True)
class EvaluationFiles:
    """The files that an evaluation writes.

    Args:
        scores: The scores.
        predictions: The true and the predicted class of each image, the largest loss first, as CSV.
        confusion_counts: The counts of true against predicted class, as CSV.
        confusion_matrix: The figure of these counts, which need not be there: it may have failed.
        worst_images: The figure of the images with the largest loss, likewise.
    """

    scores: Path
    predictions: Path
    confusion_counts: Path
    confusion_matrix: Path
    worst_images: Path

    @property
    def written(self) -> list[Path]:
        """Those that are there."""
        return [file for file in self._all if file.exists()]

    @property
    def _all(self) -> tuple[Path, ...]:
        return self.scores, self.predictions, self.confusion_counts, self.confusion_matrix, self.worst_images

    def check(self) -> None:
        """Check that they can be written, before anything is computed.

        Raises:
            InputError: If one is a folder, or none can be written to their folder.
        """
        for file in self._all:
            check_output_file(file, "evaluation", replace=True)


def evaluate(
    path: str,
    *,
    data: str | None = None,
    test: str | None = None,
    device: str = "auto",
    checkpoint: WhichWeights = "last",
    batch_size: int = 0,
) -> tuple[Evaluation, EvaluationFiles]:
    """Evaluate a finished run, and write what came out into its outputs.

    The files are `evaluation.json`, `predictions.csv`, `confusion_matrix.csv` and two figures for the held-out images,
    and the same with `test_` before their names for a test set. The weights of the best epoch have a folder `best`.

    Args:
        path: The run's directory.
        data: The place where its data lie now. Default: where they lay in training.
        test: A folder of class folders, all of whose images are the test set; not every class need be there. Default:
            the held-out images.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.
        checkpoint: Whose weights to evaluate: those of the `last` epoch, or of the `best`.
        batch_size: Images of one forward pass. Default: as in training.

    Returns:
        The scores, and the files.

    Raises:
        InputError: If run or data are not there or do not fit each other, the weights or the logits are not finite, or
            the files cannot be written.
    """
    run = load_run(path, device, checkpoint)
    images = _held_out(run, data) if test is None else _test_set(run, test)
    files = evaluation_files(run.make_outputs(), is_test=test is not None)
    files.check()
    outcome = _evaluate(run, images, batch_size)
    logits, targets = outcome.logits, outcome.targets
    losses = F.cross_entropy(logits, targets, reduction="none")
    worst = losses.argsort(descending=True).tolist()
    sources = image_names(images.items, "held-out" if test is None else "test")
    with result_kept(f"accuracy {outcome.scores.top1:.2%}, cross entropy {outcome.scores.loss:.4f}"):
        outcome.scores.write(files.scores)
        _write_predictions(files.predictions, logits, targets, losses, run.class_names, sources, worst)
        _write_confusion_matrix(files, logits, targets, run.class_names, Path(images.name).name)
    shown = [
        WorstImage(
            image=images.items[place][0],
            name=Path(sources[place]).name if Path(sources[place]).exists() else sources[place],
            truth=run.class_names[int(targets[place])],
            predicted=run.class_names[int(logits[place].argmax())],
            confidence=float(logits[place].softmax(0).max()),
        )
        for place in worst[:_WORST]
    ]
    wrong = int((logits.argmax(1) != targets).sum())
    drawn(files.worst_images, lambda picture: draw_worst_images(shown, wrong, len(targets), picture))
    return outcome.scores, files


def score(run: FinishedRun, *, data: str | None = None, test: str | None = None, batch_size: int = 0) -> Evaluation:
    """Score a loaded run on its held-out images or a test set, without writing anything.

    Args:
        run: The run.
        data: The place where its data lie now. Default: where they lay in training.
        test: A folder of class folders to score on instead.
        batch_size: Images of one forward pass. Default: as in training.

    Raises:
        InputError: If the data are not there or do not fit the run, or the logits are not finite.
    """
    images = _held_out(run, data) if test is None else _test_set(run, test)
    return _evaluate(run, images, batch_size).scores


@dataclass(frozen=True)
class _LabelledSet:
    """Images to evaluate on: the name of the set, the images, and the names of unreadable ones that were left out."""

    name: str
    items: LabelledImages
    skipped: Sequence[str]


@dataclass(frozen=True)
class _Outcome:
    """The outcome of an evaluation: scores, logits (images, num_classes), true classes (images,)."""

    scores: Evaluation
    logits: Tensor
    targets: Tensor


def _held_out(run: FinishedRun, data_path: str | None) -> _LabelledSet:
    data = run.data(data_path)
    return _LabelledSet(data.name, data.val, data.skipped)


def _test_set(run: FinishedRun, folder: str) -> _LabelledSet:
    test = open_test_folder(Path(folder), run.class_names, run.input_size[0], run.config.data)
    tell_of_test_set(folder, test.left_out, test.notes)
    return _LabelledSet(folder, test.images, test.skipped)


def tell_of_test_set(place: str, left_out: Sequence[str], notes: Sequence[str]) -> None:
    """Warn of what is not used of a test set, and of what was seen in it.

    Args:
        place: Where it lies.
        left_out: The folders and files that are not used.
        notes: What was seen, a sentence each.
    """
    unused = [f"not used of {place}: {'; '.join(left_out)}"] if left_out else []
    for note in (*unused, *notes):
        _log.warning(printable(note))


def _evaluate(run: FinishedRun, images: _LabelledSet, batch_size: int) -> _Outcome:
    """Compute the logits of all images, and score them."""
    config = run.config
    batches = batches_in_order(
        images.items, run.transform, config.data, device=run.device, batch_size=batch_size or config.micro_batch
    )
    announce(f"evaluating {len(images.items):,} images")
    try:
        logits, targets, unsolved, speed = _logits(run, batches)
    except InputError as error:
        raise InputError(worker_message(error)) from error
    scores = Evaluation(
        model=run.name if run.packaged else str(run.directory.model),
        data=images.name,
        images=len(targets),
        top1=(logits.argmax(1) == targets).float().mean().item(),
        top5=_top5(logits, targets),
        loss=F.cross_entropy(logits, targets).item(),
        ece=calibration_error(logits, targets),
        images_per_s=round(speed, 1),
        device=str(run.device),
        skipped=images.skipped,
        per_class=_per_class(logits.argmax(1), targets, run.class_names),
        reliability=reliability(logits, targets),
        checkpoint=run.checkpoint,
        unsolved=unsolved,
    )
    if unsolved:
        _log.warning(unsolved_note(unsolved, len(targets), "images"))
    return _Outcome(scores, logits, targets)


def evaluation_files(outputs: RunDirectory, *, is_test: bool) -> EvaluationFiles:
    """Name the files of an evaluation.

    Args:
        outputs: The directory they go into.
        is_test: Whether it is of a test set, and not of the held-out images.
    """
    if is_test:
        return EvaluationFiles(
            outputs.test_evaluation,
            outputs.test_predictions,
            outputs.test_confusion_counts,
            outputs.test_confusion_matrix,
            outputs.test_worst_images,
        )
    return EvaluationFiles(
        outputs.evaluation,
        outputs.predictions,
        outputs.confusion_counts,
        outputs.confusion_matrix,
        outputs.worst_images,
    )


@contextmanager
def result_kept(result: str) -> Iterator[None]:
    """Keep a result that was just measured, should it be impossible to write: the error tells it.

    Args:
        result: The result in words.

    Raises:
        InputError: If the system refuses a file.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{user_line(error)}; not written was: {result}") from error


def image_names(items: SizedDataset[Any], kind: str) -> list[str]:
    """Name images: by their files, or shards and rows, where they have some, else by place, such as `held-out 12`.

    Args:
        items: The images.
        kind: What stands before the place.
    """
    names = getattr(items, "paths", None) or getattr(items, "names", None)
    return list(map(str, names)) if names is not None else [f"{kind} {place}" for place in range(len(items))]


def _write_predictions(
    file: Path,
    logits: Tensor,
    targets: Tensor,
    losses: Tensor,
    names: Sequence[str],
    images: Sequence[str],
    order: Sequence[int],
) -> None:
    chances = logits.softmax(1)
    header = ["image", "true_class", "predicted_class", "correct", "confidence", "probability_of_true_class", "loss"]
    rows = []
    for place in order:
        true, predicted = int(targets[place]), int(chances[place].argmax())
        numbers = (chances[place, predicted], chances[place, true], losses[place])
        words = [images[place], names[true], names[predicted], int(true == predicted)]
        rows.append([*words, *(f"{float(number):.6f}" for number in numbers)])
    write_text(file, csv_text(header, rows))


def _write_confusion_matrix(
    files: EvaluationFiles, logits: Tensor, targets: Tensor, names: Sequence[str], data: str
) -> None:
    n = len(names)
    counts = torch.bincount(targets * n + logits.argmax(1), minlength=n * n).reshape(n, n).numpy()
    write_confusion(counts.tolist(), names, files.confusion_counts)
    drawn(files.confusion_matrix, lambda path: draw_confusion_matrix(counts, names, path, title=data))


@torch.inference_mode()
def _logits(run: FinishedRun, batches: HeldOutBatches) -> tuple[Tensor, Tensor, int, float]:
    """Compute the logits of all images; return them with the true classes, how many are unsolved, and images per s."""
    logits, targets, unsolved, began, counted = [], [], 0, time.perf_counter(), 0
    shown = with_progress(([batch] for batch in batches), len(batches), "evaluating batches")
    for step, (images, labels) in enumerate(shown):
        own, lost = checked_logits(run.model, images, run.name)
        logits.append(own.float().cpu())
        unsolved += lost
        targets.append(labels.cpu())
        counted += len(labels)
        if step + 1 == _WARM_UP < len(batches):
            began, counted = time.perf_counter(), 0
    return torch.cat(logits), torch.cat(targets), unsolved, counted / (time.perf_counter() - began)


def _top5(logits: Tensor, targets: Tensor) -> float | None:
    if logits.shape[1] <= 5:
        return None
    return (logits.topk(5).indices == targets[:, None]).any(1).float().mean().item()


def _per_class(predicted: Tensor, targets: Tensor, names: Sequence[str]) -> list[ClassScore]:
    n = len(names)
    hits = torch.bincount(targets[predicted == targets], minlength=n)
    true, taken = torch.bincount(targets, minlength=n), torch.bincount(predicted, minlength=n)
    return [
        ClassScore(name, int(t), float(h / t) if t else None, float(h / p) if p else None)
        for name, h, t, p in zip(names, hits, true, taken, strict=True)
    ]


def rounded(scores: Any) -> Any:
    """Round all numbers to six decimals."""
    if isinstance(scores, dict):
        return {name: rounded(value) for name, value in scores.items()}
    if isinstance(scores, list):
        return [rounded(value) for value in scores]
    return round(scores, 6) if isinstance(scores, float) else scores
