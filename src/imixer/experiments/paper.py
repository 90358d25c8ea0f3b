"""What the paper reports: top-1 accuracy in %, of ten trials. Source: Tables 1 to 4.

What its +- is, it does not say: a standard deviation or an error of the mean. Nor does it say whether the accuracy is
that of the last epoch or of the best one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Model = Literal["mixer", "imixer"]
Size = Literal["S", "B", "L"]
Norm = Literal["spectral", "none", "batch"]

CONDITIONS = (
    "CIFAR-10 unless the data are named, 224x224 pixels, 300 epochs, ten trials, ImageNet one; what its +- is, and "
    "whether the epoch is the last or the best, it does not say"
)
TRIALS = {"imagenet": 1}  # elsewhere ten
N_ITER, HIDDEN_RATIO = 2, 2.0  # of Tables 1 and 4, and whatever else does not say


@dataclass(frozen=True)
class Published:
    """A published accuracy.

    Args:
        mean: In %.
        spread: What stands after +-, in points. None for a single trial.
    """

    mean: float
    spread: float | None = None


# CIFAR-10.
TABLE1: dict[tuple[Model, Size], Published] = {
    ("mixer", "S"): Published(88.08, 0.51),
    ("mixer", "B"): Published(89.03, 0.24),
    ("mixer", "L"): Published(86.67, 0.30),
    ("imixer", "S"): Published(88.56, 0.30),
    ("imixer", "B"): Published(89.07, 0.33),
    ("imixer", "L"): Published(87.48, 0.40),
}

# CIFAR-10, S, by h_r and n.
TABLE2: dict[tuple[float, int], Published] = {
    (0.25, 1): Published(88.26, 0.28),
    (0.25, 2): Published(88.22, 0.33),
    (0.25, 4): Published(88.29, 0.37),
    (0.5, 1): Published(88.32, 0.39),
    (0.5, 2): Published(88.21, 0.45),
    (0.5, 4): Published(88.22, 0.43),
    (1.0, 1): Published(88.36, 0.31),
    (1.0, 2): Published(88.32, 0.32),
    (1.0, 4): Published(88.32, 0.32),
    (2.0, 1): Published(88.54, 0.34),
    (2.0, 2): Published(88.56, 0.30),
    (2.0, 4): Published(88.46, 0.26),
}

# CIFAR-10, S, by normalisation and n.
TABLE3: dict[tuple[Norm, int], Published] = {
    ("spectral", 1): Published(88.54, 0.34),
    ("spectral", 2): Published(88.56, 0.30),
    ("spectral", 4): Published(88.46, 0.26),
    ("none", 1): Published(88.73, 0.39),
    ("none", 2): Published(88.32, 0.31),
    ("none", 4): Published(88.07, 0.28),
    ("batch", 1): Published(87.60, 0.34),
    ("batch", 2): Published(81.62, 1.98),
    ("batch", 4): Published(81.83, 2.00),
}

# S.
TABLE4: dict[tuple[str, Model], Published] = {
    ("cifar100", "mixer"): Published(68.13, 0.46),
    ("cifar100", "imixer"): Published(68.26, 0.30),
    ("stanford_cars", "mixer"): Published(8.09, 0.45),
    ("stanford_cars", "imixer"): Published(7.96, 0.17),
    ("food101", "mixer"): Published(76.11, 0.32),
    ("food101", "imixer"): Published(76.08, 0.20),
    ("imagenet", "mixer"): Published(73.91),
    ("imagenet", "imixer"): Published(74.10),
}


def reported(published: Published | None, data: str, default: Model | None = None) -> Published | None:
    """Return what the paper reports of a row of Tables 1 to 3 that is trained on some data set.

    Args:
        published: What it reports on CIFAR-10.
        data: The data set. Digits, which it has not, are set beside its CIFAR-10.
        default: The model, if the row is its S with the paper's h_r and n: Table 4 has that one on other data too.

    Returns:
        None where it has nothing.
    """
    if data in ("cifar10", "digits"):
        return published
    return TABLE4.get((data, default)) if default else None
