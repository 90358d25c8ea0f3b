"""Batches."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from imixer.data.batches import build_held_out, build_training, worker_message
from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sampler import BatchShard
from imixer.data.sources.digits import ArrayImages
from imixer.data.sources.open import open_dataset
from imixer.errors import InputError

SIZE = (1, 8, 8)
CPU = torch.device("cpu")
AUGMENT = {"hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_dataset(DataConfig())


def training(data, seed=0, shard=BatchShard(), size=SIZE, **settings):  # noqa: B008
    config = DataConfig(**settings)
    return build_training(data, config, size, num_classes=10, smoothing=0.1, seed=seed, device=CPU, shard=shard)


def held_out(data, batch_size=64, shard=BatchShard(), **settings):  # noqa: B008
    return build_held_out(data, DataConfig(**settings), SIZE, device=CPU, batch_size=batch_size, shard=shard)


def first(batches, count, epoch=0, start=0):
    return [batch for batch, _ in zip(batches.epoch(epoch, start), range(count), strict=False)]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(left, right, strict=True)
    )


def test_batches_are_float_images_and_int_labels(digits):
    for images, labels in (next(training(digits, batch_size=32).epoch(0)), next(iter(held_out(digits, 32)))):
        assert (images.shape, images.dtype) == ((32, *SIZE), torch.float32)
        assert (labels.shape, labels.dtype) == ((32,), torch.int64)


def test_mixed_batches_have_targets_of_shares(digits):
    images, targets = next(training(digits, batch_size=32, mixup=0.8).epoch(0))
    assert images.shape == (32, *SIZE)
    assert targets.shape == (32, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(32))


def test_each_micro_batch_of_a_step_is_mixed_by_a_weight_of_its_own(digits):
    settings = {"crop": "center", "mixup": 1.0, "batch_size": 64}
    targets = [
        pair[1] for rank in (0, 1) for pair in first(training(digits, shard=BatchShard(rank, 2, 2), **settings), 2)
    ]
    smallest = {round(float(each[each > 0.011].min()), 5) for each in targets}  # 0.01 is smoothing's
    assert len(smallest) == 4


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_boxes_erased_after_mixing_are_not_mixed(digits, mixing):
    settings = {"crop": "center", "batch_size": 64, "random_erasing": 1.0, **mixing}
    plain, _ = next(training(digits, **{**settings, "random_erasing": 0.0}).epoch(0))
    late, targets = next(training(digits, erase="after_mixing", **settings).epoch(0))
    early, _ = next(training(digits, **settings).epoch(0))
    boxes = (late != plain).squeeze(1)
    for box in boxes:  # the mixed image everywhere but in one box
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        assert box.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) < 64
    noise = late.squeeze(1)[boxes]
    assert noise.mean().abs() < 0.1 and (noise.std() - 1).abs() < 0.1  # whole, of no share
    assert not torch.equal(boxes, boxes.flip(0))
    touched = (early != plain).squeeze(1).sum((1, 2))
    assert touched.sum() > boxes.sum()  # erased before mixing, a box is seen in two images
    torch.testing.assert_close(targets.sum(1), torch.ones(64))


def test_erasing_after_mixing_is_a_function_of_seed_and_place(digits):
    settings = {"crop": "center", "mixup": 0.8, "random_erasing": 0.5, "erase": "after_mixing", "batch_size": 128}
    whole = first(training(digits, **settings), 4, epoch=3)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    assert same(whole[2:], first(training(digits, workers=1, **settings), 2, epoch=3, start=2))
    assert not same(whole, first(training(digits, seed=1, **settings), 4, epoch=3))
    share = first(training(digits, shard=BatchShard(1, 2), **settings), 1)
    assert not torch.equal(share[0][0], first(training(digits, shard=BatchShard(0, 2), **settings), 1)[0][0])


@pytest.mark.parametrize("without", [{"random_erasing": 0.5}, {"mixup": 0.8}])
def test_the_order_of_erasing_and_mixing_is_no_matter_where_one_is_off(digits, without):
    early, late = (training(digits, erase=order, **without) for order in ("before_mixing", "after_mixing"))
    assert same(first(early, 2), first(late, 2))


def test_training_images_have_about_mean_zero_and_deviation_one(digits):
    images = torch.cat([images for images, _ in training(digits, crop="center").epoch(0)])
    assert images.mean().abs() < 0.02
    assert (images.std() - 1).abs() < 0.02


def test_training_drops_the_last_incomplete_batch_and_validation_keeps_it(digits):
    assert [len(labels) for _, labels in training(digits, batch_size=64).epoch(0)] == [64] * 22
    assert [len(labels) for _, labels in held_out(digits)] == [64] * 5 + [40]
    assert len(held_out(digits)) == 6


def test_a_batch_larger_than_the_data_set_is_refused(digits):
    with pytest.raises(InputError, match=r"data\.batch_size is 2000.*1437 training images; give 1437 or less"):
        training(digits, batch_size=2000)


def test_validation_is_in_order_and_not_augmented(digits):
    labels = torch.cat([labels for _, labels in held_out(digits, **AUGMENT)])
    assert labels.tolist() == [digits.val[i][1] for i in range(len(digits.val))]
    assert same(list(held_out(digits, **AUGMENT)), list(held_out(digits)))


def test_validation_images_are_shared_out_without_loss_or_repetition(digits):
    whole = torch.cat([images for images, _ in held_out(digits)])
    parts = [torch.cat([i for i, _ in held_out(digits, shard=BatchShard(rank, 7))]) for rank in range(7)]
    assert sum(map(len, parts)) == len(whole) == 360
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::7])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_entered_in_the_middle_goes_on_identically(digits, workers):
    settings = AUGMENT | {"mixup": 0.8, "cutmix": 1.0, "workers": workers, "batch_size": 64}
    whole = first(training(digits, **settings), 4, epoch=3)
    later = training(digits, **settings)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)  # whatever the generators have gone through
    assert same(whole[2:], first(later, 2, epoch=3, start=2))
    assert same(whole, first(later, 4, epoch=3))  # and the same loader serves again


def test_epochs_and_seeds_differ(digits):
    runs = [first(training(digits, seed=seed, crop="center"), 3, epoch=e) for seed, e in ((3, 0), (3, 1), (4, 0))]
    assert not same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    images = training(digits, **AUGMENT).images
    assert not torch.equal(images[5, 0][0], images[5, 1][0])


def test_workers_change_neither_order_nor_augmentation(digits):
    alone, helped = training(digits, **AUGMENT), training(digits, workers=2, **AUGMENT)
    for epoch in range(2):
        assert same(first(alone, 3, epoch), first(helped, 3, epoch))


def test_processes_share_each_batch_out(digits):
    whole = [images for images, _ in first(training(digits, batch_size=96, **AUGMENT), 2, epoch=1)]
    shared = [training(digits, batch_size=96, shard=BatchShard(rank, 2, 3), **AUGMENT) for rank in range(2)]
    parts = [[images for images, _ in first(each, 6, epoch=1)] for each in shared]
    assert [len(each) for each in shared] == [3 * (1437 // 96)] * 2
    for step, images in enumerate(whole):
        put_together = torch.cat([torch.cat(parts[rank][3 * step : 3 * step + 3]) for rank in range(2)])
        assert torch.equal(put_together, images)


def test_starting_a_loader_leaves_the_global_generator_untouched(digits):
    for batches in (iter(training(digits, crop="center", workers=1).epoch(0)), iter(held_out(digits, workers=1))):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        next(batches)
        assert torch.equal(torch.get_rng_state(), before)


REPEATING = [{"balance": "sampling", "batch_size": 20}, {"last_batch": "fill", "batch_size": 32}]


@pytest.fixture
def few() -> ImageData:
    """38 images of one class and 2 of another."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    items = ArrayImages(pixels, np.array([0] * 38 + [1] * 2))
    return ImageData("few", items, items, ("a", "b"), 1, (8, 8), (0.5,), (0.25,))


@pytest.mark.parametrize("settings", REPEATING)
def test_an_image_that_comes_again_in_an_epoch_is_augmented_anew(few, settings):
    batches = training(few, random_erasing=1.0, **settings)
    made = [image for images, _ in batches.epoch(0) for image in images]
    numbers = torch.cat(list(batches.order.epoch(0))).tolist()
    assert len({image.numpy().tobytes() for image in made}) == len(made) > len(set(numbers))
    for place, (number, image) in enumerate(zip(numbers, made, strict=True)):
        again = number in numbers[:place]  # the first time it is what it would be if it came once
        assert torch.equal(image, batches.images[number, 0][0]) != again


@pytest.mark.parametrize("settings", REPEATING)
def test_images_that_come_again_are_the_same_for_resumed_and_shared_epochs(few, settings):
    whole = first(training(few, random_erasing=1.0, **settings), 2)
    assert same(whole[1:], first(training(few, random_erasing=1.0, **settings), 2, start=1))
    halves = [first(training(few, shard=BatchShard(rank, 2), random_erasing=1.0, **settings), 2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch[0], torch.cat([images for images, _ in parts]))


def test_the_parts_of_a_step_are_mixed_alike_on_any_number_of_devices(digits):
    settings = AUGMENT | {"mixup": 0.8, "cutmix": 1.0, "erase": "after_mixing", "batch_size": 128}
    parts = first(training(digits, shard=BatchShard(0, 1, 4), **settings), 8)
    for world_size in (2, 4):
        each = 4 // world_size
        shards = [BatchShard(rank, world_size, each) for rank in range(world_size)]
        apart = [first(training(digits, shard=shard, **settings), 2 * each) for shard in shards]
        assert same(
            parts, [part for step in (0, 1) for mine in apart for part in mine[step * each : (step + 1) * each]]
        )


def test_channels_that_do_not_match_the_model_are_refused(digits):
    with pytest.raises(InputError, match="digits has 1-channel images, but the model takes 3"):
        training(digits, size=(3, 8, 8))


def test_mixing_refuses_an_odd_part(digits):
    with pytest.raises(InputError, match=r"data\.batch_size is 36, 9 images at a time.*even"):
        training(digits, batch_size=36, shard=BatchShard(0, 2, 2), mixup=0.8)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_reaches_the_main_process_as_one_line(tmp_path, make_folder, workers):
    root = make_folder(tmp_path, {"a": 4, "b": 4}, mode="L")
    config = DataConfig(name=str(root), workers=workers, check="off", val_fraction=0.5)
    data = open_dataset(config)
    bad = data.val.paths[2]
    with open(bad, "wb"):
        pass
    with pytest.raises(InputError) as caught:
        list(held_out(data, workers=workers))
    message = worker_message(caught.value)
    assert message.startswith(f"cannot read image {bad}: it is empty (0 bytes); mend or remove it")
    assert "\n" not in message


def test_a_message_from_the_main_process_stays_as_it_is():
    assert worker_message(InputError("data.name: no such folder x")) == "data.name: no such folder x"


def test_the_configuration_is_free_of_torch():
    code = "import sys, imixer.data.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
