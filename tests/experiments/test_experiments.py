"""Every experiment at every scale: valid configurations, and at the paper's scale the paper's."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from lightning.fabric.utilities.seed import seed_everything

from imixer.experiments.comparison import MARGIN
from imixer.experiments.complexity import model_complexity
from imixer.experiments.paper import PAPER_TABLE_4
from imixer.experiments.registry import EXPERIMENTS, experiments_at
from imixer.experiments.scales import DATA_SETS, SCALES, SIZES
from imixer.recipes import load_recipe
from imixer.sweep.spec import build_sweep
from imixer.training.run.config import ModelConfig
from imixer.training.run.parsing import build_config, expand_config_flags, parse, train_parser

TRAINED = [name for name in EXPERIMENTS if name != "anomaly"]  # which has no rows
WITH_TABLES = [name for name, scale in SCALES.items() if not scale.only_own]
EVERYWHERE = [(each.name, scale) for scale in SCALES for each in experiments_at(scale) if each.name in TRAINED]


@cache
def rows(name, scale):
    return [row for row in EXPERIMENTS[name].rows(SCALES[scale]) if row.settings]


def smallest_scale(name):
    return EXPERIMENTS[name].scale or "smoke"


@cache
def configs(name, scale):
    sweep = build_sweep({"cases": {row.name: row.settings for row in rows(name, scale)}})
    return {cell.name: cell.config for cell in sweep.cells}


def recipe(name):
    return build_config(parse(train_parser(), expand_config_flags(["--recipe", name])))


def changed(config, **model):
    return replace(config, model=replace(config.model, **model))


@pytest.mark.parametrize(("name", "scale"), EVERYWHERE)
def test_every_row_is_a_valid_configuration_with_a_baseline(name, scale):
    found = configs(name, scale)
    assert list(found) == [row.name for row in rows(name, scale)]
    names = {row.name: row for row in rows(name, scale)}
    for row in rows(name, scale):
        assert row.baseline is None or names[row.baseline].baseline is None
        assert list(row.labels) == list(rows(name, scale)[0].labels)
    assert len({tuple(row.labels.values()) for row in rows(name, scale)}) == len(names)


@pytest.mark.parametrize("name", TRAINED)
def test_every_row_is_a_model_that_can_be_built(name):
    for config in configs(name, smallest_scale(name)).values():
        found = model_complexity(config, 3, 10)
        assert found.parameters > 0
        assert (found.multiply_adds is None) == (config.model.solver is not None)


def test_paper_scale_table_1_trains_the_papers_recipes():
    found = configs("table1", "paper")
    for size in SIZES:
        s = size.lower()
        assert found[f"imixer-{s}"] == recipe(f"paper/imixer_{s}16_cifar10")
        mixer = recipe(f"paper/mixer_{s}16_cifar10")
        assert found[f"mixer-{s}"] == mixer
        ratio = SCALES["paper"].matching_ratio(size)
        assert found[f"mixer-{s}-matched"] == changed(mixer, kwargs={"mlp_ratio": [ratio, 4.0]})


def test_paper_scale_tables_2_and_3_change_what_they_vary_only():
    default = recipe("paper/imixer_s16_cifar10")
    for table, field, named in (("table2", "hidden_ratio", 2.0), ("table3", "norm", "spectral")):
        found = configs(table, "paper")
        assert len(found) == (12 if table == "table2" else 9)
        for row, config in found.items():
            value, n = row.split("-n=")
            value = float(value.removeprefix("h_r=")) if field == "hidden_ratio" else value
            own = {} if value == named else {field: value}
            own |= {} if n == "2" else {"n_iter": int(n)}
            assert config == changed(default, **own), row


def test_paper_scale_table_4_trains_the_papers_recipes():
    found = configs("table4", "paper")
    assert len(found) == 8
    for row, config in found.items():
        model, _, data = row.partition("-")
        assert config == recipe(f"paper/{model}_s16_{data}")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("depth", [{"num_layers": 4}, {"num_layers": 5}]),
        ("activations", [{"act_layer": [act, act]} for act in ("relu", "silu", "tanh", "softplus")]),
        ("tied", [{"tied": True}]),
        (
            "solver",
            [{"solver": s, "gradient": "implicit", "on_failure": "warn"} for s in ("picard", "anderson")],
        ),
        ("guarantee", [{"coeff": "auto"}, {"coeff": "auto", "act_layer": ["gelu_1lip", "gelu_1lip"]}]),
        ("legacy", [{"legacy": True}]),
        (
            "ceiling",
            [
                *({"coeff": c} for c in (0.3, 0.5, 0.7, 0.99, 2.0)),
                *({"n_power_iterations": n} for n in (1, 2, 4, 16)),
            ],
        ),
        (
            "normalisations",
            [
                {"sigma": "exact"},
                {"sigma": "exact", "scaling": "hard"},
                {"detach_sigma": True},
                {"sigma": "row_norm"},
                {"norm": "orthogonal"},
            ],
        ),
    ],
)
def test_paper_scale_beyond_the_paper_changes_one_thing_of_its_imixer(name, changes):
    default = recipe("paper/imixer_s16_cifar10")
    assert list(configs(name, "paper").values()) == [default, *(changed(default, **change) for change in changes)]


def test_the_ceilings_that_guarantee_are_as_the_table_says():
    from imixer.implicit import ceiling
    from imixer.models.activations import GELU_SLOPE

    words = [row.labels["ceiling c, activation"] for row in rows("guarantee", "smoke")]
    assert words[1] == f"auto ({ceiling([GELU_SLOPE, GELU_SLOPE]):.3f}), gelu"
    assert words[2] == f"auto ({ceiling([1.0, 1.0]):.3g}), gelu / {GELU_SLOPE:.3f}"


@pytest.mark.parametrize("scale", [scale for scale in WITH_TABLES if scale != "gpu"])  # whose models are the paper's
def test_the_matched_mixer_has_the_imixers_multiply_adds(scale):
    found = configs("table1", scale)
    for size in ("s", "b"):
        imixer, mixer, matched = (
            model_complexity(found[name], 3, 10).multiply_adds
            for name in (f"imixer-{size}", f"mixer-{size}", f"mixer-{size}-matched")
        )
        assert mixer < 0.9 * imixer
        assert matched == pytest.approx(imixer, rel=2e-4)  # the width is a whole number


def test_the_scale_gpu_has_the_papers_models():
    for name in ("table1", "table2", "table3"):
        models = ({row: config.model for row, config in configs(name, scale).items()} for scale in ("gpu", "paper"))
        assert next(models) == next(models)


def test_costs_are_the_papers():
    found = configs("table1", "paper")
    parameters = {size: model_complexity(found[f"imixer-{size}"], 3, 10).parameters for size in "sbl"}
    assert parameters == {"s": 20_123_690, "b": 66_210_874, "l": 232_384_106}


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_a_scale_knows_its_models_sizes(scale):
    from imixer.training.model import build_model

    for config, size in ((configs("table1", scale)[f"imixer-{size.lower()}"], size) for size in SIZES):
        model = build_model(config.model, config.data, native_size=None, in_chans=3, num_classes=10).model
        assert model.embed_dim == SCALES[scale].embed_dim[size]
        assert model.stem.img_size == (SCALES[scale].image_size,) * 2
        assert model.stem.patch_size == (SCALES[scale].patch_size,) * 2
        words = f"{len(model.blocks)} blocks, {SCALES[scale].patch_size}x{SCALES[scale].patch_size} patches"
        assert words in SCALES[scale].summary and f"{model.embed_dim}" in SCALES[scale].summary


def test_experiments_share_the_papers_imixer():
    """So that it is trained once."""
    for scale in WITH_TABLES:
        default = configs("table1", scale)["imixer-s"]
        for name in TRAINED:
            if name != "table4" and not name.startswith(("fig", "laptop", "segmentation")):
                assert default in configs(name, scale).values(), (name, scale)


@pytest.mark.parametrize("scale", WITH_TABLES)
def test_figures_3_5_and_6_take_their_models_from_table_2(scale):
    table = configs("table2", scale)
    expected = [table[f"h_r=2-n={n}"] for n in (1, 2, 4)]
    for name in ("fig3", "fig5", "fig6"):
        assert list(configs(name, scale).values()) == expected
        assert [(config.model.n_iter or 2) for config in expected] == [1, 2, 4]
        assert {row.data for row in rows(name, scale)} == {SCALES[scale].data}


@pytest.mark.parametrize("scale", WITH_TABLES)
def test_figure_7_is_of_imagenet_where_the_scale_has_it(scale):
    ((name, config),) = configs("fig7", scale).items()
    assert name == "n=4" and config.model.n_iter == 4
    if scale == "paper":
        assert config == changed(recipe("paper/imixer_s16_imagenet"), n_iter=4)
        assert rows("fig7", scale)[0].data == "imagenet"
        asked = replace(SCALES[scale], data_given=True)  # --data cifar10, which is the default of the others
        assert [row.data for row in EXPERIMENTS["fig7"].rows(asked)] == ["cifar10"]
    else:
        assert config == configs("table2", scale)["h_r=2-n=4"]


def test_images_of_many_sizes_are_not_kept_on_the_device():
    found = configs("table4", "gpu")
    assert {row.partition("-")[2]: config.data.pipeline for row, config in found.items()} == {
        "cifar100": "device",
        "stanford_cars": "timm",
        "food101": "timm",
    }
    assert isinstance(found["mixer-food101"].model, ModelConfig)


@pytest.mark.parametrize("name", TRAINED)
def test_rows_are_paired_if_and_only_if_a_seed_gives_them_the_same_weights(name):
    from imixer.training.model import build_model

    @cache
    def drawn(row):
        config = found[row]
        seed_everything(3, verbose=False)
        built = build_model(config.model, config.data, native_size=None, in_chans=1, num_classes=10)
        return {name: value for name, value in built.model.named_parameters() if value.std() > 0}

    found = configs(name, smallest_scale(name))
    for row in rows(name, smallest_scale(name)):
        if row.baseline:
            own, other = drawn(row.name), drawn(row.baseline)
            same = own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
            said = (
                model_complexity(found[row.name], 3, 10).seeded_parameters
                == model_complexity(found[row.baseline], 3, 10).seeded_parameters
            )
            assert said == same, row.name


def test_every_experiment_names_its_margin_beforehand():
    for experiment in EXPERIMENTS.values():
        assert experiment.margin == (MARGIN if experiment.measured is None else 1.0), experiment.name


def test_only_imagenet_has_a_single_trial_in_table_4():
    trials = {row.data: row.trials for row in EXPERIMENTS["table4"].rows(SCALES["paper"])}
    assert trials == {"cifar100": None, "stanford_cars": None, "food101": None, "imagenet": 1}


# recipes have the data in their name at the scales gpu and paper only
OF_ANY_DATA = [
    *product(["table1", "table2", "table3"], ["smoke", "paper"], DATA_SETS),
    *product(["table1"], ["cpu", "laptop", "gpu"], ["digits", "imagenet"]),
]


@pytest.mark.parametrize(("name", "scale", "data"), OF_ANY_DATA)
def test_tables_1_to_3_can_be_asked_of_any_data_set(name, scale, data):
    found = EXPERIMENTS[name].rows(replace(SCALES[scale], data=data))
    assert {row.data for row in found} == {data}
    assert {row.settings["data.name"] for row in found} == {data}
    assert {row.name: row.settings["model.name"] for row in found} == {
        row.name: row.settings["model.name"] for row in EXPERIMENTS[name].rows(SCALES[scale])
    }
    reported = {row.paper for row in found if row.paper}
    if data not in ("digits", "cifar10"):
        assert reported == {
            paper
            for key, paper in PAPER_TABLE_4.items()
            if key in [(data, "imixer")] + [(data, "mixer")] * (name == "table1")
        }


def test_data_sets_are_those_that_training_knows():
    from imixer.data.sources.torchvision_sets import SETS

    assert set(DATA_SETS) == {"digits", *SETS}


def test_the_pages_say_what_the_paper_leaves_open():
    notes = " ".join(EXPERIMENTS["table3"].notes)
    assert "where BatchNorm stood" in notes and "n = 4 at a smaller batch" in notes


def test_the_pieces_differ_from_the_recipe_in_what_the_table_names():
    recipe, *pieces = rows("laptop_pieces", "laptop")
    for row in pieces:
        differing = {key for key in row.settings if row.settings[key] != recipe.settings.get(key)}
        assert differing and row.settings.keys() >= recipe.settings.keys()
        assert len({key.partition(".")[0] for key in differing}) == 1, row.name


def test_the_laptop_controls_have_the_recipes_budget_and_data():
    recipe, *controls = rows("laptop", "laptop")
    for row in controls:
        assert {key: value for key, value in row.settings.items() if not key.startswith("model.")} == {
            key: value for key, value in recipe.settings.items() if not key.startswith("model.")
        }


def test_the_baselines_of_segmentation_have_the_recipes_multiply_adds():
    found = configs("segmentation", "scenes")
    costs = {name: model_complexity(config, 3, 11).multiply_adds for name, config in found.items()}
    assert costs["mixer"] == costs["imixer"] and costs["unet"] == pytest.approx(costs["imixer"], rel=0.01)
    assert {(config.task, config.epochs, config.precision) for config in found.values()} == {("segment", 12, "bf16")}
    assert (found["unet"].segment.head, found["unet"].segment.levels) == ("linear", [0])


def test_what_varies_the_inverse_of_a_segmentation_shares_weights_where_it_is_paired():
    found = configs("segmentation_inverse", "scenes")
    shapes = {name: model_complexity(config, 3, 11).seeded_parameters for name, config in found.items()}
    paired = {name for name, shape in shapes.items() if shape == shapes["imixer"]}
    assert paired == {"imixer", "n=0", "n=2", "n=4", "solved"} and len(found) == 10


def test_the_words_for_the_laptop_models_are_those_of_their_recipe():
    model = load_recipe("laptop/imixer_cifar10")["model"]
    blocks, widths = (f"{a}, {b} and {c}" for a, b, c in (model["num_blocks"], model["embed_dim"]))
    words = f"a {model['stem']} stem, {blocks} blocks of {widths} channels on 16x16, 8x8 and 4x4 tokens"
    assert 32 // model["patch_size"] == 16
    inverse = f"n = {model['n_iter']}, h_r = {model['hidden_ratio']}"
    for name in ("laptop", "laptop_pieces"):
        assert EXPERIMENTS[name].models == f"{words}, {inverse}"
