"""Order of the training images."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
import torch
from torch.utils.data import RandomSampler


class EpochShuffle(RandomSampler):
    """A fresh order each epoch that depends on the seed and the epoch only.

    A run that resumes at an epoch sees the order it would have seen, and the number of workers changes nothing.
    Lightning calls `set_epoch`; without it each pass over the data counts as one epoch.

    Args:
        items: Anything with a length.
        seed: Seed, 0 or more.
    """

    def __init__(self, items: Sized, seed: int) -> None:
        super().__init__(items, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # adding the two would make epoch 1 of seed 0 the same as epoch 0 of seed 1
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)[0]
        self.generator.manual_seed(int(mixed))
        self.epoch += 1
        yield from torch.randperm(len(self.data_source), generator=self.generator).tolist()
