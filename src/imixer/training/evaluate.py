"""Evaluate the model of a finished run, on its held-out images or a test set."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.data.batches import HeldOutBatches, batches_in_order, worker_message
from imixer.data.sources.folder import open_test_folder
from imixer.errors import InputError
from imixer.escaping import printable
from imixer.progress import announce, with_progress
from imixer.training.finished_run import FinishedRun, load_run
from imixer.training.finite_checks import require_finite_logits
from imixer.training.validation import ConfidenceBin, calibration_error, reliability
from imixer.writing import json_text, write_text

_WARM_UP = 2  # batches left out of the speed
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

    def write(self, file: Path) -> None:
        """Write the scores as JSON, rounded to six decimals, which is more than the number of images can tell."""
        write_text(file, json_text(_rounded(asdict(self))))


def evaluate(
    path: str,
    *,
    data: str | None = None,
    test: str | None = None,
    device: str = "auto",
    batch_size: int = 0,
) -> tuple[Evaluation, Path]:
    """Evaluate a finished run, and write the scores into its outputs.

    The file is `evaluation.json` for the held-out images, and `test_evaluation.json` for a test set.

    Args:
        path: The run's directory.
        data: The place where its data lie now. Default: where they lay in training.
        test: A folder of class folders, all of whose images are the test set; not every class need be there. Default:
            the held-out images.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.
        batch_size: Images of one forward pass. Default: as in training.

    Returns:
        The scores, and the file they are in.

    Raises:
        InputError: If run or data are not there or do not fit each other, or the weights or the logits are not finite.
    """
    run = load_run(path, device)
    result = score(run, data=data, test=test, batch_size=batch_size)
    outputs = run.make_outputs()
    file = outputs.evaluation if test is None else outputs.test_evaluation
    result.write(file)
    return result, file


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
    config = run.config
    if test is None:
        opened = run.data(data)
        name, items, skipped = opened.name, opened.val, opened.skipped
    else:
        items, skipped, left_out = open_test_folder(Path(test), run.class_names, run.input_size[0], config.data)
        if left_out:
            _log.warning(f"not used of {test}: {'; '.join(map(printable, left_out))}")
        name = test
    batches = batches_in_order(
        items, run.transform, config.data, device=run.device, batch_size=batch_size or config.micro_batch
    )
    announce(f"evaluating {len(items):,} images")
    try:
        logits, targets, speed = _logits(run, batches)
    except InputError as error:
        raise InputError(worker_message(error)) from error
    correct = logits.argmax(1) == targets
    return Evaluation(
        model=run.name if run.packaged else str(run.directory.model),
        data=name,
        images=len(targets),
        top1=correct.float().mean().item(),
        top5=_top5(logits, targets),
        loss=F.cross_entropy(logits, targets).item(),
        ece=calibration_error(logits, targets),
        images_per_s=round(speed, 1),
        device=str(run.device),
        skipped=skipped,
        per_class=_per_class(logits.argmax(1), targets, run.class_names),
        reliability=reliability(logits, targets),
    )


@torch.inference_mode()
def _logits(run: FinishedRun, batches: HeldOutBatches) -> tuple[Tensor, Tensor, float]:
    """Compute the logits of all images; return them with the true classes and the images per second."""
    logits, targets, began, counted = [], [], time.perf_counter(), 0
    shown = with_progress(([batch] for batch in batches), len(batches), "evaluating batches")
    for step, (images, labels) in enumerate(shown):
        logits.append(run.model(images).float().cpu())
        require_finite_logits(run.model, images, logits[-1], run.name)
        targets.append(labels.cpu())
        counted += len(labels)
        if step + 1 == _WARM_UP < len(batches):
            began, counted = time.perf_counter(), 0
    return torch.cat(logits), torch.cat(targets), counted / (time.perf_counter() - began)


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


def _rounded(scores: Any) -> Any:
    """Round all numbers to six decimals."""
    if isinstance(scores, dict):
        return {name: _rounded(value) for name, value in scores.items()}
    if isinstance(scores, list):
        return [_rounded(value) for value in scores]
    return round(scores, 6) if isinstance(scores, float) else scores
