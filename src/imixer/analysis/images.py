"""Images to measure a run on."""

from collections.abc import Iterator
from typing import Optional, Tuple

import torch
from torch import Tensor

from imixer.errors import InputError
from imixer.training.reload import Reloaded


def held_out_images(reloaded: Reloaded, count: int, moved_to: Optional[str] = None) -> Tensor:
    """Held-out images (B, in_chans, H, W), evenly spread, as the model takes them and on its device.

    Args:
        reloaded: The run.
        count: How many; fewer if there are not as many.
        moved_to: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, or the data are not there.
    """
    return next(held_out_batches(reloaded, count, count, moved_to))[0]


def random_images(reloaded: Reloaded, count: int, seed: int, moved_to: Optional[str] = None) -> Tensor:
    """Held-out images (B, in_chans, H, W), drawn without replacement, as the model takes them and on its device.

    Args:
        reloaded: The run.
        count: How many; fewer if there are not as many.
        seed: Of the draw.
        moved_to: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, seed is negative, or the data are not there.
    """
    _check_count(count)
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    val = reloaded.data(moved_to).val
    places = torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    return torch.stack([reloaded.transform(val[place][0]) for place in places[:count].tolist()]).to(reloaded.device)


def held_out_batches(
    reloaded: Reloaded, count: Optional[int], batch_size: int, moved_to: Optional[str] = None
) -> Iterator[Tuple[Tensor, Tensor]]:
    """Held-out images, as `held_out_images`, and their labels (B,), in batches.

    Args:
        reloaded: The run.
        count: How many images, evenly spread. Default: all.
        batch_size: Images per batch.
        moved_to: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, or the data are not there.
    """
    if count is not None:
        _check_count(count)
    val = reloaded.data(moved_to).val
    total = len(val)  # type: ignore[arg-type]  # torch's Dataset does not promise a length
    wanted = min(count or total, total)
    places = [i * total // wanted for i in range(wanted)]
    for start in range(0, wanted, batch_size):
        images, labels = zip(*(val[place] for place in places[start : start + batch_size]), strict=True)
        batch = torch.stack([reloaded.transform(image) for image in images])
        yield batch.to(reloaded.device), torch.tensor(labels, device=reloaded.device)


def _check_count(count: int) -> None:
    if count < 1:
        raise InputError(f"images is {count}; give 1 or more")
