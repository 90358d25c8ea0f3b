"""Optimizer and schedule."""

import argparse
import io

import pytest
import timm
import torch
from timm.optim import list_optimizers
from timm.scheduler import create_scheduler
from torch import nn

import imixer.models  # noqa: F401
from imixer.errors import InputError
from imixer.training.optimizer import build_optimizer, build_scheduler, muon_shapes, step_scheduler
from imixer.training.run.config import OptimConfig, ScheduleConfig
from imixer.training.train_state import gather_state, scatter_state


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
        step_scheduler(scheduler, update + 1, updates)
    return seen, total


def test_warm_up_cosine_and_cool_down():
    config = ScheduleConfig(warmup_epochs=2, warmup_lr=0.1, min_lr=0.01, cooldown_epochs=1)
    seen, total = rates(config, epochs=10, updates=5)
    assert total == 11
    assert seen[:10] == pytest.approx([0.1 + 0.09 * i for i in range(10)])  # linear, per update
    assert seen[25] == pytest.approx((1 + 0.01) / 2)  # halfway down at half the epochs
    assert seen[10:50] == sorted(seen[10:50], reverse=True)
    assert seen[50:] == pytest.approx([0.01] * 5)


def timm_rates(config, epochs, updates):
    """What timm's own script sets: `scheduler.step(epoch + 1)` after each epoch."""
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(lr=1.0))
    options = {name: value for name, value in vars(config).items() if name != "sched_on_updates"}
    scheduler, total = create_scheduler(argparse.Namespace(epochs=epochs, **options), optimizer)
    seen = []
    for epoch in range(total):
        seen += [optimizer.param_groups[0]["lr"]] * updates
        scheduler.step(epoch + 1)
    return seen, total


@pytest.mark.parametrize("sched", ["cosine", "tanh", "step"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_a_schedule_by_epoch_has_the_rates_of_timms_own(sched, warmup):
    options = {"sched": sched, "warmup_epochs": warmup, "warmup_lr": 0.1, "min_lr": 0.01, "decay_epochs": 4}
    config = ScheduleConfig(**options, cooldown_epochs=2, sched_on_updates=False)
    (seen, total), (expected, _) = rates(config, 12, 7), timm_rates(config, 12, 7)
    assert total == 14
    assert seen[: len(expected)] == expected
    assert len(expected) == (84 if sched == "step" else 98)  # timm leaves the cool-down of `step` out


@pytest.mark.parametrize("sched", ["cosine", "tanh", "step"])
def test_by_epoch_and_by_update_agree_where_epochs_start(sched):
    by_update, by_epoch = (
        rates(ScheduleConfig(sched=sched, warmup_lr=0.1, cooldown_epochs=1, sched_on_updates=each), 10, 5)[0]
        for each in (True, False)
    )
    assert by_epoch[::5] == pytest.approx(by_update[::5])
    assert all(len(set(by_epoch[first : first + 5])) == 1 for first in range(0, len(by_epoch), 5))


def test_steps():
    config = ScheduleConfig(sched="step", warmup_epochs=0, decay_epochs=2, decay_rate=0.5)
    assert rates(config, epochs=5, updates=2)[0] == pytest.approx([1] * 4 + [0.5] * 4 + [0.25] * 2)


def test_linear_rises_through_the_warm_up_and_falls_to_zero_at_the_last_of_any_number_of_updates():
    config = ScheduleConfig(sched="linear", warmup_share=0.2, warmup_lr=0.0, min_lr=0.0)
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(lr=1.0))
    scheduler, epochs = build_scheduler(optimizer, config, 4, 15, updates=50)  # three epochs and a third
    seen = []
    for update in range(50):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update + 1)
    assert epochs == 4
    assert seen[:10] == pytest.approx([i / 10 for i in range(10)])
    assert seen[10:] == pytest.approx([1 - i / 40 for i in range(40)])
    assert optimizer.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("sched", ["cosine", "linear"])
def test_a_share_of_the_steps_is_a_number_of_epochs_where_it_is_a_whole_one(sched):
    by_epochs = rates(ScheduleConfig(sched=sched, warmup_epochs=2), epochs=8, updates=5)
    assert by_epochs == rates(ScheduleConfig(sched=sched, warmup_share=0.25), epochs=8, updates=5)


# --- Muon -------------------------------------------------------------------------------------------------------------

SMALL = {"num_blocks": 2, "embed_dim": 32}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("imixer_t2_8", {}),
        ("imixer_t4_32", {"stem": "whitened"}),
        ("mixer_t4_32", {"stem": "deep"}),
        ("imixer_t4_32", {"num_blocks": [1, 1], "embed_dim": [16, 32]}),
    ],
)
@pytest.mark.parametrize("opt", ["muon", "nadamuon"])
def test_muon_moves_the_matrices_of_the_blocks_and_adamw_all_else(name, options, opt):
    model = timm.create_model(name, num_classes=10, **{**SMALL, **options})
    optimizer = build_optimizer(model, OptimConfig(opt=opt, lr=0.1, weight_decay=0.05))
    model(torch.randn(2, *model.pretrained_cfg["input_size"])).square().mean().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if optimizer.state[p]["use_muon"]}
    assert moved == {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim > 1}
    assert len(moved) == len(muon_shapes(model))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decays[id(p)] == (0.05 if p.ndim > 1 else 0) for p in model.parameters())


def test_muon_moves_stem_and_levels_of_a_segmentation_and_leaves_its_last_map_to_adamw():
    options = {"backbone": "imixer_t4_32", "backbone_args": SMALL | {"stem": "conv"}, "img_size": 32}
    model = timm.create_model("segmenter", num_classes=5, **options)
    optimizer = build_optimizer(model, OptimConfig(opt="muon", lr=0.1))
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if optimizer.state[p]["use_muon"]}
    matrices = {n for n, p in model.named_parameters() if p.ndim > 1 and n != "head.weight"}
    assert moved == matrices and len(moved) == len(muon_shapes(model))
    assert any(n.startswith("backbone.model.stem.") for n in moved) and "projections.0.weight" in moved


def test_a_step_of_muon_is_orthogonal():
    """Newton-Schulz brings all singular values of an update near 1, times timm's scale 0.2 sqrt(longer side)."""
    model = timm.create_model("imixer_t2_8", **SMALL)
    weight = model.blocks[0].mlp_channels.fc1.weight
    before = weight.detach().clone()
    optimizer = build_optimizer(model, OptimConfig(opt="muon", lr=0.1, weight_decay=0.0))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    step = torch.linalg.svdvals((weight - before) / (0.1 * 0.2 * max(weight.shape) ** 0.5))
    assert 0.6 < step.min() and step.max() < 1.3


def test_muons_momentum_is_its_authors_and_can_be_set():
    model = timm.create_model("imixer_t2_8", **SMALL)
    assert build_optimizer(model, OptimConfig(opt="muon")).defaults["momentum"] == 0.95
    assert build_optimizer(model, OptimConfig(opt="muon", momentum=0.8)).defaults["momentum"] == 0.8
    assert build_optimizer(model, OptimConfig(opt="sgd")).defaults["momentum"] == 0.9


@pytest.mark.parametrize("options", [{"num_blocks": 0}, {"num_blocks": 0, "stem": "conv"}])
def test_muon_is_refused_where_there_are_only_stem_and_classifier(options):
    with pytest.raises(InputError, match="muon moves matrices, and none but stem and classifier is trained"):
        build_optimizer(timm.create_model("mixer_t4_32", num_classes=10, **options), OptimConfig(opt="muon"))


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (OptimConfig(opt="adamwww"), ["adamwww", "did you mean", "adamw"]),
        (OptimConfig(opt="sgd", betas=(0.9, 0.99)), ["optim.betas", "sgd"]),
        (OptimConfig(momentum=0.9), ["optim.momentum", "adamw"]),
        (OptimConfig(opt="adahessian"), ["adahessian needs second derivatives", "use adamw"]),
        (OptimConfig(opt="adafactorbv"), ["adafactorbv has momentum_dtype torch.bfloat16", "use adamw"]),
    ],
)
def test_impossible_optimizers_are_refused(config, parts):
    with pytest.raises(InputError) as refused:
        build_optimizer(nn.Linear(2, 2), config)
    for part in parts:
        assert part in str(refused.value)


class Small(nn.Module):
    """Two matrices, biases and a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.body(x)).relu())


def refused(config):
    """Return why an optimizer is refused, None if it is not."""
    try:
        build_optimizer(Small(), config)
    except InputError as error:
        return str(error)


def take_steps(model, optimizer, numbers):
    for number in numbers:
        torch.manual_seed(number)
        nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opt", [name for name in list_optimizers() if not name.startswith("kron")])  # it compiles
def test_every_optimizer_of_timm_goes_on_from_a_checkpoint_exactly_or_is_refused_in_one_line(opt):
    config = OptimConfig(opt=opt, lr=1e-3)
    if refusal := refused(config):
        assert "\n" not in refusal and opt in refusal
        return
    one, other = ((model, build_optimizer(model, config)) for model in (Small(), Small()))
    take_steps(*one, range(2))
    file = io.BytesIO()
    torch.save(gather_state(*one), file)
    file.seek(0)
    scatter_state(*other, torch.load(file, weights_only=True))
    for model, optimizer in (one, other):
        take_steps(model, optimizer, range(2, 4))
    for name, value in one[0].state_dict().items():
        assert torch.equal(other[0].state_dict()[name], value), name
