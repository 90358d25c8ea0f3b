"""Batches."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import imixer.data.config
from imixer.data.config import DataConfig
from imixer.data.loading import build_loaders, seed_worker, worker_message
from imixer.data.source import ImageData, open_data
from imixer.errors import InputError

SIZE = (1, 8, 8)
AUGMENT = {"hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data(DataConfig())


def loaders(data, seed=0, **settings):
    return build_loaders(data, DataConfig(**settings), SIZE, seed=seed)


def batches(loader, count=None):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return [batch for batch, _ in zip(loader, range(count or len(loader)), strict=False)]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(left, right, strict=True)
    )


def test_batches_are_float_images_and_int_labels(digits):
    train, val = loaders(digits, batch_size=32)
    for loader in (train, val):
        images, labels = next(iter(loader))
        assert (images.shape, images.dtype) == ((32, *SIZE), torch.float32)
        assert (labels.shape, labels.dtype) == ((32,), torch.int64)


def test_training_images_have_about_mean_zero_and_deviation_one(digits):
    images = torch.cat([images for images, _ in loaders(digits, crop="center")[0]])
    assert images.mean().abs() < 0.02
    assert (images.std() - 1).abs() < 0.02


def test_training_drops_the_last_incomplete_batch_and_validation_keeps_it(digits):
    train, val = loaders(digits, batch_size=64)
    assert [len(labels) for _, labels in train] == [64] * 22
    assert [len(labels) for _, labels in val] == [64] * 5 + [40]


def test_a_set_smaller_than_a_batch_is_one_batch(digits):
    train, _ = loaders(digits, batch_size=2000)
    assert [len(labels) for _, labels in train] == [1437]


def test_validation_is_in_order_and_not_augmented(digits):
    _, val = loaders(digits, **AUGMENT)
    labels = torch.cat([labels for _, labels in val])
    assert labels.tolist() == [digits.val[i][1] for i in range(len(digits.val))]
    assert same(list(val), list(val))


def test_an_epoch_has_each_training_image_at_most_once_in_random_order(digits):
    train, _ = loaders(digits)
    order = list(train.sampler)
    assert sorted(order) == list(range(1437))
    assert order != sorted(order)


def test_the_same_seed_gives_the_same_batches(digits):
    assert same(batches(loaders(digits, seed=3, **AUGMENT)[0]), batches(loaders(digits, seed=3, **AUGMENT)[0]))
    assert not same(batches(loaders(digits, seed=3)[0]), batches(loaders(digits, seed=4)[0]))


def test_epochs_differ_and_can_be_chosen(digits):
    orders = {}
    train, _ = loaders(digits, seed=1)
    for epoch in range(3):
        orders[epoch] = list(train.sampler)
    assert orders[0] != orders[1] != orders[2]
    resumed, _ = loaders(digits, seed=1)
    resumed.sampler.set_epoch(2)
    assert list(resumed.sampler) == orders[2]
    other, _ = loaders(digits, seed=2)
    assert list(other.sampler) != orders[1]


def test_starting_a_loader_leaves_the_global_generator_untouched(digits):
    for loader in loaders(digits, crop="center"):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        next(iter(loader))
        assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_neither_order_nor_images_without_augmentation(digits):
    alone, _ = loaders(digits, crop="center")
    helped, _ = loaders(digits, crop="center", workers=2)
    for _ in range(2):
        assert same(batches(alone), batches(helped))


def test_the_same_seed_gives_the_same_augmented_batches_with_workers(digits):
    runs = [batches(loaders(digits, seed=seed, workers=2, **AUGMENT)[0], 6) for seed in (3, 3, 4)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_workers_are_seeded_for_random_and_numpy():
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        seed_worker(0)
        drawn.append((random.random(), np.random.rand()))
    assert drawn[0] == drawn[1] != drawn[2]


def test_workers_persist_and_memory_is_pinned_for_cuda_only(digits):
    for workers in (0, 2):
        train, val = loaders(digits, workers=workers)
        assert train.persistent_workers == val.persistent_workers == (workers > 0)
        assert train.pin_memory == val.pin_memory == torch.cuda.is_available()


def test_channels_that_do_not_match_the_model_are_refused(digits):
    with pytest.raises(InputError, match="digits has 1-channel images, but the model takes 3"):
        build_loaders(digits, DataConfig(), (3, 8, 8), seed=0)


def test_mixup_refuses_an_odd_only_batch(digits):
    with pytest.raises(InputError, match=r"data\.batch_size is 2000.*1437 training images.*give 1436 or less"):
        loaders(digits, batch_size=2000, mixup=0.8)
    loaders(digits, batch_size=1436, mixup=0.8)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_reaches_the_main_process_as_one_line(tmp_path, make_folder, workers):
    root = make_folder(tmp_path, {"a": 4, "b": 4}, mode="L")
    config = DataConfig(name=str(root), workers=workers, check="off", val_fraction=0.5)
    data = open_data(config)
    bad = data.val.paths[2]
    with open(bad, "wb"):
        pass
    _, val = build_loaders(data, config, SIZE, seed=0)
    with pytest.raises(InputError) as caught:
        list(val)
    message = worker_message(caught.value)
    assert message.startswith(f"cannot read image {bad}: it is empty (0 bytes); mend or remove it")
    assert "\n" not in message


def test_a_message_from_the_main_process_stays_as_it_is():
    assert worker_message(InputError("data.name: no such folder x")) == "data.name: no such folder x"


def test_the_configuration_is_free_of_torch():
    code = "import sys, imixer.data.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "file", sorted(Path(imixer.data.config.__file__).parent.glob("*.py")), ids=lambda path: path.stem
)
def test_the_package_imports_nothing_of_imixer_but_itself_and_its_errors(file):
    tree = ast.parse(file.read_text())
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    inner = [name for name in imported if name.split(".")[0] == "imixer"]
    assert all(name == "imixer.errors" or name.startswith("imixer.data.") for name in inner)
