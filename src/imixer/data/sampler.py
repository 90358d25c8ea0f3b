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

_SAMPLE, _SAMPLE_GROUPS = 2000, 8


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

    def sample(self) -> NDArray[np.int64]:
        """Draw the numbers of images of a few groups, always the same, so that looking at them fetches little."""
        taken: list[NDArray[np.int64]] = []
        for group in np.random.default_rng(0).permutation(np.unique(self.groups)):
            if len(taken) == _SAMPLE_GROUPS or sum(map(len, taken)) >= _SAMPLE:
                break
            taken.append(np.flatnonzero(self.groups == group))
        return np.concatenate(taken)


class BatchOrder:
    """A sampler of micro-batches, each a tensor of image numbers, in a fresh order each epoch.

    Choose it over torch's `DistributedSampler` where a run must give the same batches on any number of devices, and
    must resume in the middle of an epoch. Step k takes the k-th `batch_size` images of the epoch's order. Each process
    takes its shard of them. Images that fill no whole batch sit the epoch out, unless the last batch is filled.

    Args:
        count: Number of images.
        batch_size: Images per optimizer step, over all processes.
        seed: Training seed, 0 or more.
        shard: The images of each batch that are this process's.
        windows: The groups that the images are fetched in. Default: any image may follow any other.
        fill: Whether images that fill no whole batch get one, which takes the last `batch_size` images of the epoch's
            order. Some of the batch before are then taken twice.
        labels: Labels (images,) of classes to draw equally often, see `balanced_order`. Default: each image once.

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
        fill: bool = False,
        labels: NDArray[np.int64] | None = None,
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
        self.fill = fill
        self.labels = labels
        self.micro_batch_size = batch_size // (shard.world_size * shard.accumulate)

    def __len__(self) -> int:
        """Count the micro-batches of this process per epoch."""
        return steps_per_epoch(self.count, self.batch_size, self.fill) * self.shard.accumulate

    def permutation(self, epoch: int) -> Tensor:
        """Draw the order of all images in an epoch (count,).

        Args:
            epoch: Number of the epoch, from 0.
        """
        if self.labels is not None:
            return balanced_order(self.labels, self.seed, epoch)
        if self.windows is not None:
            return self.windows.order(self.seed, epoch)
        return epoch_order(self.count, self.seed, epoch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the image numbers of each micro-batch of an epoch, as tensors (micro_batch_size,).

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of the first micro-batch wanted.
        """
        yield from self._micro_batches(self._drawn(epoch), start)

    def epoch_with_turns(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `epoch` does, and how often each of the images came before in the epoch, in any process.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of the first micro-batch wanted.
        """
        drawn = self._drawn(epoch)
        yield from zip(
            self._micro_batches(drawn, start), self._micro_batches(_count_earlier(drawn), start), strict=True
        )

    def _drawn(self, epoch: int) -> Tensor:
        """Draw the image numbers of all batches of an epoch, one after another."""
        order = self.permutation(epoch)
        whole = self.count // self.batch_size * self.batch_size
        filled = [order[-self.batch_size :]] if self.fill and whole < self.count else []
        return torch.cat([order[:whole], *filled])

    def _micro_batches(self, drawn: Tensor, start: int) -> Iterator[Tensor]:
        """Cut this process's micro-batches out of what belongs to the images of all batches."""
        for number in range(start, len(self)):
            step, micro_batch = divmod(number, self.shard.accumulate)
            first = step * self.batch_size
            first += (self.shard.rank * self.shard.accumulate + micro_batch) * self.micro_batch_size
            yield drawn[first : first + self.micro_batch_size]


def _count_earlier(numbers: Tensor) -> Tensor:
    """Count how often each of some numbers (N,) stands before its place among them."""
    ranked, places = torch.sort(numbers, stable=True)
    earlier = torch.empty_like(numbers)
    earlier[places] = torch.arange(len(numbers)) - torch.searchsorted(ranked, ranked)
    return earlier


def steps_per_epoch(count: int, batch_size: int, fill: bool) -> int:
    """Count the optimizer steps of an epoch.

    Args:
        count: Number of images.
        batch_size: Images per optimizer step.
        fill: Whether images that fill no whole batch get one.
    """
    return -(-count // batch_size) if fill else count // batch_size


def balanced_order(labels: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
    """Draw an order of as many images as there are, in which each class comes equally often.

    Images of a class come in turn, in a fresh order each time round: those of large classes once or not at all, those
    of small classes several times.

    Args:
        labels: Label of each image (images,).
        seed: Training seed, 0 or more.
        epoch: Number of the epoch, from 0.

    Returns:
        Image numbers (images,), which depend on labels, seed and epoch only.
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    classes = [torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    quota, more = divmod(len(labels), len(classes))
    extra = set(torch.randperm(len(classes), generator=generator)[:more].tolist())  # so that none always gets it
    drawn = []
    for number, images in enumerate(classes):
        wanted = quota + (number in extra)
        rounds = [images[torch.randperm(len(images), generator=generator)] for _ in range(-(-wanted // len(images)))]
        drawn += [part[: max(0, wanted - place * len(images))] for place, part in enumerate(rounds)]
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=generator)]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Draw a permutation of 0 to count - 1 that depends on seed and epoch only."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
