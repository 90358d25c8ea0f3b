"""Images to measure a run on."""

from collections.abc import Iterator

import torch
from torch import Tensor

from imixer.data.progress import with_progress
from imixer.errors import InputError
from imixer.training.finite import require_finite_outputs
from imixer.training.reload import Reloaded
from imixer.training.result import read_result


def held_out_images(reloaded: Reloaded, count: int, moved_to: str | None = None) -> Tensor:
    """Held-out images (B, in_chans, H, W), evenly spread, as the model takes them and on its device.

    Args:
        reloaded: The run.
        count: How many; fewer if there are not as many.
        moved_to: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, the data are not there, or what the model makes of the first batch is not
            finite.
    """
    return next(held_out_batches(reloaded, count, count, moved_to))[0]


def random_images(reloaded: Reloaded, count: int, seed: int, moved_to: str | None = None) -> Tensor:
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
    val = reloaded.data(moved_to).val
    places = torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    images = torch.stack([reloaded.transform(val[place][0]) for place in places[:count].tolist()]).to(reloaded.device)
    require_finite_outputs(reloaded.model, images, reloaded.run.path)
    return images


def held_out_batches(
    reloaded: Reloaded, count: int | None, batch_size: int, moved_to: str | None = None
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
    val = reloaded.data(moved_to).val
    places = evenly_spread(len(val), count)  # type: ignore[arg-type]  # torch's Dataset does not promise a length
    starts = range(0, len(places), batch_size)
    for start in with_progress(([start] for start in starts), len(starts), "measuring batches"):
        images, labels = zip(*(val[place] for place in places[start : start + batch_size]), strict=True)
        batch = torch.stack([reloaded.transform(image) for image in images]).to(reloaded.device)
        if start == 0:
            require_finite_outputs(reloaded.model, batch, reloaded.run.path)
        yield batch, torch.tensor(labels, device=reloaded.device)


def evenly_spread(total: int, count: int | None) -> list[int]:
    """So many numbers from 0 to total - 1, or all if there are not as many or count is None."""
    wanted = min(count or total, total)
    return [i * total // wanted for i in range(wanted)]


def count_held_out(reloaded: Reloaded, count: int | None) -> int:
    """How many images `held_out_batches` gives, as the run's result has it, without opening the data."""
    there = read_result(reloaded.run).held_out
    return min(count or there, there)


def _check_count(count: int) -> None:
    if count < 1:
        raise InputError(f"images is {count}; give 1 or more")
