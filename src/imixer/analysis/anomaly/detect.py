"""Find anomalies: take features from a model, learn from those of normal images, and score images and pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from imixer.analysis.anomaly.detection_quality import DetectionQuality, detection_quality
from imixer.analysis.anomaly.detectors import BY_POSITION, EnergyDeviations, NormalFeatures, energy_deviations
from imixer.analysis.anomaly.samples import GOOD, AnomalySamples
from imixer.analysis.energy import token_energies
from imixer.errors import InputError
from imixer.models.mixer import Mixer
from imixer.progress import with_progress

_NEIGHBOURHOOD = 3  # positions a side that features are averaged over
_CELLS = 8  # positions a side of features that are pixels


@dataclass(frozen=True)
class AnomalyScores:
    """Hold what each score says of the images to judge, and how well it finds the anomalies.

    Attributes:
        samples: The images.
        images: Scores of images (M,), by name in `DETECTORS`; higher is less normal.
        maps: Scores of pixels (M, H, W), by name in `BY_POSITION`.
        quality: Quality of each score, by name.
        stored: Number of feature vectors in the memory.
        beta: Inverse temperature of the memory.
    """

    samples: AnomalySamples
    images: dict[str, Tensor]
    maps: dict[str, Tensor]
    quality: dict[str, DetectionQuality]
    stored: int
    beta: float


@dataclass(frozen=True)
class FeatureSource:
    """Take features of images.

    Attributes:
        maps: From images (B, in_chans, H, W), pixels from 0 to 1, to feature vectors by position (B, D, h, w).
        energies: From images to energies (B, blocks), if the model has any.
        in_chans: Channels that images must have.
        patch: Smallest side in pixels that an image may have.
        stride: Side in pixels of the square that a position stands for. The first begins at the upper left; the last
            may reach beyond the image.
    """

    maps: Callable[[Tensor], Tensor]
    energies: Callable[[Tensor], Tensor] | None
    in_chans: int
    patch: int = 1
    stride: int = 1


def model_features(
    model: nn.Module, *, mean: Tensor, std: Tensor, size: tuple[int, int], levels: tuple[int, ...] | None = None
) -> FeatureSource:
    """Take features from a model: maps of some levels, each averaged over 3 x 3 positions, on the finest grid.

    Args:
        model: A Mixer, or another model of timm's that has `forward_intermediates`, in evaluation mode.
        mean: Mean per channel to subtract from pixels (C, 1, 1).
        std: Standard deviation per channel to divide by (C, 1, 1).
        size: Height and width in pixels of the images.
        levels: Levels to take. Default: those at a third and at two thirds of the depth.

    Raises:
        InputError: If the model has no feature maps, no such level, or takes no images of that size.
    """
    info: Any = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise InputError(
            f"the model is a {type(model).__name__}, which gives no feature maps; take one of timm's Mixers"
        )
    count = len(info)
    chosen = list(levels if levels is not None else sorted({count // 3, 2 * count // 3}))
    if not chosen or not all(-count <= level < count for level in chosen):
        raise InputError(
            f"levels is {' '.join(map(str, chosen))}; the model has {count}, give some of 0 to {count - 1}"
        )
    chosen = sorted({level % count for level in chosen})
    stride = int(info[chosen[0]]["reduction"])
    cfg: Any = model.pretrained_cfg
    in_chans, *own = cfg["input_size"]
    fits = tuple(own) == size
    if isinstance(model, Mixer):
        model.take_any_size()
    elif not fits and cfg.get("fixed_input_size", True):
        raise InputError(f"size is {size[0]} x {size[1]}, and a {type(model).__name__} is for {own[0]} x {own[1]}")
    take: Any = model.forward_intermediates

    def maps(images: Tensor) -> Tensor:
        given = take((images - mean) / std, indices=chosen, intermediates_only=True)
        smooth = [F.avg_pool2d(y, _NEIGHBOURHOOD, 1, _NEIGHBOURHOOD // 2, count_include_pad=False) for y in given]
        grid = smooth[0].shape[-2:]
        whole = torch.cat([F.interpolate(y, grid, mode="bilinear", align_corners=False) for y in smooth], 1)
        tall, wide = (-(-side // stride) for side in images.shape[-2:])
        return whole[..., :tall, :wide]  # what lies beyond is the model's padding

    energies = _energies(model) if fits and isinstance(model, MlpMixer) else None
    return FeatureSource(
        maps,
        None if energies is None else lambda images: energies((images - mean) / std),
        int(in_chans),
        int(info[0]["reduction"]),
        stride,
    )


def _energies(model: MlpMixer) -> Callable[[Tensor], Tensor] | None:
    try:
        return token_energies(model)
    except ValueError:  # a mixer with parts whose network is unknown
        return None


def pixel_features(in_chans: int, size: tuple[int, int]) -> FeatureSource:
    """Take features without a model: the pixels of overlapping squares, 8 to 15 along the shorter side.

    Choose them as the baseline of features that were learned.

    Args:
        in_chans: Channels of the images.
        size: Height and width in pixels of the images.
    """
    stride = max(1, min(size) // _CELLS)
    kernel = 2 * stride

    def maps(images: Tensor) -> Tensor:
        before = (kernel - stride) // 2
        after_x, after_y = (kernel - stride - before + -side % stride for side in (images.shape[-1], images.shape[-2]))
        padded = F.pad(images, (before, after_x, before, after_y), mode="replicate")
        tall, wide = ((side - kernel) // stride + 1 for side in padded.shape[-2:])
        return F.unfold(padded, kernel, stride=stride).unflatten(2, (tall, wide))

    return FeatureSource(maps, None, in_chans, stride=stride)


@dataclass(frozen=True)
class LearnedNormal:
    """Hold what is known of normal images. `learn_normal` makes it, and `judge_images` takes it.

    Args:
        features: What is known of their features.
        energies: What is known of their energies in the blocks, if the model has any.
    """

    features: NormalFeatures
    energies: EnergyDeviations | None = None


def detect_anomalies(
    samples: AnomalySamples,
    features: FeatureSource,
    *,
    memory: int = 2000,
    neighbours: int = 3,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> AnomalyScores:
    """Learn from the normal images, score the others by every detector, and measure how well each does.

    Args:
        samples: The images.
        features: What is compared.
        memory: Largest number of feature vectors to store.
        neighbours: Number of nearest neighbours.
        seed: Seed of the draw of vectors to store.
        batch_size: Images at once.
        device: Where the model is.

    Raises:
        InputError: If memory, neighbours or batch_size is below 1, or features or energies are not finite.
    """
    options: dict[str, Any] = dict(batch_size=batch_size, device=device)
    learned = learn_normal(samples.normal, features, memory=memory, neighbours=neighbours, seed=seed, **options)
    return judge_images(samples, features, learned, **options)


@torch.no_grad()
def learn_normal(
    images: Tensor,
    features: FeatureSource,
    *,
    memory: int = 2000,
    neighbours: int = 3,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> LearnedNormal:
    """Learn from normal images (N, in_chans, H, W), pixels from 0 to 1. For the rest see `detect_anomalies`.

    Raises:
        InputError: If memory, neighbours or batch_size is below 1, or features or energies are not finite.
    """
    for name, value in {"memory": memory, "neighbours": neighbours, "batch_size": batch_size}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; give 1 or more")
    maps = _require_finite(_every(images, features.maps, "features of normal images", batch_size, device))
    learned = NormalFeatures(_rows(maps), memory=memory, neighbours=neighbours, seed=seed)
    if features.energies is None:
        return LearnedNormal(learned)
    energies = _require_finite(_every(images, features.energies, "energies of normal images", batch_size, device))
    return LearnedNormal(learned, energy_deviations(energies))


@torch.no_grad()
def judge_images(
    samples: AnomalySamples,
    features: FeatureSource,
    learned: LearnedNormal,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> AnomalyScores:
    """Score images by every detector, and measure how well each does. For the rest see `detect_anomalies`.

    The score of an image is that of its least normal position. Scores between positions are interpolated.

    Args:
        samples: The images, of which those to learn from are not looked at.
        features: What is compared.
        learned: What is known of normal images.
        batch_size: Images at once.
        device: Where the model is.

    Raises:
        InputError: If features or energies are not finite.
    """
    images, maps = score_images(samples.test, features, learned, batch_size=batch_size, device=device)
    quality = {name: _quality(samples, values, maps.get(name)) for name, values in images.items()}
    beta = float(learned.features.memory.options["beta"])
    return AnomalyScores(samples, images, maps, quality, len(learned.features.stored), beta)


@torch.no_grad()
def score_images(
    images: Tensor,
    features: FeatureSource,
    learned: LearnedNormal,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Score images (M, in_chans, H, W) of which nothing is known.

    Returns:
        Scores of images (M,) by name in `DETECTORS`, and of pixels (M, H, W) by name in `BY_POSITION`.

    Raises:
        InputError: If features or energies are not finite.
    """
    test = _require_finite(_every(images, features.maps, "features of images to judge", batch_size, device))
    by_position = learned.features.scores(_rows(test))
    grid, (height, width) = test.shape[-2:], images.shape[-2:]
    # Models that cut away what is less than a patch have no position there: the others are stretched over it.
    covered = max(height, grid[0] * features.stride), max(width, grid[1] * features.stride)
    whole, maps = {}, {}
    for name in BY_POSITION:
        positions = by_position[name].view(len(test), 1, *grid)
        whole[name] = positions.flatten(1).amax(1)
        pixels = F.interpolate(positions, covered, mode="bilinear", align_corners=False)
        maps[name] = pixels[:, 0, :height, :width]
    if features.energies is not None and learned.energies is not None:
        energies = _require_finite(_every(images, features.energies, "energies of images to judge", batch_size, device))
        whole["block_energy"] = learned.energies(energies)
    return whole, maps


def _every(
    images: Tensor, what: Callable[[Tensor], Tensor], title: str, batch_size: int, device: torch.device | str
) -> Tensor:
    batches = images.split(batch_size)
    chunks = ([what(batch.to(device)).cpu()] for batch in batches)
    return torch.cat(list(with_progress(chunks, len(batches), title)))


def _require_finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise InputError(
            "the model's features or energies are not finite on these images; take another model or checkpoint"
        )
    return values


def _rows(maps: Tensor) -> Tensor:
    """Return maps (B, D, h, w) as vectors (B h w, D)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _quality(samples: AnomalySamples, scores: Tensor, maps: Tensor | None) -> DetectionQuality:
    known = samples.masked
    if maps is None or samples.masks is None:
        return detection_quality(scores.double().numpy(), samples.kinds, GOOD)
    pixels, masks = maps[known].double().numpy(), samples.masks[known].numpy()
    return detection_quality(scores.double().numpy(), samples.kinds, GOOD, pixels, masks)
