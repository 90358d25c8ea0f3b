"""Make or load images of another kind than a run's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from imixer.analysis.images import evenly_spread, held_out_batches, pixels_of
from imixer.data.config import DataConfig
from imixer.data.image_data import LabelledImages
from imixer.data.sources.decoding import pixel_format, to_channels
from imixer.data.sources.open import open_dataset
from imixer.errors import InputError
from imixer.progress import with_progress
from imixer.training.finished_run import FinishedRun

_TILES = 4  # that each side is cut into for `shuffled`


def _noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(256, pixels.shape, generator=generator).to(pixels) / 255


def _shuffled(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Put each image's tiles into an order of its own; rows and columns that are left over stay."""
    made = pixels.clone()
    tall, wide = (side // _TILES for side in pixels.shape[-2:])
    whole = made[:, :, : _TILES * tall, : _TILES * wide].unfold(2, tall, tall).unfold(3, wide, wide)
    tiles = whole.flatten(2, 3)  # (B, C, tiles, tall, wide)
    for image, tile in zip(made, tiles, strict=True):
        order = torch.randperm(_TILES**2, generator=generator).to(tile.device)
        rows = tile[:, order].unflatten(1, (_TILES, _TILES)).permute(0, 1, 3, 2, 4)
        image[:, : _TILES * tall, : _TILES * wide] = rows.flatten(3, 4).flatten(1, 2)
    return made


def _rotated(pixels: Tensor, generator: torch.Generator) -> Tensor:
    turned = pixels.rot90(1, (2, 3))
    return turned if turned.shape == pixels.shape else pixels.rot90(2, (2, 3))


def _inverted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return 1 - pixels


SYNTHETIC_OOD: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise": _noise,
    "shuffled": _shuffled,
    "rotated": _rotated,
    "inverted": _inverted,
}


def ood_batches(
    finished: FinishedRun,
    ood_dataset: str,
    count: int | None,
    batch_size: int,
    data_path: str | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Take images (B, in_chans, H, W) of another kind, in batches, as the model takes them and on its device.

    Args:
        finished: The run.
        ood_dataset: A name in `SYNTHETIC_OOD`, for images made from the run's own: `noise`, as many images of random
            pixels; `shuffled`, 4x4 tiles in another order; `rotated` by 90 degrees, or 180 if not square; `inverted`,
            black for white. Or the name of a data set, as for `DataConfig`, whose held-out part is read as the run's
            own images are, and brought to the model's size and channels.
        count: Number of images, evenly spread. Default: all.
        batch_size: Images per batch.
        data_path: Where the run's data lie now. Default: where they lay.
        seed: Seed of noise and orders.

    Returns:
        The batches. A data set is opened at once, before the first is asked for.

    Raises:
        InputError: If count is below 1, or the data are not there.
    """
    if ood_dataset in SYNTHETIC_OOD:
        return _synthetic_batches(finished, SYNTHETIC_OOD[ood_dataset], count, batch_size, data_path, seed)
    own = finished.config.data
    try:
        val = open_dataset(DataConfig(name=ood_dataset, root=own.root, background=own.background)).val
    except InputError as error:
        raise InputError(
            f"ood_dataset {ood_dataset!r} is none of {', '.join(SYNTHETIC_OOD)}, and as a data set: {error}"
        ) from error
    return _dataset_batches(finished, _read_as(val, own), count, batch_size)


def _synthetic_batches(
    finished: FinishedRun,
    made_from: Callable[[Tensor, torch.Generator], Tensor],
    count: int | None,
    batch_size: int,
    data_path: str | None,
    seed: int,
) -> Iterator[Tensor]:
    generator, pixels = torch.Generator().manual_seed(seed), pixels_of(finished)
    for images, _ in held_out_batches(finished, count, batch_size, data_path):
        yield pixels.normalised(made_from(pixels.of(images), generator))


def _dataset_batches(
    finished: FinishedRun, val: LabelledImages, count: int | None, batch_size: int
) -> Iterator[Tensor]:
    places = evenly_spread(len(val), count)
    starts = range(0, len(places), batch_size)
    for start in with_progress(([start] for start in starts), len(starts), "measuring batches"):
        chosen = places[start : start + batch_size]
        pictures = [to_channels(val[place][0], finished.input_size[0]) for place in chosen]
        yield torch.stack([finished.transform(picture) for picture in pictures]).to(finished.device)


def _read_as(images: LabelledImages, run: DataConfig) -> LabelledImages:
    """Return images whose stored values mean what they mean to a run. A run of 8 bits knows no range to read by."""
    if run.value_range is None or not hasattr(images, "pixels"):  # those in memory are bytes already
        return images
    alike: Any = copy.copy(images)
    alike.pixels = pixel_format(run)
    return cast(LabelledImages, alike)
