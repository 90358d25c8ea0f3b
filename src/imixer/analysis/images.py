"""Choose the images that a run is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imixer.data.image_data import SizedDataset
from imixer.data.masked_batches import joint_transform
from imixer.errors import InputError
from imixer.progress import with_progress
from imixer.training.finished_run import FinishedRun
from imixer.training.finite_checks import require_finite_outputs
from imixer.training.run.result import read_result


def held_out_images(finished: FinishedRun, count: int, data_path: str | None = None) -> Tensor:
    """Take held-out images (B, in_chans, H, W), evenly spread, as the model takes them and on its device.

    Args:
        finished: The run.
        count: Number of images; all if there are fewer.
        data_path: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, the data are not there, or what the model makes of the first batch is not
            finite.
    """
    _check_count(count)
    val = finished.image_set(data_path).val
    return _stacked(finished, val, evenly_spread(len(val), count))


def random_images(finished: FinishedRun, count: int, seed: int, data_path: str | None = None) -> Tensor:
    """Draw held-out images (B, in_chans, H, W) without replacement, as the model takes them and on its device.

    Args:
        finished: The run.
        count: Number of images; all if there are fewer.
        seed: Seed of the draw.
        data_path: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, seed is negative, the data are not there, or what the model makes of them is
            not finite.
    """
    _check_count(count)
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    val = finished.image_set(data_path).val
    places = torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))
    return _stacked(finished, val, places[:count].tolist())


def _stacked(finished: FinishedRun, held_out: SizedDataset[tuple[Any, Any]], places: list[int]) -> Tensor:
    """Return the images at some places as the model takes them, once what it makes of them is known to be finite."""
    images = torch.stack([finished.transform(held_out[place][0]) for place in places]).to(finished.device)
    require_finite_outputs(finished.model, images, finished.name)
    return images


def held_out_batches(
    finished: FinishedRun, count: int | None, batch_size: int, data_path: str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Take held-out images, as `held_out_images` does, and their labels (B,), in batches.

    Args:
        finished: The run.
        count: Number of images, evenly spread. Default: all.
        batch_size: Images per batch.
        data_path: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, the data are not there, or what the model makes of the first batch is not
            finite.
    """
    _check_count(count)

    def prepare(image: Any, label: int) -> tuple[Tensor, Tensor]:
        return finished.transform(image), torch.tensor(label)

    return _in_batches(finished, finished.data(data_path).val, count, batch_size, prepare)


def held_out_masks(
    finished: FinishedRun, count: int | None, batch_size: int, data_path: str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Take held-out images of a segmentation, scaled to the model's input, and their masks (B, H, W), in batches.

    Args:
        finished: The run.
        count: Number of images, evenly spread. Default: all.
        batch_size: Images per batch.
        data_path: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, the data are not there, or what the model makes of the first batch is not
            finite.
    """
    _check_count(count)
    data = finished.masked_data(data_path)
    scaled = replace(finished.config.masks, fit="resize")
    prepare = joint_transform(data, finished.config.data, scaled, finished.input_size, train=False)
    return _in_batches(finished, data.val, count, batch_size, prepare)


def _in_batches(
    finished: FinishedRun,
    held_out: SizedDataset[tuple[Any, Any]],
    count: int | None,
    batch_size: int,
    prepare: Callable[[Any, Any], tuple[Tensor, Tensor]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and what is known of them, each as `prepare` makes it of a pair, evenly spread."""
    places = evenly_spread(len(held_out), count)
    starts = range(0, len(places), batch_size)
    for start in with_progress(([start] for start in starts), len(starts), "measuring batches"):
        pairs = [prepare(*held_out[place]) for place in places[start : start + batch_size]]
        images, known = (torch.stack(each).to(finished.device) for each in zip(*pairs, strict=True))
        if start == 0:
            require_finite_outputs(finished.model, images, finished.name)
        yield images, known


def evenly_spread(total: int, count: int | None) -> list[int]:
    """Choose `count` numbers from 0 to total - 1, evenly spread; all if there are fewer or count is None."""
    wanted = min(count or total, total)
    return [i * total // wanted for i in range(wanted)]


def count_held_out(finished: FinishedRun, count: int | None) -> int:
    """Count the images that `held_out_batches` gives by the run's result, without opening the data."""
    there = read_result(finished.directory).held_out
    return min(count or there, there)


def _check_count(count: int | None) -> None:
    if count is not None and count < 1:
        raise InputError(f"images is {count}; give 1 or more")


@dataclass(frozen=True)
class Pixels:
    """Convert between pixels and the normalised images that a model takes.

    Args:
        mean: Mean per channel of pixels in [0, 1], (C, 1, 1).
        std: Standard deviation per channel of pixels in [0, 1], (C, 1, 1).
    """

    mean: Tensor
    std: Tensor

    def of(self, images: Tensor) -> Tensor:
        """Return the pixels of normalised images (B, C, H, W): in [0, 1] and whole multiples of 1/255, as in files."""
        return (images * self.std + self.mean).mul(255).round().div(255)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalise pixels in [0, 1], (B, C, H, W)."""
        return (pixels - self.mean) / self.std


def pixels_of(finished: FinishedRun) -> Pixels:
    """Return the normalisation of a run, on its device."""
    cfg = finished.pretrained_cfg
    mean, std = (torch.tensor(cfg[name], device=finished.device).view(-1, 1, 1) for name in ("mean", "std"))
    return Pixels(mean, std)
