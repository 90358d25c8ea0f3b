"""Can a run tell images of the kind it was trained on (in) from others (out)?"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from imixer.analysis.images import held_out_batches
from imixer.analysis.ood_detection import RESAMPLES, Detection, detection
from imixer.analysis.ood_figure import draw_ood
from imixer.analysis.ood_scores import SCORES, ood_scores
from imixer.analysis.ood_sets import SPOILT, outside_batches
from imixer.analysis.record import record
from imixer.training.reload import reload

_BATCH_SIZE = 256


@dataclass(frozen=True)
class OutOfDistribution:
    """Scores of images in and out, and how well they tell them apart.

    Attributes:
        inside: Scores of the run's held-out images, by name, (images,).
        outside: By set, likewise.
        detections: By set, by score.
    """

    inside: Dict[str, Tensor]
    outside: Dict[str, Dict[str, Tensor]]
    detections: Dict[str, Dict[str, Detection]]

    @property
    def missing(self) -> Tuple[str, ...]:
        """Scores that the model does not have."""
        return tuple(name for name in SCORES if name not in self.inside)


def compare_ood(inside: Dict[str, Tensor], outside: Dict[str, Dict[str, Tensor]]) -> OutOfDistribution:
    """Measure how well each score tells in from out.

    Args:
        inside: Scores of images in, by name, (images,).
        outside: Scores of images out, by set and name, (images,).
    """
    detections = {
        against: {name: detection(inside[name].numpy(), values.numpy()) for name, values in scores.items()}
        for against, scores in outside.items()
    }
    return OutOfDistribution(inside, outside, detections)


def analyze_ood(
    path: str,
    *,
    against: Sequence[str] = tuple(SPOILT),
    images: Optional[int] = None,
    data: Optional[str] = None,
    device: str = "auto",
) -> Tuple[OutOfDistribution, Path]:
    """Compare a run's held-out images with others and write `ood.json`, `ood.png` and `ood.pdf` into its `analysis`
    folder.

    Args:
        path: The run's directory.
        against: What to compare with, see `outside_batches`.
        images: Images of each set, evenly spread. Default: all.
        data: Where its data lie now. Default: where they lay.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The measurements and the folder.

    Raises:
        InputError: If run or data are not there.
    """
    reloaded = reload(path, device)

    def scores(batches: Iterable[Tensor]) -> Dict[str, Tensor]:
        parts = [ood_scores(reloaded.model, batch) for batch in batches]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    inside = scores(batch for batch, _ in held_out_batches(reloaded, images, _BATCH_SIZE, data))
    outside = {
        name: scores(outside_batches(reloaded, name, images, _BATCH_SIZE, data)) for name in dict.fromkeys(against)
    }
    found = compare_ood(inside, outside)
    return found, record(reloaded.run, "ood", _written(found), lambda path: draw_ood(found, path))


def _written(found: OutOfDistribution) -> Dict[str, Any]:
    return {
        "images": len(next(iter(found.inside.values()))),
        "scores": {name: asdict(SCORES[name]) for name in found.inside},
        "missing": list(found.missing),
        "intervals": f"95 %, percentiles of {RESAMPLES} bootstrap resamples, in and out drawn apart",
        "against": {
            against: {
                "images": len(next(iter(found.outside[against].values()))),
                "detection": {
                    name: {
                        measure: dict(zip(("estimate", "lower", "upper"), interval, strict=True))
                        for measure, interval in asdict(detected).items()
                    }
                    for name, detected in scores.items()
                },
            }
            for against, scores in found.detections.items()
        },
    }
