"""Recipes build on each other, give the paper's Table 5, and the fast ones cost what docs/recipes.md says."""

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from imixer import recipes as package
from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.implicit import fold
from imixer.recipes import find_recipe, load_recipe, recipes
from imixer.training.budget import duration, optimizer_cost
from imixer.training.model import build_model, forward_cost
from imixer.training.run.config import ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from imixer.training.run.parsing import build_config, expand_config_flags, parse, train_parser

DATA = ["cifar10", "cifar100", "stanford_cars", "food101", "imagenet"]
# Paper, Table 5: batch size, base learning rate, stochastic depth.
SIZES = {"s": (512, 5e-4, 0.1), "b": (256, 2.5e-4, 0.2), "l": (64, 6.25e-5, 0.3)}
CIFAR10_IMAGES = 50_000


parser = cache(train_parser)
models_on_meta = {}


def configured(*words):
    return build_config(parse(parser(), expand_config_flags(words)))


def on_meta(config):
    """The model of a configuration, without its weights: one for all recipes that have it."""
    described = repr((config.model, config.data.image_size))
    if described not in models_on_meta:
        with torch.device("meta"):
            built = build_model(config.model, config.data, native_size=None, in_chans=3, num_classes=10)
        models_on_meta[described] = built
    return models_on_meta[described]


def forward_macs(config):
    """Multiply-adds of one image's forward."""
    built = on_meta(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fold(built.model)(torch.empty(1, *built.input_size, device="meta"))
    return counter.get_total_flops() // 2


def training_macs(config):
    return 3 * forward_macs(config) * CIFAR10_IMAGES * config.epochs


@pytest.mark.parametrize(("kind", "size", "data"), list(product(["imixer", "mixer"], SIZES, DATA)))
def test_the_papers_recipes_are_table_5(kind, size, data):
    batch, lr, drop_path = SIZES[size]
    assert configured("--recipe", f"paper/{kind}_{size}16_{data}") == TrainConfig(
        data=DataConfig(
            name=data,
            image_size=224,
            batch_size=batch,
            workers=8,
            crop="resized",
            scale=(0.08, 1.0),
            ratio=(0.75, 1.3333333),
            crop_pct=0.875,
            hflip=0.5,
            auto_augment="rand-m9-mstd0.5-inc1",
            random_erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
            interpolation="random",
        ),
        model=ModelConfig(name=f"{kind}_{size}16_224", drop_path_rate=drop_path),
        optim=OptimConfig(opt="adamw", lr=lr, lr_batch=batch, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
        schedule=ScheduleConfig(sched="cosine", warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-6, cooldown_epochs=10),
        epochs=300,
        smoothing=0.1,
    )


@pytest.mark.parametrize(("kind", "size", "data"), list(product(["imixer", "mixer"], SIZES, DATA)))
def test_the_published_command_differs_from_table_5_in_what_docs_recipes_lists(kind, size, data):
    paper, published = (configured("--recipe", f"{family}/{kind}_{size}16_{data}") for family in ("paper", "published"))
    batch, lr, _ = SIZES[size]
    assert published == replace(
        paper,
        data=replace(paper.data, batch_size=4 * batch, erase="after_mixing"),
        optim=replace(paper.optim, lr_batch=4 * batch),
        schedule=replace(paper.schedule, sched_on_updates=False),
        accumulate=4,
        precision="16",
    )
    assert published.peak_lr == lr  # not scaled
    assert published.micro_batch == batch  # which are mixed with each other


def test_the_published_command_runs_on_four_devices_as_it_did():
    flags = ["--devices", "4", "--accumulate", "1"]
    config = configured("--recipe", "published/imixer_s16_cifar10", *flags)
    assert (config.data.batch_size, config.micro_batch, config.peak_lr) == (2048, 512, 5e-4)


def test_every_published_recipe_says_in_a_line_what_it_trains():
    lines = {name: line for name, line in recipes().items() if name.startswith("published/")}
    assert len(lines) == 30
    of_the_authors = {name for name, line in lines.items() if line.endswith("by the published training command.")}
    assert of_the_authors == {"published/imixer_s16_cifar10"}
    assert lines["published/mixer_b16_food101"] == (
        "MLP-Mixer-B/16 on Food-101, by the published training command, which is for iMixer-S on CIFAR-10."
    )


def test_every_recipe_is_described_by_a_whole_sentence():
    assert [name for name, line in recipes().items() if not line.endswith(".")] == []


def test_the_learning_rate_of_the_paper_follows_the_batch():
    assert configured("--recipe", "paper/imixer_s16_cifar10").peak_lr == 5e-4
    assert configured("--recipe", "paper/imixer_s16_cifar10", "--data.batch_size", "128").peak_lr == 1.25e-4


@pytest.mark.parametrize("name", list(recipes()))
def test_every_recipe_names_a_model_that_takes_its_options(name):
    config = configured("--recipe", name)
    built = on_meta(config)
    side = config.data.image_size or timm.get_pretrained_cfg(built.name).input_size[-1]
    assert built.model.stem.img_size == (side, side)
    dropped = [block.drop_prob for block in built.model.modules() if hasattr(block, "drop_prob")]
    assert max(dropped, default=0.0) == pytest.approx(config.model.drop_path_rate or 0.0)


@pytest.mark.parametrize(
    "recipe", ["cifar10/{}_quick", "fast/{}_cifar10", "paper/{}_s16_cifar10", "published/{}_s16_cifar10"]
)
def test_a_mixer_differs_from_its_imixer_in_the_model_only(recipe):
    imixer, mixer = (load_recipe(recipe.format(kind)) for kind in ("imixer", "mixer"))
    assert imixer["model"].pop("name") == "i" + mixer["model"].pop("name")
    assert imixer == mixer


@pytest.mark.parametrize("kind", ["imixer", "mixer"])
def test_the_fast_recipes_cost_a_tenth_of_the_papers(kind):
    paper, fast = (configured("--recipe", name) for name in (f"paper/{kind}_s16_cifar10", f"fast/{kind}_cifar10"))
    assert fast.schedule.cooldown_epochs == 0  # which `training_macs` leaves out of the paper's too
    assert training_macs(fast) <= 0.1 * training_macs(paper)

    page = (Path(__file__).parent.parent / "docs/recipes.md").read_text()
    for config, name in ((paper, f"paper/{kind}_s16_cifar10"), (fast, f"fast/{kind}_cifar10")):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        forward, training = f"{forward_macs(config) / 1e6:,.1f} M", f"{training_macs(config) / 1e15:.1f} P"
        assert f"| {forward} | {config.epochs} | {training} |" in row
    assert row.endswith(f"| {training_macs(fast) / training_macs(paper):.3f} |")


LAPTOP = ["imixer", "mixer", "stem_only", "imixer_flat", "imixer_plain", "imixer_deep"]


@pytest.mark.parametrize("kind", LAPTOP)
def test_the_laptop_recipes_cost_what_the_docs_say(kind):
    config = configured("--recipe", f"laptop/{kind}_cifar10")
    built = on_meta(config)
    cost = forward_cost(built)
    assert cost.total == forward_macs(config)
    steps_per_epoch = CIFAR10_IMAGES // config.data.batch_size
    lasts = duration(config, built, steps_per_epoch)
    page = (Path(__file__).parent.parent / "docs/recipes.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `laptop/{kind}_cifar10`"))
    share, newton = (
        cost.convolutions / cost.total,
        optimizer_cost(built, "muon") / (3 * config.data.batch_size * cost.total),
    )
    assert row.endswith(
        f"| {sum(p.numel() for p in built.model.parameters()):,} | {cost.total / 1e6:.1f} M | {share:.1%} "
        f"| {lasts.steps / steps_per_epoch:.1f} | {newton:.1%} |"
    )


def test_the_laptop_imixer_is_no_convolutional_net_and_its_mixer_costs_the_same():
    imixer, mixer = (forward_cost(on_meta(configured("--recipe", f"laptop/{k}_cifar10"))) for k in ("imixer", "mixer"))
    assert imixer.total == mixer.total
    assert imixer.convolutions == mixer.convolutions <= 0.25 * imixer.total
    ours, theirs = (load_recipe(f"laptop/{kind}_cifar10") for kind in ("imixer", "mixer"))
    assert ours.pop("model").keys() <= theirs.pop("model").keys()
    assert ours == theirs


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of recipes of the test's own."""

    def write(**files):
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))

    monkeypatch.setattr(package, "_FOLDER", tmp_path)
    return write


def test_bases_come_first_in_order_and_the_files_own_settings_win(shelf):
    shelf(
        _a={"data": {"name": "a", "crop": "pad", "hflip": 0.1}, "epochs": 1, "optim": {"lr": 1.0}},
        _b={"base": ["_a"], "data": {"crop": "center", "scale": [0.5, 1.0]}, "optim": {"betas": [0.8, 0.9]}},
        _c={"data": {"name": "c"}, "seed": 3},
        mine={"base": ["_b", "_c"], "data": {"hflip": 0.3}, "epochs": 9},
    )
    assert load_recipe("mine") == {
        "data": {"name": "c", "crop": "center", "hflip": 0.3, "scale": [0.5, 1.0]},
        "optim": {"lr": 1.0, "betas": [0.8, 0.9]},
        "epochs": 9,
        "seed": 3,
    }


def test_parts_are_no_recipes(shelf):
    shelf(_part={"epochs": 4}, whole={"base": ["_part"]})
    assert list(recipes()) == ["whole"]
    with pytest.raises(InputError, match="no recipe '_part'"):
        find_recipe("_part")


def test_files_win_over_a_recipe_with_bases_and_flags_over_both(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {hflip: 0.0}\nsmoothing: 0.2\n")
    words = ["--smoothing", "0.3", "--config", str(file), "--recipe", "paper/mixer_s16_food101", "--optim.eps", "1e-6"]
    config = configured(*words)
    assert (config.data.name, config.data.hflip, config.data.mixup) == ("food101", 0.0, 0.8)
    assert (config.smoothing, config.optim.eps, config.optim.lr) == (0.3, 1e-6, 5e-4)


def test_where_no_data_are_named_the_recipe_is_digits(tmp_path):
    assert configured() == configured("--recipe", "digits")
    assert configured("--seed", "3") == replace(configured("--recipe", "digits"), seed=3)
    file = tmp_path / "mine.yaml"
    file.write_text("smoothing: 0.2")
    assert configured("--config", str(file)) == replace(configured(), smoothing=0.2)


@pytest.mark.parametrize("data", ["photos", "cifar10"])
def test_other_data_do_not_inherit_what_suits_the_digits(tmp_path, data):
    general = TrainConfig(data=DataConfig(name=data))
    assert configured("--data.name", data) == configured(f"--data.name={data}") == general
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: {{name: {data}}}")
    assert configured("--config", str(file)) == general


def test_the_default_run_costs_at_most_a_fifth_of_a_teramac():
    config = configured()
    built = build_model(config.model, config.data, native_size=(8, 8), in_chans=1, num_classes=10)
    steps = config.epochs * (1437 // config.data.batch_size)
    macs = steps * (3 * forward_cost(built).total * config.data.batch_size + optimizer_cost(built, config.optim.opt))
    assert macs <= 0.2e12
    page = (Path(__file__).parent.parent / "docs/results/digits.md").read_text()
    assert f"{sum(p.numel() for p in built.model.parameters()):,} parameters" in page
    assert f"{macs / 1e12:.2f} T" in page


@pytest.mark.parametrize("name", ["mixer_t2_8", "imixer_t2_8", "resnet18"])
def test_any_model_can_be_named_over_the_default(name):
    config = configured("--model.name", name)
    assert build_model(config.model, config.data, native_size=(8, 8), in_chans=1, num_classes=10).name == name


def test_epochs_win_over_the_budget_of_a_recipe_and_warm_up_over_its_share(tmp_path):
    recipe = ["--recipe", "laptop/imixer_cifar10"]
    flags = configured(*recipe, "--epochs", "5", "--schedule.warmup_epochs=2")
    assert (flags.epochs, flags.budget) == (5, None)
    assert (flags.schedule.warmup_epochs, flags.schedule.warmup_share) == (2, None)
    file = tmp_path / "mine.yaml"
    file.write_text("{epochs: 5, schedule: {warmup_epochs: 2}}")
    assert configured(*recipe, "--config", str(file)) == flags
    again = configured(*recipe, "--config", str(file), "--budget", "1P")
    assert (again.budget, again.schedule.warmup_share) == ("1P", None)


def test_a_runs_own_file_has_both_epochs_and_budget_and_means_the_budget(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("{data: {name: x}, epochs: 5, budget: 0.5P}")
    assert configured("--config", str(file)).budget == "0.5P"
    assert configured("--config", str(file), "--epochs", "6", "--budget", "null").budget is None
    assert configured("--config", str(file), "--epochs", "6").budget is None


@pytest.mark.parametrize("name", ["paper/_table5", "paper/imixer_s16_cifar", "../recipes/digits", ""])
def test_what_is_no_recipe_is_refused_in_one_line(name, capsys):
    assert main(["train", "--recipe", name]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"imixer: no recipe {name!r}") and line.count("\n") == 1
