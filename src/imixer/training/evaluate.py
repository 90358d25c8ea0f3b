"""How good a finished run's model is, on its validation data or a test set."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from imixer.data.batches import batches_in_order, worker_message
from imixer.data.sources.folder import open_test_folder
from imixer.errors import InputError
from imixer.escaping import printable
from imixer.progress import announce, with_progress
from imixer.training.finished_run import FinishedRun, load_run
from imixer.training.finite import require_finite_logits
from imixer.training.scores import ConfidenceBin, calibration_error, reliability
from imixer.writing import json_text, write_text

_WARM_UP = 2  # batches left out of the speed


@dataclass(frozen=True)
class ClassScore:
    """One class.

    Args:
        name: The class.
        images: Images of it.
        accuracy: Share of them that were recognised. None if there are none.
        precision: Share of what was taken for this class that is. None if nothing was.
    """

    name: str
    images: int
    accuracy: float | None
    precision: float | None


@dataclass(frozen=True)
class Evaluation:
    """Scores on labelled images.

    Args:
        model: Directory of the model.
        data: Name of the data set, or the test folder.
        images: Number of images.
        top1: Share recognised.
        top5: Share with the true class among the five most probable. None with five classes or fewer.
        loss: Mean cross entropy, in nats.
        ece: Expected calibration error, see `calibration_error`.
        images_per_s: Speed of loading and model together.
        device: Where it ran.
        skipped: Names of unreadable images that were left out.
        per_class: Each class.
        reliability: Accuracy by confidence.
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


def evaluate(
    path: str,
    *,
    data: str | None = None,
    test: str | None = None,
    device: str = "auto",
    batch_size: int = 0,
) -> tuple[Evaluation, Path]:
    """Evaluate a run on its held-out images and write `evaluation.json`, or on a test set: `test_evaluation.json`.

    Args:
        path: The run's directory.
        data: Where its data lie now. Default: where they lay.
        test: Folder of class folders, all of whose images are the test set; not every class need be there. Default:
            the held-out images.
        device: `cpu`, `cuda` or `auto`.
        batch_size: Images per step. Default: that of training.

    Returns:
        The scores and the file.

    Raises:
        InputError: If run or data are not there or do not fit each other, or the model or what it gives is not finite.
    """
    finished = load_run(path, device)
    config = finished.config
    if test is None:
        opened = finished.data(data)
        name, items, skipped, file = opened.name, opened.val, opened.skipped, finished.run.evaluation
    else:
        items, skipped, left_out = open_test_folder(
            Path(test), finished.class_names, finished.input_size[0], config.data
        )
        if left_out:
            print(f"not used of {test}: {'; '.join(map(printable, left_out))}", file=sys.stderr)
        name, file = test, finished.run.test_evaluation
    batches = batches_in_order(
        items, finished.transform, config.data, device=finished.device, batch_size=batch_size or config.micro_batch
    )
    announce(f"evaluating {len(items):,} images")
    try:
        logits, targets, speed = _run(finished, batches)
    except InputError as error:
        raise InputError(worker_message(error)) from error
    correct = logits.argmax(1) == targets
    result = Evaluation(
        model=str(finished.run.model),
        data=name,
        images=len(targets),
        top1=correct.float().mean().item(),
        top5=_top5(logits, targets),
        loss=F.cross_entropy(logits, targets).item(),
        ece=calibration_error(logits, targets),
        images_per_s=round(speed, 1),
        device=str(finished.device),
        skipped=skipped,
        per_class=_per_class(logits.argmax(1), targets, finished.class_names),
        reliability=reliability(logits, targets),
    )
    write_text(file, json_text(_rounded(asdict(result))))
    return result, file


@torch.inference_mode()
def _run(finished: FinishedRun, batches: Any) -> Any:
    logits, targets, began, counted = [], [], time.perf_counter(), 0
    shown = with_progress(([batch] for batch in batches), len(batches), "evaluating batches")
    for step, (images, labels) in enumerate(shown):
        logits.append(finished.model(images).float().cpu())
        require_finite_logits(finished.model, images, logits[-1], finished.run.path)
        targets.append(labels.cpu())
        counted += len(labels)
        if step + 1 == _WARM_UP < len(batches):
            began, counted = time.perf_counter(), 0
    return torch.cat(logits), torch.cat(targets), counted / (time.perf_counter() - began)


def _top5(logits: torch.Tensor, targets: torch.Tensor) -> float | None:
    if logits.shape[1] <= 5:
        return None
    return (logits.topk(5).indices == targets[:, None]).any(1).float().mean().item()


def _per_class(predicted: torch.Tensor, targets: torch.Tensor, names: Any) -> list[ClassScore]:
    n = len(names)
    hits = torch.bincount(targets[predicted == targets], minlength=n)
    true, taken = torch.bincount(targets, minlength=n), torch.bincount(predicted, minlength=n)
    return [
        ClassScore(name, int(t), float(h / t) if t else None, float(h / p) if p else None)
        for name, h, t, p in zip(names, hits, true, taken, strict=True)
    ]


def _rounded(scores: Any) -> Any:
    """Six decimals are more than the number of images can tell."""
    if isinstance(scores, dict):
        return {name: _rounded(value) for name, value in scores.items()}
    if isinstance(scores, list):
        return [_rounded(value) for value in scores]
    return round(scores, 6) if isinstance(scores, float) else scores
