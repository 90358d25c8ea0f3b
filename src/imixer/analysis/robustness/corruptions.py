"""Measure accuracy on images that are noisy, blurred, in bad weather or badly stored."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imixer.analysis.images import Pixels
from imixer.data.randomness import mixed_seed
from imixer.extras import require_extra
from imixer.progress import with_progress

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
_SEEDED = ("impulse_noise", "glass_blur")  # with generators of their own


@dataclass(frozen=True)
class CorruptionScores:
    """Hold what a model recognises of corrupted images.

    Attributes:
        names: Corruptions.
        input_size: Channels, height and width of the images.
        clean: Whether each image is recognised as it is, (images,).
        correct: Whether each image is recognised when corrupted, (corruptions, severities, images).
    """

    names: tuple[str, ...]
    input_size: tuple[int, int, int]
    clean: Tensor
    correct: Tensor

    @property
    def left_out(self) -> tuple[str, ...]:
        """Common corruptions that images this small cannot be given."""
        return tuple(name for name in CORRUPTIONS if name not in self.names)

    @property
    def accuracy(self) -> Tensor:
        """Accuracy on corrupted images, (corruptions, severities)."""
        return self.correct.double().mean(-1)

    @property
    def mean_error(self) -> tuple[float, float]:
        """Mean error over corruptions and severities alike, and its standard error by the number of images."""
        return _mean_and_error(1 - self.correct.double().mean((0, 1)))

    @property
    def mean_rise(self) -> tuple[float, float]:
        """Mean error minus the error on the images as they are, and its standard error by the number of images."""
        return _mean_and_error(self.clean.double() - self.correct.double().mean((0, 1)))


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std(correction=min(1, len(values) - 1)) / len(values) ** 0.5)


def require_corruptions(purpose: str = "--corruptions") -> None:
    """Check that the package that corrupts images is installed.

    Args:
        purpose: What needs it.

    Raises:
        MissingExtraError: If it is not.
    """
    require_extra("robust", purpose)


def applicable(height: int, width: int) -> tuple[str, ...]:
    """Name the corruptions for images of a size: all, or below `SMALLEST` pixels a side those without lengths."""
    return CORRUPTIONS if min(height, width) >= SMALLEST else AT_ANY_SIZE


def corrupt_image(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """Corrupt an image by one of the common corruptions, the same for the same seed.

    Gray images are corrupted as three equal channels, of which the green one is kept: their noise is as strong as
    that of colour images.

    Args:
        image: Bytes (height, width, 1 or 3).
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Seed of what is random, below 2**32.

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
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    pixels: Pixels,
    names: tuple[str, ...],
    *,
    total: int,
    seed: int = 0,
) -> CorruptionScores:
    """Measure accuracy on images with all corruptions at all severities.

    Args:
        model: From images to logits, in evaluation mode.
        batches: Images (B, in_chans, H, W), normalised as the model expects, and labels (B,).
        pixels: Normalisation of the model.
        names: Corruptions.
        total: Number of images at most, for the progress bar.
        seed: Seed. With the number of the image, the corruption and the severity, it decides on all that is random.
    """
    sizes: set[tuple[int, ...]] = set()

    def chunks() -> Iterator[list[tuple[Tensor, Tensor]]]:
        done = 0
        for images, labels in batches:
            sizes.add(tuple(images.shape[1:]))
            clean = (model(images).argmax(1) == labels).cpu()
            stored = pixels.of(images).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            correct = torch.zeros(len(images), len(names), len(SEVERITIES), dtype=torch.bool)
            for i, name in enumerate(names):
                for j, severity in enumerate(SEVERITIES):
                    salt = zlib.crc32(name.encode())  # not the place in `names`, which depends on the size
                    made = [
                        corrupt_image(image, name, severity, mixed_seed(seed, done + k, salt, severity))
                        for k, image in enumerate(stored)
                    ]
                    changed = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).to(images.device).float().div(255)
                    correct[:, i, j] = (model(pixels.normalised(changed)).argmax(1) == labels).cpu()
            done += len(images)
            yield list(zip(clean, correct, strict=True))

    clean, correct = zip(*with_progress(chunks(), total, "corrupting images"), strict=True)
    ((channels, height, width),) = sizes
    return CorruptionScores(names, (channels, height, width), torch.stack(clean), torch.stack(correct, -1))
