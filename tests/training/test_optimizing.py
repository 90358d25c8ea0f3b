"""Optimizer and schedule."""

import pytest
import timm
from torch import nn

import imixer.models  # noqa: F401
from imixer.errors import InputError
from imixer.training.config import OptimConfig, ScheduleConfig
from imixer.training.optimizing import build_optimizer, build_scheduler


def test_biases_and_norms_do_not_decay():
    model = timm.create_model("imixer_t2_8", num_blocks=1)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.0 if parameter.ndim < 2 else 0.1
        assert decays[id(parameter)] == expected, name


def rates(config, epochs, updates):
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(lr=1.0))
    scheduler, total = build_scheduler(optimizer, config, epochs, updates)
    seen = []
    for update in range(total * updates):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update + 1)
    return seen, total


def test_warm_up_cosine_and_cool_down():
    config = ScheduleConfig(warmup_epochs=2, warmup_lr=0.1, min_lr=0.01, cooldown_epochs=1)
    seen, total = rates(config, epochs=10, updates=5)
    assert total == 11
    assert seen[:10] == pytest.approx([0.1 + 0.09 * i for i in range(10)])  # linear, per update
    assert seen[25] == pytest.approx((1 + 0.01) / 2)  # halfway down at half the epochs
    assert seen[10:50] == sorted(seen[10:50], reverse=True)
    assert seen[50:] == pytest.approx([0.01] * 5)


def test_steps():
    config = ScheduleConfig(sched="step", warmup_epochs=0, decay_epochs=2, decay_rate=0.5)
    assert rates(config, epochs=5, updates=2)[0] == pytest.approx([1] * 4 + [0.5] * 4 + [0.25] * 2)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (OptimConfig(opt="adamwww"), ["adamwww", "did you mean", "adamw"]),
        (OptimConfig(opt="sgd", betas=(0.9, 0.99)), ["optim.betas", "sgd"]),
        (OptimConfig(betas=(0.9, 1.5)), ["1.5"]),
    ],
)
def test_impossible_optimizers_are_refused(config, parts):
    with pytest.raises(InputError) as refused:
        build_optimizer(nn.Linear(2, 2), config)
    for part in parts:
        assert part in str(refused.value)
