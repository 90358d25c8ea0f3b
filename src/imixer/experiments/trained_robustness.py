"""Measure how robust a trained run is once, and keep it in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from imixer.errors import InputError
from imixer.experiments.trained_contraction import read_measured
from imixer.training.run.directory import RunDirectory
from imixer.writing import write_json

IMAGES = 1000  # held-out images at most: ten runs on all of CIFAR-10's would take hours
EPSILONS = (2.0, 4.0, 8.0, 16.0)  # of 255
# raise the number where the same run would give other values
_MEASURED = {"measurement": 1, "most_images": IMAGES, "epsilons": list(EPSILONS)}


@dataclass(frozen=True)
class TrainedRobustness:
    """The robustness of one run, in per cent.

    Args:
        accuracy: Accuracy on the images as they are.
        calibration_error: Expected calibration error on all held-out images.
        corrupted: Accuracy on corrupted images, mean over the severities, by corruption.
        attacked: Accuracy under attack, by the largest change of a pixel, of 255.
        ood_auroc: Area under the ROC curve by which a score tells images of another kind, by score and kind.
    """

    accuracy: float
    calibration_error: float
    corrupted: dict[str, float]
    attacked: dict[str, float]
    ood_auroc: dict[str, dict[str, float]]

    @property
    def mean_corrupted(self) -> float:
        """Accuracy on corrupted images, mean over corruptions and severities."""
        return fmean(self.corrupted.values())

    def mean_ood_auroc(self, score: str) -> float | None:
        """Return the mean area under the ROC curve over the kinds of images. None if the model lacks the score.

        Args:
            score: Name in `imixer.analysis.ood.scores.SCORES`.
        """
        return fmean(self.ood_auroc[score].values()) if score in self.ood_auroc else None


def measure_robustness(path: Path) -> TrainedRobustness:
    """Measure a finished run on its held-out images, or read what was measured alike.

    Images are corrupted alike, attacks begin alike, and images of another kind are the same for every run on the same
    data.

    Args:
        path: The run directory.

    Raises:
        InputError: If the data are missing, the package that corrupts images is, or the earlier measurement is damaged.
    """
    file = RunDirectory(path).analysis / "trained_robustness.json"
    if file.is_file() and (numbers := read_measured(file, _MEASURED)) is not None:
        return _robustness(file, numbers)
    from imixer.analysis.views import adversarial, corruptions, ood
    from imixer.training.evaluate import evaluate
    from imixer.training.finished_run import load_run

    evaluation, _ = evaluate(str(path))
    finished = load_run(str(path))
    harder = corruptions.measure(finished, images=IMAGES)
    attacked = adversarial.measure(finished, images=IMAGES, epsilon=EPSILONS)
    others = ood.measure(finished, images=IMAGES)
    scores = dict.fromkeys(name for detections in others.detections.values() for name in detections)
    measured = TrainedRobustness(
        accuracy=100 * float(harder.clean.double().mean()),
        calibration_error=100 * evaluation.ece,
        corrupted={name: 100 * float(row.mean()) for name, row in zip(harder.names, harder.accuracy, strict=True)},
        attacked={
            f"{epsilon:g}": 100 * float(accuracy)
            for epsilon, accuracy in zip(attacked.epsilons, attacked.accuracy, strict=True)
            if epsilon
        },
        ood_auroc={
            score: {kind: 100 * detections[score].auroc[0] for kind, detections in others.detections.items()}
            for score in scores
        },
    )
    file.parent.mkdir(exist_ok=True)
    write_json(file, _MEASURED | asdict(measured))
    return measured


def _robustness(file: Path, numbers: Mapping[str, Any]) -> TrainedRobustness:
    try:
        return TrainedRobustness(**numbers)
    except TypeError as error:
        raise InputError(f"{file} is damaged; remove it, and it is measured again") from error
