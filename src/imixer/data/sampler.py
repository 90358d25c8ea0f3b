"""The order of images in each epoch, cut into batches and micro-batches: the same for any number of devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
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

    Attributes:
        micro_batch_size: Images per micro-batch.

    Raises:
        InputError: If there are fewer images than a batch takes.
    """

    def __init__(self, count: int, batch_size: int, seed: int, shard: BatchShard = BatchShard()) -> None:
        if batch_size > count:
            raise InputError(
                f"data.batch_size is {batch_size}, more than the {count} training images; give {count} or less"
            )
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.shard = shard
        self.micro_batch_size = batch_size // (shard.world_size * shard.accumulate)

    def __len__(self) -> int:
        """Count the micro-batches of this process per epoch."""
        return self.count // self.batch_size * self.shard.accumulate

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the image numbers of each micro-batch of an epoch, as tensors (micro_batch_size,).

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of the first micro-batch wanted.
        """
        order = epoch_order(self.count, self.seed, epoch)
        for number in range(start, len(self)):
            step, micro_batch = divmod(number, self.shard.accumulate)
            first = (
                step * self.batch_size + (self.shard.rank * self.shard.accumulate + micro_batch) * self.micro_batch_size
            )
            yield order[first : first + self.micro_batch_size]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Draw a permutation of 0 to count - 1 that depends on seed and epoch only."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
