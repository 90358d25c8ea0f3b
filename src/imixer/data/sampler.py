"""The order of images in each epoch, cut into batches and micro-batches: the same for any number of devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imixer.data.randomness import mixed_seed
from imixer.errors import InputError


@dataclass(frozen=True)
class BatchShard:
    """The images of each batch that one process trains on, and the number of micro-batches it cuts them into.

    Args:
        rank: Number of the process, from 0.
        world_size: Number of processes.
        accumulate: Micro-batches per process and optimizer step (gradient accumulation).
    """

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1


@dataclass(frozen=True)
class Windows:
    """The groups that images are stored in, and the order of an epoch that reads each group once.

    Choose it for images that are fetched by groups, such as the row groups of parquet files, and kept in a cache. The
    groups are permuted. Consecutive ones that fit together are a window, and the images of a window are permuted. So
    an epoch's order is a function of the seed, the epoch and the groups alone, whoever fetches them.

    Args:
        groups: Group of each image (images,).
        sizes: Size of each group in bytes (groups,).
        limit: Bytes that the groups of a window may take together; a larger group is a window of its own.
    """

    groups: NDArray[np.int64]
    sizes: NDArray[np.int64]
    limit: int

    def group_windows(self, seed: int, epoch: int) -> list[list[int]]:
        """Draw the groups of each window of an epoch.

        Args:
            seed: Training seed, 0 or more.
            epoch: Number of the epoch, from 0.
        """
        windows: list[list[int]] = []
        space = 0
        for group in epoch_order(len(self.sizes), seed, epoch).tolist():
            size = int(self.sizes[group])
            if not windows or size > space:
                windows.append([])
                space = self.limit
            windows[-1].append(group)
            space -= size
        return windows

    def ends(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Count the images of an epoch up to the end of each window (windows,).

        Args:
            seed: Training seed, 0 or more.
            epoch: Number of the epoch, from 0.
        """
        counts = np.bincount(self.groups, minlength=len(self.sizes))
        return np.cumsum([counts[window].sum() for window in self.group_windows(seed, epoch)])

    def order(self, seed: int, epoch: int) -> Tensor:
        """Draw a permutation of the image numbers (images,) that depends on seed, epoch and groups only.

        Args:
            seed: Training seed, 0 or more.
            epoch: Number of the epoch, from 0.
        """
        by_group = np.argsort(self.groups, kind="stable")
        starts = np.searchsorted(self.groups[by_group], np.arange(len(self.sizes) + 1))
        pieces = []
        for number, window in enumerate(self.group_windows(seed, epoch)):
            images = torch.from_numpy(np.concatenate([by_group[starts[each] : starts[each + 1]] for each in window]))
            generator = torch.Generator().manual_seed(mixed_seed(seed, epoch, number))
            pieces.append(images[torch.randperm(len(images), generator=generator)])
        return torch.cat(pieces)


class BatchOrder:
    """A sampler of micro-batches, each a tensor of image numbers, in a fresh order each epoch.

    Choose it over torch's `DistributedSampler` where a run must give the same batches on any number of devices, and
    must resume in the middle of an epoch. Step k takes the k-th `batch_size` images of the epoch's order. Each process
    takes its shard of them. Images that fill no whole batch sit the epoch out.

    Args:
        count: Number of images.
        batch_size: Images per optimizer step, over all processes.
        seed: Training seed, 0 or more.
        shard: The images of each batch that are this process's.
        windows: The groups that the images are fetched in. Default: any image may follow any other.

    Attributes:
        micro_batch_size: Images per micro-batch.

    Raises:
        InputError: If there are fewer images than a batch takes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        shard: BatchShard = BatchShard(),
        windows: Windows | None = None,
    ) -> None:
        if batch_size > count:
            raise InputError(
                f"data.batch_size is {batch_size}, more than the {count} training images; give {count} or less"
            )
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.shard = shard
        self.windows = windows
        self.micro_batch_size = batch_size // (shard.world_size * shard.accumulate)

    def __len__(self) -> int:
        """Count the micro-batches of this process per epoch."""
        return self.count // self.batch_size * self.shard.accumulate

    def permutation(self, epoch: int) -> Tensor:
        """Draw the order of all images in an epoch (count,).

        Args:
            epoch: Number of the epoch, from 0.
        """
        if self.windows is not None:
            return self.windows.order(self.seed, epoch)
        return epoch_order(self.count, self.seed, epoch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the image numbers of each micro-batch of an epoch, as tensors (micro_batch_size,).

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of the first micro-batch wanted.
        """
        order = self.permutation(epoch)
        for number in range(start, len(self)):
            step, micro_batch = divmod(number, self.shard.accumulate)
            first = (
                step * self.batch_size + (self.shard.rank * self.shard.accumulate + micro_batch) * self.micro_batch_size
            )
            yield order[first : first + self.micro_batch_size]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Draw a permutation of 0 to count - 1 that depends on seed and epoch only."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
