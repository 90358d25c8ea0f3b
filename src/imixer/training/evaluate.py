"""How good a finished run's model is, on its validation data."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any, List, Optional

import torch
import torch.nn.functional as F

from imixer.data.loading import build_held_out, worker_message
from imixer.errors import InputError
from imixer.training.calibration import ConfidenceBin, calibration_error, reliability
from imixer.training.reload import reload

_WARM_UP = 2  # batches left out of the speed


@dataclass(frozen=True)
class ClassScore:
    """One class.

    Args:
        name: The class.
        images: Validation images of it.
        accuracy: Share of them that were recognised.
        precision: Share of what was taken for this class that is. None if nothing was.
    """

    name: str
    images: int
    accuracy: float
    precision: Optional[float]


@dataclass(frozen=True)
class Evaluation:
    """Scores on the validation data.

    Args:
        model: Directory of the model.
        data: Name of the data set.
        images: Number of images.
        top1: Share recognised.
        top5: Share with the true class among the five most probable. None with five classes or fewer.
        loss: Mean cross entropy, in nats.
        ece: Expected calibration error, see `calibration_error`.
        images_per_s: Speed of loading and model together.
        device: Where it ran.
        per_class: Each class.
        reliability: Accuracy by confidence.
    """

    model: str
    data: str
    images: int
    top1: float
    top5: Optional[float]
    loss: float
    ece: float
    images_per_s: float
    device: str
    per_class: List[ClassScore] = field(default_factory=list)
    reliability: List[ConfidenceBin] = field(default_factory=list)


def evaluate(path: str, *, data: Optional[str] = None, device: str = "auto", batch_size: int = 0) -> Evaluation:
    """Evaluate a run and write its `evaluation.json`.

    Args:
        path: The run's directory.
        data: Where its data lie now. Default: where they lay.
        device: `cpu`, `cuda` or `auto`.
        batch_size: Images per step. Default: that of training.

    Raises:
        InputError: If run or data are not there or do not fit each other.
    """
    reloaded = reload(path, device)
    images = reloaded.data(data)
    config = reloaded.config
    batches = build_held_out(
        images,
        config.data,
        reloaded.input_size,
        device=reloaded.device,
        batch_size=batch_size or config.micro_batch,
    )
    try:
        logits, targets, speed = _run(reloaded.model, batches)
    except InputError as error:
        raise InputError(worker_message(error)) from error
    correct = logits.argmax(1) == targets
    result = Evaluation(
        model=str(reloaded.run.model),
        data=images.name,
        images=len(targets),
        top1=correct.float().mean().item(),
        top5=_top5(logits, targets),
        loss=F.cross_entropy(logits, targets).item(),
        ece=calibration_error(logits, targets),
        images_per_s=round(speed, 1),
        device=str(reloaded.device),
        per_class=_per_class(logits.argmax(1), targets, reloaded.class_names),
        reliability=reliability(logits, targets),
    )
    reloaded.run.evaluation.write_text(json.dumps(_rounded(asdict(result)), indent=2), encoding="utf-8")
    return result


@torch.inference_mode()
def _run(model: Any, batches: Any) -> Any:
    logits, targets, began, counted = [], [], time.perf_counter(), 0
    for step, (images, labels) in enumerate(batches):
        logits.append(model(images).float().cpu())
        targets.append(labels.cpu())
        counted += len(labels)
        if step + 1 == _WARM_UP < len(batches):
            began, counted = time.perf_counter(), 0
    return torch.cat(logits), torch.cat(targets), counted / (time.perf_counter() - began)


def _top5(logits: torch.Tensor, targets: torch.Tensor) -> Optional[float]:
    if logits.shape[1] <= 5:
        return None
    return (logits.topk(5).indices == targets[:, None]).any(1).float().mean().item()


def _per_class(predicted: torch.Tensor, targets: torch.Tensor, names: Any) -> List[ClassScore]:
    n = len(names)
    hits = torch.bincount(targets[predicted == targets], minlength=n)
    true, taken = torch.bincount(targets, minlength=n), torch.bincount(predicted, minlength=n)
    return [
        ClassScore(name, int(t), float(h / t) if t else 0.0, float(h / p) if p else None)
        for name, h, t, p in zip(names, hits, true, taken, strict=True)
    ]


def _rounded(scores: Any) -> Any:
    """Six decimals are more than the number of images can tell."""
    if isinstance(scores, dict):
        return {name: _rounded(value) for name, value in scores.items()}
    if isinstance(scores, list):
        return [_rounded(value) for value in scores]
    return round(scores, 6) if isinstance(scores, float) else scores
