"""Which images make up each batch."""

from __future__ import annotations

import pytest
import torch

from imixer.data.randomness import mixed_seed
from imixer.data.sampler import BatchOrder, BatchShard
from imixer.errors import InputError


def test_an_epoch_has_each_image_at_most_once_in_random_order():
    order = torch.cat(list(BatchOrder(103, 10, seed=0).epoch(0))).tolist()
    assert len(order) == len(set(order)) == 100
    assert order != sorted(order)


def test_images_that_fill_the_last_batch_exactly_are_trained_on():
    order = BatchOrder(100, 10, seed=0)
    assert (len(order), sorted(torch.cat(list(order.epoch(0))).tolist())) == (10, list(range(100)))


def test_orders_depend_on_seed_and_epoch():
    orders = [
        tuple(torch.cat(list(BatchOrder(50, 5, seed=seed).epoch(epoch))).tolist())
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert orders[4] == tuple(torch.cat(list(BatchOrder(50, 5, seed=1).epoch(1))).tolist())


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (4, 3)])
def test_the_parts_of_all_processes_make_up_the_batch(world, accumulate):
    whole = list(BatchOrder(100, 24, seed=5).epoch(2))
    orders = [BatchOrder(100, 24, seed=5, shard=BatchShard(rank, world, accumulate)) for rank in range(world)]
    parts = [list(order.epoch(2)) for order in orders]
    assert [len(order) for order in orders] == [4 * accumulate] * world
    for step, images in enumerate(whole):
        mine = [torch.cat(parts[rank][step * accumulate : (step + 1) * accumulate]) for rank in range(world)]
        assert torch.equal(torch.cat(mine), images)


def test_an_epoch_can_be_entered_anywhere():
    order = BatchOrder(100, 8, seed=0, shard=BatchShard(1, 2, 2))
    whole = list(order.epoch(4))
    for start in (0, 1, 7, len(whole)):
        assert [part.tolist() for part in order.epoch(4, start)] == [part.tolist() for part in whole[start:]]


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(InputError, match=r"data\.batch_size is 11.*10 training images; give 10 or less"):
        BatchOrder(10, 11, seed=0)


def test_seeds_are_mixed_not_added():
    assert len({mixed_seed(seed, epoch) for seed in range(30) for epoch in range(30)}) == 900
    assert mixed_seed(1, 2) != mixed_seed(2, 1)
