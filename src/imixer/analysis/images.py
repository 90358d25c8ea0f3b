"""Images to measure a run on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from imixer.errors import InputError
from imixer.progress import with_progress
from imixer.training.finished_run import FinishedRun
from imixer.training.finite_checks import require_finite_outputs
from imixer.training.run.result import read_result


def held_out_images(finished: FinishedRun, count: int, data_path: str | None = None) -> Tensor:
    """Held-out images (B, in_chans, H, W), evenly spread, as the model takes them and on its device.

    Args:
        reloaded: The run.
        count: How many; fewer if there are not as many.
        moved_to: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, the data are not there, or what the model makes of the first batch is not
            finite.
    """
    return next(held_out_batches(finished, count, count, data_path))[0]


def random_images(finished: FinishedRun, count: int, seed: int, data_path: str | None = None) -> Tensor:
    """Held-out images (B, in_chans, H, W), drawn without replacement, as the model takes them and on its device.

    Args:
        reloaded: The run.
        count: How many; fewer if there are not as many.
        seed: Of the draw.
        moved_to: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, seed is negative, the data are not there, or what the model makes of them is
            not finite.
    """
    _check_count(count)
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    val = finished.data(data_path).val
    places = torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))
    images = torch.stack([finished.transform(val[place][0]) for place in places[:count].tolist()]).to(finished.device)
    require_finite_outputs(finished.model, images, finished.directory.path)
    return images


def held_out_batches(
    finished: FinishedRun, count: int | None, batch_size: int, data_path: str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Held-out images, as `held_out_images`, and their labels (B,), in batches.

    Args:
        reloaded: The run.
        count: How many images, evenly spread. Default: all.
        batch_size: Images per batch.
        moved_to: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, the data are not there, or what the model makes of the first batch is not
            finite.
    """
    if count is not None:
        _check_count(count)
    val = finished.data(data_path).val
    places = evenly_spread(len(val), count)
    starts = range(0, len(places), batch_size)
    for start in with_progress(([start] for start in starts), len(starts), "measuring batches"):
        images, labels = zip(*(val[place] for place in places[start : start + batch_size]), strict=True)
        batch = torch.stack([finished.transform(image) for image in images]).to(finished.device)
        if start == 0:
            require_finite_outputs(finished.model, batch, finished.directory.path)
        yield batch, torch.tensor(labels, device=finished.device)


def evenly_spread(total: int, count: int | None) -> list[int]:
    """So many numbers from 0 to total - 1, or all if there are not as many or count is None."""
    wanted = min(count or total, total)
    return [i * total // wanted for i in range(wanted)]


def count_held_out(finished: FinishedRun, count: int | None) -> int:
    """How many images `held_out_batches` gives, as the run's result has it, without opening the data."""
    there = read_result(finished.directory).held_out
    return min(count or there, there)


def _check_count(count: int) -> None:
    if count < 1:
        raise InputError(f"images is {count}; give 1 or more")


@dataclass(frozen=True)
class Pixels:
    """The normalisation of a model.

    Args:
        mean: Mean per channel (C, 1, 1), with pixel values in [0, 1].
        std: Standard deviation per channel (C, 1, 1), likewise.
    """

    mean: Tensor
    std: Tensor

    def of(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] of images as the model takes them, (B, C, H, W): whole multiples of 1/255, as in files."""
        return (images * self.std + self.mean).mul(255).round().div(255)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] as the model takes them."""
        return (pixels - self.mean) / self.std


def pixels_of(finished: FinishedRun) -> Pixels:
    """The normalisation of a run, on its device."""
    cfg = finished.pretrained_cfg
    mean, std = (torch.tensor(cfg[name], device=finished.device).view(-1, 1, 1) for name in ("mean", "std"))
    return Pixels(mean, std)
