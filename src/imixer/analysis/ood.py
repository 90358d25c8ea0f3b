"""Can a run tell images of the kind it was trained on (in) from others (out)?"""

from dataclasses import dataclass

from torch import Tensor

from imixer.analysis.ood_detection import Detection, detection
from imixer.analysis.ood_scores import SCORES


@dataclass(frozen=True)
class OutOfDistribution:
    """Scores of images in and out, and how well they tell them apart.

    Attributes:
        inside: Scores of the run's held-out images, by name, (images,).
        outside: By set, likewise.
        detections: By set, by score.
    """

    inside: dict[str, Tensor]
    outside: dict[str, dict[str, Tensor]]
    detections: dict[str, dict[str, Detection]]

    @property
    def missing(self) -> tuple[str, ...]:
        """Scores that the model does not have."""
        return tuple(name for name in SCORES if name not in self.inside)


def compare_ood(inside: dict[str, Tensor], outside: dict[str, dict[str, Tensor]]) -> OutOfDistribution:
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
