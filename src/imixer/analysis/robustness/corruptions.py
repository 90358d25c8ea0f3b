"""Accuracy on images that are noisy, blurred, in bad weather or badly stored."""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imixer.analysis.images import Pixels, count_held_out, held_out_batches, pixels_of
from imixer.data.randomness import mixed_seed
from imixer.errors import InputError
from imixer.progress import with_progress
from imixer.training.finished_run import load_run
from imixer.writing import json_text, write_text

SEVERITIES = (1, 2, 3, 4, 5)
GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in GROUPS.values() for name in names)
# The others move, blur or cover by lengths that are fixed in pixels, or by whole pixels.
AT_ANY_SIZE = (*GROUPS["noise"], "fog", "brightness", "contrast", "pixelate", "jpeg_compression")
SMALLEST = 32  # pixels a side that the others are made for
_BATCH_SIZE = 64
_SEEDED = ("impulse_noise", "glass_blur")  # with generators of their own


@dataclass(frozen=True)
class CorruptionScores:
    """What a model recognises of corrupted images.

    Attributes:
        names: Corruptions.
        clean: Whether each image is recognised as it is, (images,).
        correct: Whether it is corrupted, (corruptions, severities, images).
    """

    names: tuple[str, ...]
    clean: Tensor
    correct: Tensor

    @property
    def left_out(self) -> tuple[str, ...]:
        """Common corruptions that images this small cannot be given."""
        return tuple(name for name in CORRUPTIONS if name not in self.names)

    @property
    def accuracy(self) -> Tensor:
        """Share recognised, (corruptions, severities)."""
        return self.correct.double().mean(-1)

    @property
    def mean_error(self) -> tuple[float, float]:
        """Share not recognised, over corruptions and severities alike, and its standard error, by images."""
        return _mean(1 - self.correct.double().mean((0, 1)))

    @property
    def mean_rise(self) -> tuple[float, float]:
        """By how much that is above the error on the images as they are, and its standard error, by images."""
        return _mean(self.clean.double() - self.correct.double().mean((0, 1)))


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std(correction=min(1, len(values) - 1)) / len(values) ** 0.5)


def require_corruptions() -> None:
    """See that what corrupts images is installed.

    Raises:
        InputError: If not.
    """
    if find_spec("imagecorruptions") is None:
        raise InputError("--corruptions needs the package imagecorruptions-imaug; pip install 'imixer[robust]'")


def applicable(height: int, width: int) -> tuple[str, ...]:
    """Common corruptions that images of a size can be given: all, or below `SMALLEST` pixels those without lengths."""
    return CORRUPTIONS if min(height, width) >= SMALLEST else AT_ANY_SIZE


def corrupt(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """An image with one of the common corruptions, the same for the same seed.

    Gray images are corrupted as three equal channels, of which the green one is kept: their noise is as strong as
    that of colour images.

    Args:
        image: Bytes (height, width, 1 or 3).
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of what is random, below 2**32.

    Returns:
        Bytes of the same shape.

    Source: Hendrycks & Dietterich, Benchmarking neural network robustness to common corruptions and perturbations,
        2019; the severities are those for images of 224x224.
    """
    from imagecorruptions import corruption_dict

    colour = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))))
    with _numpy_seeded(seed):
        changed = corruption_dict[name](colour, severity, **({"seed": seed} if name in _SEEDED else {}))
    corrupted = np.asarray(changed).astype(np.uint8)  # truncated, as the package's own entry does
    return corrupted if image.shape[2] == 3 else corrupted[:, :, 1:2]


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


@torch.no_grad()
def score_corruptions(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor]],
    pixels: Pixels,
    names: tuple[str, ...],
    *,
    total: int,
    seed: int = 0,
) -> CorruptionScores:
    """Show a model images with all corruptions at all severities.

    Args:
        model: Images -> logits, in evaluation mode.
        batches: Images (B, in_chans, H, W), normalised as the model expects, and labels (B,).
        pixels: The normalisation.
        names: Corruptions.
        total: How many images there are at most, for the progress bar.
        seed: With the number of the image, the corruption and the severity, it decides on all that is random.
    """

    def chunks() -> Iterator[list[tuple[Tensor, Tensor]]]:
        done = 0
        for images, labels in batches:
            clean = (model(images).argmax(1) == labels).cpu()
            stored = pixels.of(images).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            correct = torch.zeros(len(images), len(names), len(SEVERITIES), dtype=torch.bool)
            for i, name in enumerate(names):
                for j, severity in enumerate(SEVERITIES):
                    salt = zlib.crc32(name.encode())  # not the place in `names`, which depends on the size
                    made = [
                        corrupt(image, name, severity, mixed_seed(seed, done + k, salt, severity))
                        for k, image in enumerate(stored)
                    ]
                    changed = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).to(images.device).float().div(255)
                    correct[:, i, j] = (model(pixels.normalised(changed)).argmax(1) == labels).cpu()
            done += len(images)
            yield list(zip(clean, correct, strict=True))

    clean, correct = zip(*with_progress(chunks(), total, "corrupting images"), strict=True)
    return CorruptionScores(names, torch.stack(clean), torch.stack(correct, -1))


def evaluate_corruptions(
    path: str, *, images: int | None = None, data: str | None = None, device: str = "auto"
) -> tuple[CorruptionScores, Path]:
    """Measure a run on its held-out images, corrupted at the size of the model's input, and write `corruptions.json`.

    Args:
        path: The run's directory.
        images: Held-out images, evenly spread. Default: all.
        data: Where its data lie now. Default: where they lay.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The scores and the file.

    Raises:
        InputError: If run or data are not there, or the package that corrupts is not installed.
    """
    require_corruptions()
    finished = load_run(path, device)
    names = applicable(*finished.input_size[1:])
    found = score_corruptions(
        finished.model,
        held_out_batches(finished, images, _BATCH_SIZE, data),
        pixels_of(finished),
        names,
        total=count_held_out(finished, images),
    )
    file = finished.directory.corruptions
    write_text(file, json_text(_row(found, finished.input_size)))
    return found, file


def _row(found: CorruptionScores, size: tuple[int, int, int]) -> dict[str, Any]:
    return {
        "images": len(found.clean),
        "input_size": list(size),
        "clean_accuracy": float(found.clean.double().mean()),
        "accuracy_by_severity": {name: row.tolist() for name, row in zip(found.names, found.accuracy, strict=True)},
        "mean_error": dict(zip(("mean", "standard_error"), found.mean_error, strict=True)),
        "mean_error_above_clean": dict(zip(("mean", "standard_error"), found.mean_rise, strict=True)),
        "left_out": list(found.left_out),
    }
