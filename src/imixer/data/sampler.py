"""Which images make up each batch: a function of seed and epoch, whatever the number of devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from imixer.data.randomness import mixed_seed
from imixer.errors import InputError


@dataclass(frozen=True)
class BatchShard:
    """What of each batch one process gets, and in how many parts.

    Args:
        rank: Number of the process.
        world: How many processes there are.
        accumulate: Parts that the process cuts its share into.
    """

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1


class BatchOrder:
    """Parts of batches, each a list of image numbers, in a fresh order each epoch.

    Step k of an epoch takes the k-th `batch_size` images of the epoch's order; each process takes its share of them, in
    parts. Images that fill no whole batch sit the epoch out.

    Args:
        count: How many images there are.
        batch_size: Images per step, over all processes.
        seed: Seed, 0 or more.
        share: Which of them are this process's.

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
        """Parts per epoch."""
        return self.count // self.batch_size * self.shard.accumulate

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Image numbers (part,) of the parts of an epoch, from part number `start` on."""
        order = epoch_order(self.count, self.seed, epoch)
        for number in range(start, len(self)):
            step, micro_batch = divmod(number, self.shard.accumulate)
            first = (
                step * self.batch_size + (self.shard.rank * self.shard.accumulate + micro_batch) * self.micro_batch_size
            )
            yield order[first : first + self.micro_batch_size]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0 to count - 1 that depends on seed and epoch only."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
