"""Score feature vectors by how little they are like those of normal images.

K: vectors in the memory. D: features of a vector. B: vectors to score. Higher is less normal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from imixer.hopfield.memory import AssociativeMemory

_CHUNK = 2048  # vectors at once: distances to a memory of 10,000 are 80 MB


@dataclass(frozen=True)
class Detector:
    """Describe a score.

    Attributes:
        label: Name in tables and figures.
        formula: Definition.
        reason: Reason why it should be higher where something is not normal.
    """

    label: str
    formula: str
    reason: str


DETECTORS: dict[str, Detector] = {
    "memory_energy": Detector(
        "memory energy",
        "E(x) = -(1 / beta) log mean exp(-beta |x - xi|^2 / 2)",
        "a memory has the lowest energy at what it stores",
    ),
    "retrieval": Detector(
        "retrieval",
        "|x - softmax(-beta |x - xi|^2 / 2) xi|",
        "a memory can only give back what is normal; it is the slope of the energy",
    ),
    "knn": Detector("nearest neighbours", "mean |x - xi| over the k nearest", "anomalies lie far from all normal ones"),
    "mahalanobis": Detector(
        "Mahalanobis", "sqrt((x - m)^T C^-1 (x - m))", "normal ones are a Gaussian cloud, if they are"
    ),
    "block_energy": Detector(
        "block energy",
        "mean over blocks of |E - m| / s, E: energy of token mixing at the block's input; of whole images",
        "normal images have energies like each other in the trained blocks",
    ),
}
BY_POSITION = tuple(name for name in DETECTORS if name != "block_energy")  # which have heat maps


class NormalFeatures:
    """Learn from vectors of normal images, and score others.

    Choose it to score vectors from any source. Features are standardised first, by those that are learned from.

    Args:
        vectors: Vectors of normal images (N, D).
        memory: Largest number K of vectors to store, drawn at random.
        neighbours: Number k of nearest neighbours.
        seed: Seed of the draw.

    Attributes:
        memory: The Hopfield memory, of kind `modern`, which compares by distance. Its inverse temperature is such that
            at a stored vector all others together weigh e^-5 if they are as far as the nearest one is on average:
            beta = 2 (5 + log K) / mean squared distance to the nearest neighbour.
        stored: The vectors that it stores, standardised, (K, D).

    Source: Ramsauer et al., arXiv 2008.02217, for the memory; Roth et al., Towards total recall in industrial anomaly
        detection, arXiv 2106.08265, for the memory of patches and its nearest neighbours; Lee et al., arXiv 1807.03888,
        for the Mahalanobis distance.
    """

    def __init__(self, vectors: Tensor, *, memory: int = 2000, neighbours: int = 3, seed: int = 0) -> None:
        mean, std = vectors.mean(0), vectors.std(0, correction=0)
        std = torch.where(std > 1e-6, std, 1.0)  # what never varies keeps its unit
        standard = (vectors - mean) / std
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
        stored = standard[order[:memory].to(vectors.device)]
        covariance = (standard.T @ standard / len(standard)).double()
        # without a ridge, few or equal vectors have no inverse
        ridge = 1e-3 * (float(covariance.diagonal().mean()) or 1.0) * torch.eye(len(covariance), device=vectors.device)
        whiten = torch.linalg.cholesky(torch.linalg.inv(covariance + ridge)).to(vectors)
        self._set(mean, std, stored, whiten, _beta(stored), neighbours)

    def _set(self, mean: Tensor, std: Tensor, stored: Tensor, whiten: Tensor, beta: float, neighbours: int) -> None:
        self.mean, self.std, self.stored, self._whiten = mean, std, stored, whiten
        self.neighbours = min(neighbours, len(stored))
        self.memory = AssociativeMemory(stored, "modern", similarity="distance", beta=beta)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, neighbours: int = 3) -> NormalFeatures:
        """Restore what was learned.

        Args:
            tensors: What `tensors` returned.
            neighbours: Number k of nearest neighbours.
        """
        learned = cls.__new__(cls)
        mean, std, stored, whiten = (tensors[name] for name in ("mean", "std", "stored", "whiten"))
        learned._set(mean, std, stored, whiten, float(tensors["beta"]), neighbours)
        return learned

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was learned, by name, for `from_tensors`."""
        beta = torch.tensor(float(self.memory.options["beta"]), dtype=torch.float64)
        return {"mean": self.mean, "std": self.std, "stored": self.stored, "whiten": self._whiten, "beta": beta}

    @torch.no_grad()
    def scores(self, vectors: Tensor) -> dict[str, Tensor]:
        """Compute the scores (B,) of vectors (B, D), by their names in `BY_POSITION`."""
        parts: dict[str, list[Tensor]] = {name: [] for name in BY_POSITION}
        for chunk in vectors.split(_CHUNK):
            x = (chunk - self.mean) / self.std
            parts["memory_energy"].append(self.memory.energy(x) + self._offset)
            parts["retrieval"].append((x - self.memory(x)).norm(dim=1))
            parts["knn"].append(torch.cdist(x, self.stored).topk(self.neighbours, largest=False).values.mean(1))
            parts["mahalanobis"].append((x @ self._whiten).norm(dim=1))
        return {name: torch.cat(values) for name, values in parts.items()}

    @property
    def _offset(self) -> float:
        """Constant that makes the energy of a memory of one pattern 0 at it."""
        return math.log(len(self.stored)) / float(self.memory.options["beta"])


def _beta(stored: Tensor) -> float:
    """Return the inverse temperature at which stored vectors do not merge, by their mean distance to the nearest."""
    if len(stored) < 2:
        return 1.0
    nearest = []
    for start in range(0, len(stored), _CHUNK):
        distances = torch.cdist(stored[start : start + _CHUNK], stored)
        distances[torch.arange(len(distances)), torch.arange(start, start + len(distances))] = math.inf
        nearest.append(distances.amin(1))
    square = float(torch.cat(nearest).square().mean())
    return 2 * (5 + math.log(len(stored))) / square if square > 0 else 1.0


@dataclass(frozen=True)
class EnergyDeviations:
    """Score images by how far their energies are from those of normal images: `block_energy`.

    Choose `energy_deviations` to learn them.

    Args:
        mean: Mean energy of normal images in each block (blocks,).
        std: Standard deviation likewise.
    """

    mean: Tensor
    std: Tensor

    def __call__(self, energies: Tensor) -> Tensor:
        """Compute the scores (B,) of energies (B, blocks)."""
        return ((energies - self.mean).abs() / self.std).mean(1)


def energy_deviations(normal: Tensor) -> EnergyDeviations:
    """Learn the energies of normal images (N, blocks)."""
    std = normal.std(0, correction=0)
    return EnergyDeviations(normal.mean(0), torch.where(std > 1e-12, std, 1.0))
