"""Steps that are not finite."""

import errno
import math

import pytest
import timm
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import nn

import imixer.models  # noqa: F401
from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.training.finetune import freeze
from imixer.training.guard import Guard, gradient_norm
from imixer.training.model import BuiltModel
from imixer.training.run.config import ModelConfig, ScheduleConfig, TrainConfig
from imixer.training.run.parsing import load_config
from imixer.training.running_statistics import RunningStatistics
from imixer.training.step_dump import dump_step, first_non_finite, replay
from imixer.training.train_state import TrainState

pytestmark = pytest.mark.usefixtures("undrawn")

INF, NAN = torch.tensor(math.inf), torch.tensor(math.nan)
TINY = [
    *("--recipe", "digits_general", "--epochs", "2", "--schedule.warmup_epochs", "1"),
    *("--model.num_blocks", "2", "--model.embed_dim", "16"),
]


@pytest.mark.parametrize("bad", [INF, NAN, -INF])
def test_one_bad_step_is_refused_and_the_next_good_one_taken(bad):
    guard = Guard(torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    assert [guard.should_skip(norm) for norm in (torch.ones(()), bad, torch.ones(()))] == [False, True, False]
    assert not guard.skipped()


def test_with_a_loss_scale_only_a_long_row_counts():
    guard = Guard(torch.optim.SGD([nn.Parameter(torch.ones(1))]), scaled=True)
    assert not any(guard.should_skip(INF) for _ in range(20))
    assert not guard.should_skip(torch.ones(()))
    assert [guard.should_skip(INF) for _ in range(21)] == [False] * 20 + [True]


def test_a_fused_optimizer_leaves_out_a_step_by_the_flag_that_the_guard_gives_it():
    """What is relied upon where the host must not wait."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for flag, moved in ((1.0, False), (0.0, True), (1.0, False)):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), math.nan if flag else 1.0)
        optimizer.found_inf = torch.tensor(flag)
        optimizer.step()
        assert torch.isfinite(weight).all()
        assert torch.equal(weight, before) != moved


def test_the_norm_is_of_the_whole_gradient():
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    weights[0].grad, weights[1].grad = torch.full((3,), 2.0), torch.full((2,), -1.0)
    assert gradient_norm(weights).item() == pytest.approx(math.sqrt(14))


class Spoiled(nn.Module):
    """A small iMixer with something wrong in block 1."""

    def __init__(self, how):
        super().__init__()
        self.inner = timm.create_model("imixer_t2_8", num_blocks=3, embed_dim=16, num_classes=4, in_chans=1)
        if how == "weight":
            with torch.no_grad():
                self.inner.blocks[1].mlp_channels.fc1.weight[0, 0] = math.nan
        if how == "output":
            self.inner.blocks[1].mlp_channels.fc1.register_forward_hook(lambda m, a, out: out * math.inf)
        if how == "gradient":
            self.inner.blocks[1].mlp_channels.fc1.register_forward_hook(
                lambda m, a, out: out + 0 * torch.sqrt(out * 0)  # finite, with a slope of 0 / 0
            )

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("how", "place"),
    [
        ("weight", "the weight inner.blocks.1.mlp_channels.fc1.weight"),
        ("output", "the output of inner.blocks.1.mlp_channels.fc1"),
        ("gradient", "inner.blocks.1"),
        ("images", "the images"),
        ("nothing", None),
    ],
)
def test_the_first_place_that_is_not_finite_is_named(how, place):
    torch.manual_seed(0)
    model, images = Spoiled(how), torch.randn(2, 1, 8, 8)
    if how == "images":
        images[0, 0, 0, 0] = math.inf
    place_named = first_non_finite(
        model, images, lambda logits: nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    )
    assert (place_named is None) if place is None else place in place_named
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def poison(monkeypatch):
    """Make the gradient of some steps not finite, as an overflow would."""

    def at(*steps):
        from imixer.training.train_state import TrainState

        loss = TrainState.loss

        def spoiled(self, logits, targets):
            number = self.spoiled = getattr(self, "spoiled", -1) + 1
            return loss(self, logits * (math.inf if number in steps else 1), targets)

        monkeypatch.setattr(TrainState, "loss", spoiled)

    return at


def test_a_step_that_cannot_be_kept_ends_no_training_and_is_told(tmp_path, poison, monkeypatch, capsys):
    poison(3)

    def save(content, file):
        if "nonfinite" not in str(file.name):
            return kept_save(content, file)
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "step.pt")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as torch does

    kept_save = torch.save
    monkeypatch.setattr(torch, "save", save)
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TINY]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "step 4 (epoch 1)" in line and "could not be kept (step.pt: the disk is full)" in line
    assert (run / "checkpoints" / "step-00000003.pt").is_file()


def test_only_the_first_steps_that_are_left_out_are_kept(tmp_path, poison, monkeypatch, capsys):
    poison(*range(1, 6))
    monkeypatch.setattr("imixer.training.loop._MOST_DUMPS", 2)
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TINY, "--non_finite", "skip"]) == 0
    assert len(list((run / "nonfinite").iterdir())) == 2
    assert "2 such steps are kept in" in capsys.readouterr().err


def test_what_is_found_a_step_late_is_told_with_the_rate_of_its_step(tmp_path, poison, monkeypatch, capsys):
    """As where the host does not wait for a device."""
    poison(3)
    late = []
    gradient, skipped = TrainState.gradient, Guard.skipped

    def unnoticed(self, micro_batches, step):
        loss, must_skip = gradient(self, micro_batches, step)
        late.append(must_skip)
        return loss, False

    monkeypatch.setattr(TrainState, "gradient", unnoticed)
    monkeypatch.setattr(TrainState, "optimizer_step", lambda self, step: self._move_on(step))
    monkeypatch.setattr(Guard, "skipped", lambda self: bool(late and late[-1]) or skipped(self))
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TINY]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    (file,) = (run / "nonfinite").iterdir()
    step, _ = replay(str(file))
    config = load_config(run / "config.yaml")
    rates = TrainState(Fabric(accelerator="cpu", devices=1), config, nn.Linear(1, 1), 22)
    for number in range(3):
        rates._move_on(number)
    assert (step.step, step.lr) == (3, pytest.approx(rates.lr)) and f"learning rate {rates.lr:.3g}" in line


def test_training_stops_with_step_place_and_rate_before_the_weights_are_touched(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--optim.opt", "sgd", "--optim.lr", "1e25", "--schedule.warmup_lr", "1e25"]
    assert main(["train", "--out", str(run), *TINY, *flags]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    dump = next((run / "nonfinite").iterdir())
    for part in ("step 2 (epoch 1)", "blocks.0", "learning rate 1e+25", f"imixer replay {dump}", "--non_finite skip"):
        assert part in line, line
    saved = torch.load(run / "checkpoints" / "step-00000001.pt", weights_only=True)
    weights = [weight for name, weight in saved["model"].items() if not name.endswith(".v")]  # v is the forward's
    assert all(torch.isfinite(weight).all() for weight in weights)
    step, place = replay(str(dump))
    assert (step.step, step.lr) == (1, 1e25)
    assert place in line


def test_a_step_can_be_skipped_instead(tmp_path, capsys, poison):
    poison(4, 30)
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TINY, "--non_finite", "skip"]) == 0
    said = capsys.readouterr().err
    assert "step 5 (epoch 1) is not finite" in said
    assert "step 31 (epoch 2) is not finite" in said
    assert said.count("; skipped") == 2
    saved = torch.load(run / "checkpoints" / "step-00000044.pt", weights_only=True)
    assert all(math.isfinite(row["train_loss"]) for row in saved["rows"])


def test_a_step_of_weights_in_shards_is_skipped_and_not_looked_at_again(tmp_path, capsys, poison, monkeypatch):
    """As under fsdp, where no process has the weights."""
    poison(4)
    made = TrainState.__init__

    def in_shards(self, *args, **options):
        made(self, *args, **options)
        self.sharded = True

    monkeypatch.setattr(TrainState, "__init__", in_shards)
    monkeypatch.setattr("imixer.training.step_dump.StepDump.locate", lambda *args: pytest.fail("looked at again"))
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TINY, "--non_finite", "skip"]) == 0
    said = capsys.readouterr().err
    assert "step 5 (epoch 1) is not finite: its gradient is the first that is not" in said
    assert "; a step of weights in shards is not kept; skipped" in said
    assert not (run / "nonfinite").exists()


def test_a_stopped_run_goes_on_without_the_step(tmp_path, capsys, poison):
    poison(4, 5)  # the second: the same step, in the resumed run, to which the count goes on
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TINY]) == 2
    assert load_config(run / "config.yaml").non_finite == "stop"
    assert main(["train", "--resume", str(run), "--non_finite", "skip"]) == 0


def test_what_is_no_recorded_step_is_refused(tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(b"no")
    for name, part in (("nowhere.pt", "no file"), ("x.pt", "no recorded step")):
        assert main(["replay", str(tmp_path / name)]) == 2
        assert part in capsys.readouterr().err


SIZES = {"num_blocks": 2, "embed_dim": 16, "tokens_dim": 8, "num_classes": 4, "in_chans": 1}


def normed_by_batch():
    """A model with batch norms, its training, and a batch with one infinite pixel."""
    model = timm.create_model("imixer_t2_8", norm="batch", **SIZES)
    freeze(model, "last", "imixer_t2_8")  # so that norms of both kinds are there
    config = TrainConfig(
        model=ModelConfig(pretrained=True),
        schedule=ScheduleConfig(warmup_epochs=0),
        data=DataConfig(batch_size=4),
        finetune="last",
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    images = torch.randn(4, 1, 8, 8)
    images[0, 0, 0, 0] = math.inf
    return model, config, TrainState(fabric, config, model, 4), (images, torch.arange(4))


def kept(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_that_is_left_out_leaves_batch_norms_as_they_were_and_the_next_one_moves_them():
    model, _, state, (images, labels) = normed_by_batch()
    before = kept(model)
    _, must_skip = state.gradient([(images, labels)], 0)
    assert must_skip
    assert_unchanged(model, before)
    state.skip(0)
    _, must_skip = state.gradient([(torch.randn(4, 1, 8, 8), labels)], 1)
    assert not must_skip
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("blocks.1.") for name in moved)


def test_looking_for_the_place_leaves_every_buffer_and_mode_as_it_was():
    for options in ({"norm": "batch"}, {}, {"legacy": True}):
        model = timm.create_model("imixer_t2_8", **SIZES, **options)
        freeze(model, "last", "imixer_t2_8")
        _, config, state, (_, labels) = normed_by_batch()
        model.eval()
        before = kept(model)
        dump = dump_step(BuiltModel(model, "imixer_t2_8", SIZES, (1, 8, 8)), config, state.criterion, 0, 0.1, 0)
        assert dump.locate(model, [(torch.randn(4, 1, 8, 8), labels)]) is None
        assert_unchanged(model, before)
        assert not any(module.training for module in model.modules())


def test_a_dumped_step_holds_what_was_there_before_it_and_freezes_the_same_when_it_is_replayed(tmp_path):
    model, config, state, batch = normed_by_batch()
    before = kept(model)
    state.gradient([batch], 0)
    dump = dump_step(
        BuiltModel(model, "imixer_t2_8", SIZES | {"norm": "batch"}, (1, 8, 8)), config, state.criterion, 0, 0.1, 0
    )
    assert dump.locate(model, [batch]) == "the images"
    dump.write(tmp_path / "step.pt", model, [batch])
    weights = torch.load(tmp_path / "step.pt", weights_only=True)["weights"]
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    step, place = replay(str(tmp_path / "step.pt"))
    assert (step.finetune, place) == ("last", "the images")


@pytest.mark.parametrize("left_out", [True, False])
def test_where_the_optimizer_leaves_a_step_out_by_itself_a_flag_sets_batch_norms_back(left_out):
    """What a GPU does, which nobody waits for."""
    norm = nn.BatchNorm1d(3)
    statistics = RunningStatistics(norm)
    before = kept(norm)
    statistics.remember()
    norm(torch.full((4, 3), math.inf) if left_out else torch.randn(4, 3))
    statistics.restore(torch.tensor(left_out))
    assert torch.equal(norm.running_var, before["running_var"]) == left_out
    assert torch.isfinite(norm.running_mean).all() and int(norm.num_batches_tracked) == (not left_out)


def test_without_batch_norms_nothing_is_copied():
    statistics = RunningStatistics(timm.create_model("imixer_t2_8", **SIZES))
    statistics.remember()
    assert statistics._before == []


def test_a_long_row_of_steps_under_a_loss_scale_is_left_out_and_the_scale_falls():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    fabric.launch()
    model = nn.Linear(4, 3)
    state = TrainState(fabric, TrainConfig(precision="16"), model, steps_per_epoch=100)
    before, skipped = model.weight.detach().clone(), 0
    for step in range(24):
        _, must_skip = state.gradient([(torch.full((2, 4), math.inf), torch.arange(2))], step)
        skipped += must_skip
        (state.skip if must_skip else state.optimizer_step)(step)
    assert skipped == 4 and torch.equal(model.weight, before) and scaler.get_scale() == 2.0**-8
    _, must_skip = state.gradient([(torch.ones(2, 4), torch.arange(2))], 24)
    assert not must_skip
    state.optimizer_step(24)
    assert not torch.equal(model.weight, before)
