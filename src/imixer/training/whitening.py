"""Compute the filters of whitened stems from the training images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imixer.data.image_data import ImageSet
from imixer.data.transforms import eval_transform
from imixer.models.stems import Whitening, patch_covariance
from imixer.progress import with_progress
from imixer.training.run.config import TrainConfig

_SAMPLE = 2000  # images; a patch has 12 pixels and an image hundreds of patches
_CHUNK = 100


def whiten_stem(model: nn.Module, config: TrainConfig, data: ImageSet, input_size: tuple[int, int, int]) -> bool:
    """Compute the filters of a whitened stem from a sample of the training images, which is always the same.

    Weights that were loaded bring their own filters, which are left alone.

    Args:
        model: A model, with a whitened stem or without.
        config: The run's configuration.
        data: The data.
        input_size: The size (in_chans, height, width) of the model's input.

    Returns:
        Whether the filters of a stem were computed.
    """
    stems = [module for module in model.modules() if isinstance(module, Whitening)]
    if not stems or config.model.sources:
        return False
    transform = eval_transform(input_size, data.mean, data.std, config.data.crop_pct, config.data.interpolation)
    numbers = _sample(data)
    total: Any = 0.0
    starts = ([start] for start in range(0, len(numbers), _CHUNK))
    for start in with_progress(starts, -(-len(numbers) // _CHUNK), "looking at images, for the stem's filters"):
        chunk = numbers[start : start + _CHUNK]
        images = torch.stack([transform(data.train[int(number)][0]) for number in chunk])
        total += patch_covariance(images) * len(chunk)
    for stem in stems:
        stem.whiten(total / len(numbers))
    return True


def _sample(data: ImageSet) -> NDArray[np.int64]:
    """Draw the numbers of training images; of streamed ones from few groups, one after the other."""
    if data.windows is None:
        return np.random.default_rng(0).permutation(len(data.train))[:_SAMPLE]
    near = data.windows.sample()
    return near[np.sort(np.random.default_rng(0).permutation(len(near))[:_SAMPLE])]
