"""What is drawn on the host, against what timm draws."""

from __future__ import annotations

import itertools
import random
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp
from timm.data import Mixup
from timm.data.auto_augment import LEVEL_TO_ARG, rand_augment_transform
from timm.data.random_erasing import RandomErasing

from imixer.data.device import rand_augment
from imixer.data.device.erasing import Erasing
from imixer.data.device.mixing import Mixing
from imixer.data.device.rand_augment import KNOWN, RandAugment

CPU = torch.device("cpu")
UNLIKELY = 1e-3


def policy_of(text, **settings):
    return rand_augment_transform(text, {"translate_const": 100, "img_mean": (128, 100, 90), **settings})


def names_of(augment, policy, params):
    """timm's name of each operation drawn, "" for none. Invert and SolarizeIncreasing are two changes, as in timm."""
    names = {number: op.name for op, row in zip(policy.ops, augment.numbers, strict=True) for number in row}
    return np.array([[names.get(number, "") for number in row] for row in params.operation.tolist()])


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_arguments_follow_from_magnitudes_as_timms_do(monkeypatch, name):
    argument = {**rand_augment._COLOR_OPERATIONS, **rand_augment._GEOMETRIC_OPERATIONS}[name][1]
    for magnitude, sign in itertools.product((0.0, 0.3, 3.7, 9.0, 10.0), (-1.0, 1.0)):
        monkeypatch.setattr(random, "random", lambda sign=sign: 0.75 if sign < 0 else 0.25)
        theirs = LEVEL_TO_ARG[name](magnitude, {}) if LEVEL_TO_ARG[name] else (0.0,)
        assert argument(np.array([magnitude / 10]), np.array([sign])) == pytest.approx(theirs[0], rel=1e-12)


@pytest.mark.parametrize(
    "text", ["rand-m9-mstd0.5-inc1", "rand-m5-n3-p0.8-mstd101", "rand-m9-mstd2-mmax12", "rand-m4-mstd1-tweights"]
)
def test_operations_and_arguments_are_distributed_as_timms(text):
    count = 3000
    policy = policy_of(text)
    augment = RandAugment(policy, 3, CPU)
    params = augment.draw(np.random.default_rng(3), count)
    ours = names_of(augment, policy, params)

    calls: list[tuple[str, float]] = []

    def record(name, image, value=0.0, **_):
        calls.append((name, float(value)))
        return image

    for op in policy.ops:
        op.aug_fn = partial(record, op.name)
    seed_all(3)
    numbers = []
    for _ in range(count):
        before = len(calls)
        policy(Image.new("RGB", (1, 1)))
        numbers.append(len(calls) - before)

    layers = policy.num_layers
    per_image = [np.bincount(each, minlength=layers + 1) for each in ((ours != "").sum(axis=1), numbers)]
    assert chi2_contingency(np.array(per_image)[:, np.sum(per_image, axis=0) > 0]).pvalue > UNLIKELY
    known = sorted({name for name, _ in calls})
    table = [[(ours == name).sum() for name in known], [sum(call[0] == name for call in calls) for name in known]]
    assert chi2_contingency(table).pvalue > UNLIKELY
    for name in known:
        mine, theirs = params.argument[ours == name], [value for call, value in calls if call == name]
        assert ks_2samp(mine, theirs).pvalue > UNLIKELY, name
    if policy.choice_weights is not None:
        assert all(len(set(row[row != ""])) == (row != "").sum() for row in ours), "weighted choice repeats nothing"


def test_both_filters_come_up_when_timm_draws_one_and_one_when_it_does_not():
    shear = "ShearX"
    for interpolation, expected in (({}, {False, True}), ({"interpolation": Image.Resampling.BILINEAR}, {False})):
        policy = policy_of("rand-m9-inc1-p1", **interpolation)
        augment = RandAugment(policy, 3, CPU)
        place = [op.name for op in policy.ops].index(shear)
        drawn = set(augment.draw(np.random.default_rng(0), 1000).operation.ravel()) & set(augment.numbers[place])
        assert {augment.operations[number].keywords["cubic"] for number in drawn} == expected


def test_changes_are_applied_in_the_order_of_the_layers(pictures):
    images = pictures()
    policy = policy_of("rand-m9-inc1-n2-p1")
    augment = RandAugment(policy, 3, CPU)
    names = [op.name for op in policy.ops]
    first, second = (augment.numbers[names.index(name), 0] for name in ("SolarizeAdd", "Invert"))
    count = len(images)
    change = np.tile([[first, second]], (count, 1))
    change[::2] = change[::2, ::-1]
    change[-1] = -1
    result = images.clone()
    augment(result, rand_augment.OperationParams(change, np.where(change == first, 60.0, 0.0)))
    added = torch.where(images < 128, images + 60, images)
    expected = torch.where((torch.arange(count) % 2 == 1).view(-1, 1, 1, 1), 255 - added, 0)
    inverted = 255 - images
    expected[::2] = torch.where(inverted < 128, inverted + 60, inverted)[::2]
    expected[-1] = images[-1]
    assert torch.equal(result, expected)


@pytest.mark.parametrize("size", [(32, 32), (20, 44)])
def test_erased_boxes_are_distributed_as_timms(size):
    count = 4000
    timms = RandomErasing(0.25, mode="pixel", device="cpu")
    boxes, values = Erasing(timms, (3, *size)).draw(np.random.default_rng(5), count)
    seed_all(5)
    torch.manual_seed(5)
    theirs = []
    for _ in range(count):
        erased = timms(torch.zeros(1, *size))[0] != 0
        if erased.any():
            rows, columns = erased.any(1).nonzero().ravel(), erased.any(0).nonzero().ravel()
            theirs.append([int(rows[0]), int(columns[0]), len(rows), len(columns), len(rows) * len(columns)])
    mine = np.column_stack([*boxes[:4], boxes.height * boxes.width])[boxes.height > 0]
    assert chi2_contingency([[len(mine), count - len(mine)], [len(theirs), count - len(theirs)]]).pvalue > UNLIKELY
    for ours, others in zip(mine.T, np.array(theirs).T, strict=True):
        assert ks_2samp(ours, others).pvalue > UNLIKELY
    assert values == 3 * mine[:, 4].sum()


def test_a_box_is_filled_with_noise_of_its_own_and_the_rest_is_kept():
    erasing = Erasing(RandomErasing(1.0, mode="pixel", device="cpu"), (3, 20, 24))
    boxes, values = erasing.draw(np.random.default_rng(0), 50)
    images, noise = torch.full((50, 3, 20, 24), 9.0), torch.randn(values, generator=torch.Generator().manual_seed(0))
    erasing(images, boxes, noise)
    erased = images != 9
    assert erased.sum() == values
    assert torch.equal(images[erased].sort().values, noise.sort().values), "each value of noise is used once"
    for each, top, left, height, width in zip(erased, *boxes[:4], strict=True):
        assert each[:, top : top + height, left : left + width].all() and each.sum() == 3 * height * width


def test_shares_and_boxes_are_distributed_as_timms():
    count, mixup, cutmix = 3000, 0.8, 1.0
    timms = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, num_classes=2, label_smoothing=0.0)
    mixing = Mixing(timms, (32, 24))
    rng = np.random.default_rng(7)
    params = [mixing.draw(rng) for _ in range(count)]
    seed_all(7)
    images, labels = torch.zeros(2, 1, 32, 24), torch.tensor([0, 1])
    theirs: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(count):
        images[0], images[1] = 1.0, 0.0
        mixed, targets = timms(images, labels)
        blended = bool(((mixed > 0) & (mixed < 1)).any())
        theirs[not blended].append(float(targets[0, 0]))
    for cut in (False, True):
        mine = [draw.lam for draw in params if (draw.box is not None) == cut]
        assert abs(len(mine) - len(theirs[cut])) < 4 * (count / 2) ** 0.5
        assert not mine or ks_2samp(mine, theirs[cut]).pvalue > UNLIKELY


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixing_equals_timms_for_the_same_share(monkeypatch, mixup, cutmix):
    timms = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, num_classes=5, label_smoothing=0.1)
    mixing = Mixing(timms, (16, 12))
    images = torch.randn(6, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    draw = mixing.draw(np.random.default_rng(1))
    assert 0 < draw.lam < 1
    assert (draw.box is not None) == (cutmix > 0)
    if draw.box:
        top, bottom, left, right = draw.box
        assert draw.lam == 1 - (bottom - top) * (right - left) / (16 * 12)
        monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *_, **__: (draw.box, draw.lam))
    monkeypatch.setattr(timms, "_params_per_batch", lambda: (draw.lam, draw.box is not None))
    expected, expected_targets = timms(images.clone(), labels)
    targets = mixing(images, labels, draw)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(targets, expected_targets)
