"""Which images make up each batch."""

from __future__ import annotations

import numpy as np
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


def test_a_last_batch_that_is_filled_leaves_no_image_out_and_takes_none_from_elsewhere():
    order = BatchOrder(103, 10, seed=0, fill=True)
    batches = list(order.epoch(4))
    assert len(order) == len(batches) == 11
    assert sorted(set(torch.cat(batches).tolist())) == list(range(103))
    assert torch.equal(batches[-1], order.permutation(4)[-10:])
    shards = [BatchOrder(103, 10, seed=0, shard=BatchShard(rank, 2), fill=True) for rank in range(2)]
    halves = [list(shard.epoch(4)) for shard in shards]
    for number, batch in enumerate(batches):
        assert torch.equal(batch, torch.cat([half[number] for half in halves]))


def test_filling_changes_nothing_where_batches_come_out_even():
    plain, filled = BatchOrder(100, 10, seed=0), BatchOrder(100, 10, seed=0, fill=True)
    assert all(torch.equal(*pair) for pair in zip(plain.epoch(1), filled.epoch(1), strict=True))


def test_balanced_sampling_draws_each_class_equally_often_and_each_image_of_a_class_in_turn():
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)
    order = BatchOrder(100, 10, seed=3, labels=labels)
    drawn = torch.cat(list(order.epoch(0))).numpy()
    counts = np.bincount(labels[drawn], minlength=3)
    assert len(drawn) == 100 and counts.max() - counts.min() <= 1
    times = np.bincount(drawn, minlength=100)
    for label in range(3):
        of_class = times[labels == label]
        assert of_class.max() - of_class.min() <= 1
    assert not np.array_equal(drawn, torch.cat(list(order.epoch(1))).numpy())
    assert np.array_equal(drawn, torch.cat(list(order.epoch(0))).numpy())


@pytest.mark.parametrize("settings", [{"fill": True}, {"labels": np.array([0] * 38 + [1] * 5)}, {}])
@pytest.mark.parametrize("shard", [BatchShard(), BatchShard(1, 2, 2)])
def test_turns_count_how_often_an_image_came_before_in_any_process(settings, shard):
    drawn = torch.cat(list(BatchOrder(43, 8, seed=0, **settings).epoch(2))).tolist()
    whole = [drawn[:place].count(number) for place, number in enumerate(drawn)]
    order = BatchOrder(43, 8, seed=0, shard=shard, **settings)
    for start in (0, 3):
        numbers, turns = zip(*order.epoch_with_turns(2, start), strict=True)
        assert [each.tolist() for each in numbers] == [each.tolist() for each in order.epoch(2, start)]
        for place, each in enumerate(turns, start):
            step, part = divmod(place, shard.accumulate)
            begin = 8 * step + (shard.rank * shard.accumulate + part) * order.micro_batch_size
            assert each.tolist() == whole[begin : begin + order.micro_batch_size]
    assert (max(whole) > 0) == bool(settings)
