"""Training parts and validation batches made on the device, here the CPU."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch.utils._python_dispatch import TorchDispatchMode

from imixer.data.batches import build_training
from imixer.data.config import DataConfig
from imixer.data.device import build_resident, resident
from imixer.data.device.erasing import ErasingParams
from imixer.data.device.mixing import MixingParams
from imixer.data.device.transfer import BufferPool
from imixer.data.sampler import BatchShard
from imixer.data.transforms import eval_transform, train_transform
from imixer.errors import InputError

AUGMENTED = {
    "crop": "resized",
    "interpolation": "random",
    "hflip": 0.5,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
}
MIXED = {**AUGMENTED, "mixup": 0.8, "cutmix": 1.0}


def parts(training, epoch=0, start=0):
    return list(training.epoch(epoch, start))


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True)
    )


@pytest.mark.parametrize(
    ("crop", "channels", "size"),
    [("pad", 3, (16, 20)), ("resized", 3, (32, 24)), ("resized", 1, (9, 7)), ("center", 1, (9, 7))],
)
def test_parts_have_the_shape_of_the_input_and_labels_or_targets(make_data, build, crop, channels, size):
    data = make_data(channels=channels)
    for settings, shape, dtype in ((AUGMENTED, (8,), torch.int64), (MIXED, (8, 5), torch.float32)):
        training, _ = build(size, data=data, **{**settings, "crop": crop})
        made = parts(training)
        assert len(made) == len(training) == 3
        for images, targets in made:
            assert (images.shape, images.dtype) == ((8, channels, *size), torch.float32)
            assert (targets.shape, targets.dtype) == (shape, dtype)
            assert images.isfinite().all()
            if settings is MIXED:
                torch.testing.assert_close(targets.sum(1), torch.ones(8))


def test_without_augmentation_parts_are_the_images_in_the_order_of_the_epoch(make_data, build):
    data = make_data()
    training, _ = build((16, 20), data=data, crop="center")
    for (images, labels), numbers in zip(training.epoch(3), training.order.epoch(3), strict=True):
        pixels = data.train.images[numbers] / 255
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (data.mean, data.std))
        torch.testing.assert_close(images, (pixels - mean) / std, rtol=1e-5, atol=1e-5)
        assert torch.equal(labels, numbers % 5)


def test_an_epoch_is_a_function_of_seed_and_epoch(build):
    first = parts(build(**MIXED)[0], epoch=1)
    training, _ = build(**MIXED)
    parts(training, epoch=5)
    assert equal(parts(training, epoch=1), first)
    assert not equal(parts(training, epoch=2), first)
    assert not equal(parts(build(seed=1, **MIXED)[0], epoch=1), first)
    assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_epoch_entered_in_the_middle_goes_on_identically(build, accumulate):
    training, _ = build(shard=BatchShard(accumulate=accumulate), **MIXED)
    whole = parts(training)
    for start in range(len(whole) + 1):
        assert equal(parts(training, start=start), whole[start:])


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_shares_put_together_are_the_batch_of_one_process(build, world, accumulate):
    whole = parts(build(**AUGMENTED)[0])
    shares = [parts(build(shard=BatchShard(rank, world, accumulate), **AUGMENTED)[0]) for rank in range(world)]
    for step, (images, labels) in enumerate(whole):
        chunks = [share[step * accumulate + part] for share in shares for part in range(accumulate)]
        assert torch.equal(torch.cat([piece[0] for piece in chunks]), images)
        assert torch.equal(torch.cat([piece[1] for piece in chunks]), labels)


def test_each_part_is_mixed_by_a_share_of_its_own(build):
    settings = {"crop": "center", "mixup": 1.0}
    targets = [
        pair[1] for rank in (0, 1) for pair in parts(build(shard=BatchShard(rank, 2, 2), **settings)[0])[:2]
    ]  # four parts of the first step
    highest = {round(float(each.max()), 5) for each in targets}
    assert len(highest) > 2


def corners_but_of_the_first(rng, count):
    """Boxes of the upper left pixel, all filled with the same noise."""
    one = np.ones(count, dtype=int)
    return ErasingParams(0 * one, 0 * one, one - (np.arange(count) == 0), one, 0 * one), 3


# images 0 and 7 have the values -0.5 and 6.5; all but image 0 are erased, with 100
@pytest.mark.parametrize(
    ("order", "corners"),
    [("before_mixing", {0: 49.75, 7: 49.75, 3: 100.0}), ("after_mixing", {0: 3.0, 7: 100.0, 3: 100.0})],
)
def test_a_box_is_erased_from_the_mixed_image_or_mixed_itself(build, monkeypatch, order, corners):
    training, _ = build((16, 20), crop="center", random_erasing=1.0, mixup=1.0, erase=order)
    monkeypatch.setattr(training.mixing, "draw", lambda rng: MixingParams(0.5, None))
    monkeypatch.setattr(training.erasing, "draw", corners_but_of_the_first)
    monkeypatch.setattr(training, "normalise", lambda images, out: out.copy_(torch.arange(8.0).view(8, 1, 1, 1) - 0.5))
    monkeypatch.setattr(torch, "randn", lambda count, **_: torch.full((count,), 100.0))
    images, targets = parts(training)[0]
    assert images[0, :, 1:].unique().tolist() == [3.0]  # the mean of the two
    for number, corner in corners.items():
        assert images[number, :, 0, 0].tolist() == [corner] * 3
    assert targets.shape == (8, 5)


def test_what_was_yielded_stays_as_it_was(build):
    training, _ = build(**MIXED)
    kept, copies = [], []
    for images, _ in training.epoch(0):
        kept.append(images)
        copies.append(images.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_memory_is_lent_again_only_when_nothing_refers_to_it():
    lender = BufferPool((2, 3), torch.device("cpu"))
    tensor = lender.take()
    place, view = tensor.data_ptr(), tensor[1:]
    weight = torch.ones(3, requires_grad=True)
    loss = (view * weight).sum()
    del tensor, view
    others = [lender.take() for _ in range(3)]  # the graph of the loss still needs the first
    assert place not in {each.data_ptr() for each in others}
    loss.backward()
    del loss
    assert lender.take().data_ptr() == place


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
@pytest.mark.parametrize(("size", "crop_pct"), [((16, 20), 1.0), ((24, 24), 0.875), ((20, 31), 0.9)])
def test_validation_equals_the_other_pipelines_but_for_rounding(make_data, build, size, crop_pct, interpolation):
    data = make_data()
    _, validation = build(size, data=data, crop_pct=crop_pct, interpolation=interpolation, hflip=1.0)
    transform = eval_transform((3, *size), data.mean, data.std, crop_pct, interpolation)
    expected = torch.stack([transform(data.val[i][0]) for i in range(10)])
    images, labels = (torch.cat(each) for each in zip(*validation, strict=True))
    assert torch.equal(labels, torch.arange(10) % 5)
    away = (images - expected).abs() * torch.tensor(data.std).view(3, 1, 1) * 255
    assert away.max() < 1.01 and away.mean() < 0.04
    assert equal(list(validation), list(validation))


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (11, 2), (1, 2)])
def test_validation_images_are_shared_without_loss_or_repetition(make_data, build, count, world):
    data = make_data(val=count)
    whole = torch.cat([images for images, _ in build(data=data)[1]])
    shares = []
    for rank in range(world):
        _, validation = build(data=data, shard=BatchShard(rank, world))
        batches = list(validation)
        assert len(batches) == len(validation)
        shares.append([image for images, _ in batches for image in images])
    assert sum(map(len, shares)) == count
    for number in range(count):
        assert torch.equal(shares[number % world][number // world], whole[number])


def test_means_and_deviations_of_images_are_distributed_as_the_other_pipelines(make_data, build):
    data = make_data(train=400)
    settings = {**AUGMENTED, "batch_size": 400}
    training, _ = build((24, 24), data=data, **settings)
    ours = torch.cat([parts(training, epoch)[0][0] for epoch in range(3)])
    transform = train_transform(DataConfig(**settings), (3, 24, 24), data.mean, data.std)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    theirs = torch.stack([transform(data.train[i][0]) for _ in range(3) for i in range(400)])
    for channel in range(3):
        for measure in (torch.mean, torch.std):
            mine, others = (measure(images[:, channel], dim=(1, 2)).numpy() for images in (ours, theirs))
            assert ks_2samp(mine, others).pvalue > 1e-3
    torch.testing.assert_close(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), rtol=0, atol=0.06)
    torch.testing.assert_close(ours.std((0, 2, 3)), theirs.std((0, 2, 3)), rtol=0.03, atol=0)


def test_images_that_come_again_are_distributed_as_the_other_pipelines(make_data, build):
    data = make_data(train=60)
    labels = np.array([0] * 58 + [1] * 2)
    for items in (data.train, data.val):
        items.labels = labels
    settings = {"crop": "resized", "hflip": 0.5, "random_erasing": 0.25, "balance": "sampling", "batch_size": 60}
    ours = build((24, 24), data=data, **settings)[0]
    config = DataConfig(**settings)
    theirs = build_training(data, config, (3, 24, 24), num_classes=5, smoothing=0.1, seed=1, device=torch.device("cpu"))

    def measured(training):
        """Means of the images of the class that has two, and how many of each epoch's differ."""
        means, distinct = [], []
        for epoch in range(4):
            numbers = torch.cat(list(training.order.epoch(epoch)))
            images = torch.cat([images for images, _ in training.epoch(epoch)])[numbers >= 58]
            means.append(images.mean((1, 2, 3)))
            distinct.append(len({image.numpy().tobytes() for image in images}) / len(images))
        return torch.cat(means).numpy(), min(distinct)

    (our_means, our_distinct), (their_means, their_distinct) = measured(ours), measured(theirs)
    assert our_distinct > 0.9 and their_distinct > 0.9
    assert ks_2samp(our_means, their_means).pvalue > 1e-3


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation._schema.name)
        if operation._schema.name == "aten::index":
            assert not any(index is not None and index.dtype == torch.bool for index in args[1])
        return operation(*args, **kwargs or {})


def test_no_operation_makes_the_host_wait_for_the_device(build):
    training, validation = build(**{**MIXED, "auto_augment": "rand-m9-mstd0.5-inc1-p1-n4"})
    with _Operations() as seen:
        for epoch in range(3):
            parts(training, epoch)
        list(validation)
    waiting = {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "bincount",
        "unique",
        "_unique2",
        "is_nonzero",
        "equal",
    }
    assert not {name for name in seen.names if name.split("::")[1] in waiting}
    assert "aten::gather" in seen.names


def test_a_data_set_whose_images_differ_in_size_is_refused(make_data, build):
    data = make_data()
    images = [*data.train.images[:9], data.train.images[0, :, :12]]

    class Mixed(type(data.train)):
        def __init__(self):
            self.images = images

    with pytest.raises(
        InputError, match=r"image 9 of set has 12x20 pixels and others have 16x20; use data.pipeline timm"
    ):
        build(data=replace(data, train=Mixed()))


def test_images_that_do_not_fit_in_memory_are_refused_with_their_size(monkeypatch, build):
    monkeypatch.setattr(resident, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"take 0\.00 GiB and cpu has 0\.00 GiB free; use data.pipeline timm"):
        build()


def test_free_memory_of_the_host_is_plausible():
    assert 2**26 < resident.free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("policy", ["augmix-m5-w4-d2", "original-mstd0.5", "v0", "3a", "rand-m9-t3a", "rand-m9-t3aw"])
def test_a_policy_that_only_the_other_pipeline_has_is_refused(build, policy):
    with pytest.raises(InputError, match=rf"data\.auto_augment '{policy}'; use data\.pipeline timm"):
        build(auto_augment=policy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_augment": "rand-q3"}, r"data\.auto_augment 'rand-q3' is no policy"),
        ({"crop": "resized", "scale": (0.9, 0.1)}, r"data\.scale"),
        ({"batch_size": 25}, r"data\.batch_size is 25"),
        ({"batch_size": 7, "mixup": 1.0}, r"data\.batch_size is 7"),
        ({"batch_size": 6, "mixup": 1.0, "shard": BatchShard(0, 2)}, r"data\.batch_size is 6"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(build, settings, message):
    with pytest.raises(InputError, match=message):
        build(**settings)


@pytest.mark.parametrize(
    ("channels", "device", "message"),
    [(1, "cpu", "build the model with in_chans=3"), (3, "mps", "lacks; use data.pipeline timm")],
)
def test_models_and_devices_that_do_not_fit_are_refused(make_data, channels, device, message):
    settings = {"num_classes": 5, "smoothing": 0.0, "seed": 0, "shard": BatchShard(), "held_out_batch": 8}
    with pytest.raises(InputError, match=message):
        build_resident(make_data(), DataConfig(), (channels, 8, 8), device=torch.device(device), **settings)


def test_an_unreadable_image_is_named(make_data, build):
    data = make_data()

    class Broken(type(data.train)):
        def __getitem__(self, index):
            if index == 20:
                raise InputError("cannot read image 20; mend or remove it")
            return super().__getitem__(index)

    with pytest.raises(InputError, match="cannot read image 20"):
        build(data=replace(data, train=Broken(data.train.images)))
