"""Normalisations, dropout inside F, decay and step: as options of the model, by which it trains, loads and ships."""

import copy
import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn

import imixer.models  # registers the models
from imixer.errors import InputError
from imixer.implicit import NormalizedLinear, SpectralLinear, ceiling, certify, exact_sigma, fold
from imixer.implicit.contraction import Norm
from imixer.implicit.solution import Policy
from imixer.implicit.spectral import Scaling, Sigma
from imixer.inverse_options import OPTIONS, InverseOptions, documentation
from imixer.models import IMLP, IMixer, IMixerBlock
from imixer.models.activations import GELU_SLOPE
from imixer.training.monitor import convergence
from imixer.training.run.config import ModelConfig
from imixer.training.run.parsing import train_parser

NORMALISATIONS = [
    {"sigma": "exact"},
    {"sigma": "row_norm"},
    {"scaling": "hard"},
    {"detach_sigma": True},
    {"norm": "orthogonal"},
]
FLOW = {"decay": 0.3, "step": 0.5}
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def normalisations(test):
    return pytest.mark.parametrize("kwargs", NORMALISATIONS, ids=lambda kwargs: "-".join(map(str, kwargs.values())))(
        test
    )


def small(**kwargs) -> imixer.models.IMixer:
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", **{"num_classes": 10, "num_blocks": 2, "embed_dim": 32, **kwargs})
    nn.init.normal_(model.head.weight, std=0.1)
    with torch.no_grad():
        for layer in held(model):
            layer.weight.mul_(4)
            layer.bias.normal_()
            if isinstance(layer, SpectralLinear):
                layer.warm_up()
    return model


def held(model: nn.Module) -> list[NormalizedLinear]:
    return [m for m in model.modules() if isinstance(m, NormalizedLinear)]


def gradients(model: nn.Module, forward=None, seed: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model.zero_grad()
    (model if forward is None else forward)(IMAGES).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(a, b, tolerance=1e-5):
    scale = max(g.norm() for g in b.values())
    for name in b:
        assert (a[name] - b[name]).norm() <= tolerance * scale, name


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@normalisations
def test_normalisations_train_a_step_and_fold(kwargs, tied):
    model = small(**kwargs, tied=tied, coeff="auto").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = model(IMAGES).square().mean()
    before.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.norm() > 0, name
    optimizer.step()
    assert model(IMAGES).square().mean() < before
    folded = fold(model)
    assert not held(folded)
    torch.testing.assert_close(folded(IMAGES), model.eval()(IMAGES), rtol=1e-5, atol=1e-6)
    F = model.blocks[0].mlp_tokens.contraction
    assert certify(F, [GELU_SLOPE] * 2, torch.randn(4, 16)).verdict == "guaranteed"


@normalisations
def test_what_the_monitor_says_of_a_block_is_what_its_layers_hold(kwargs):
    model = small(**kwargs).eval()
    for block, row in zip(model.blocks, convergence(model, IMAGES), strict=True):
        norms = [float(exact_sigma(W)) for W in block.mlp_tokens.contraction.weights()[:2]]
        true = norms[0] * norms[1] * GELU_SLOPE**2
        assert row["bound"] >= true * (1 - 1e-3)
        assert row["bound"] == pytest.approx(true, rel=1e-2) or kwargs.get("sigma") == "row_norm"


@pytest.mark.parametrize("kwargs", [*NORMALISATIONS, FLOW, {"inner_drop_rate": 0.4}], ids=str)
def test_a_saved_model_remembers_its_options_and_traces(tmp_path, kwargs):
    model = small(**kwargs).eval()
    settings = {"num_classes": 10, "num_blocks": 2, "embed_dim": 32}
    save_for_hf(model, tmp_path, model_args=settings | kwargs, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(IMAGES), model(IMAGES))


@pytest.mark.parametrize("kwargs", [{"sigma": "exact", "scaling": "hard"}, {"norm": "orthogonal"}, FLOW], ids=str)
def test_the_folded_model_scripts_and_exports(tmp_path, kwargs):
    """However the matrices were normalised, they are plain ones by then."""
    from imixer.models.export import export_torch

    model = small(**kwargs, inner_drop_rate=0.4).eval()
    torch.testing.assert_close(torch.jit.script(model)(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    assert export_torch(model, tmp_path / "m.pt2")["max_abs_diff"] < 1e-4


def test_onnx_has_the_step_and_the_orthogonal_matrices(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from imixer.models.export import export_onnx

    model = small(norm="orthogonal", **FLOW, inner_drop_rate=0.3)
    assert export_onnx(model, tmp_path / "m.onnx")["max_abs_diff"] < 1e-4


def test_every_option_of_the_inverse_is_defined_once():
    """The constructors, the configuration and the docs have the names, defaults and texts of `InverseOptions`."""
    defaults = {option.name: option.default for option in fields(InverseOptions)}
    assert set(OPTIONS) == set(defaults) and all(documentation().values())
    for cls in (IMLP, IMixer):
        shown = inspect.signature(cls).parameters
        assert {name: shown[name].default for name in OPTIONS} == defaults
        assert all(shown[name].annotation is not inspect.Parameter.empty for name in OPTIONS)
    assert {option.name: option.default for option in fields(ModelConfig) if option.name in defaults} == dict.fromkeys(
        OPTIONS
    )
    given = IMLP(6, 8).inversion
    assert all(getattr(given, option.name) == option.default for option in fields(given))


def test_the_options_choices_are_those_of_the_layers():
    types = get_type_hints(InverseOptions)
    for name, theirs in {"norm": Norm, "sigma": Sigma, "scaling": Scaling, "on_failure": Policy | None}.items():
        assert types[name] == theirs


def test_the_docs_table_of_hyperparameters_has_every_option_and_its_default():
    text = (Path(__file__).parents[2] / "docs/models.md").read_text()
    text = text[text.index("## Hyperparameters") : text.index("## Depth")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    table = {row[0].strip("`"): row[2].strip("`") for row in rows if len(row) == 4}
    shown = {None: "none", False: "false", True: "true"}
    for option in fields(InverseOptions):
        value = option.default
        told = shown[value] if value is None or isinstance(value, bool) else value
        assert table[option.name] == str(told) or float(table[option.name]) == told, option.name


def test_the_help_tells_of_every_option_what_its_definition_says(capsys):
    train_parser().print_help()
    told = " ".join(capsys.readouterr().out.split())
    for name, text in documentation().items():
        assert f"--model.{name}" in told and text in told, name


def test_the_command_lines_options_are_the_models():
    options = {"sigma": "exact", "scaling": "hard", "detach_sigma": True, "inner_drop_rate": 0.1, **FLOW}
    assert ModelConfig(**options).overrides() == options
    block = small(**ModelConfig(**options).overrides()).blocks[0]
    layer = block.mlp_tokens.contraction.fc1
    assert (layer.estimator, layer.scaling, layer.detach_sigma) == ("exact", "hard", True)
    assert (block.mlp_tokens.contraction.drop_rate, block.decay, block.step) == (0.1, 0.3, 0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"decay": -0.1}, "decay is -0.1"),
        ({"decay": float("nan")}, "decay is nan"),
        ({"step": 0.0}, "step is 0.0"),
        ({"step": float("inf")}, "step is inf"),
        ({"step": 2.0, "decay": 1.0}, "step x decay is 2"),
        ({"inner_drop_rate": 1.0}, "inner_drop_rate is 1.0"),
        ({"inner_drop_rate": -0.1, "num_layers": 2}, "inner_drop_rate is -0.1"),
        ({"inner_drop_rate": 0.1, "legacy": True}, "legacy .* inner_drop_rate is 0.1"),
        ({"norm": "none", "sigma": "exact"}, "sigma is exact.*norm is none"),
        ({"norm": "layer"}, "spectral, orthogonal, none or batch"),
        ({"norm": "batch", "coeff": "auto"}, "coeff is auto.*norm is batch"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kwargs, message):
    with pytest.raises((ValueError, InputError), match=message):
        small(**kwargs)


# --- dropout inside F -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_iter", [1, 2, 3])
def test_with_its_masks_an_imlp_is_algorithm_2(n_iter):
    """2 n + 2 calls of dropout: after both activations of every iteration, the last activation, and the output."""
    torch.manual_seed(0)
    mlp = IMLP(6, 8, n_iter=n_iter, inner_drop_rate=0.5, drop=0.5, norm="none", dtype=torch.float64).train()
    F, v = mlp.contraction, torch.randn(4, 6, dtype=torch.float64)
    calls = []

    def drop(x, mask):
        calls.append(mask)
        return x * mask

    torch.manual_seed(3)
    found = mlp(v)
    torch.manual_seed(3)
    x_in = mlp.fc_in(v)
    inner, last, output = F.masks(x_in), mlp.drop1(torch.ones_like(x_in)), mlp.drop2(torch.ones_like(v))
    x = x_in
    for _ in range(n_iter):
        x = F.fc1(drop(mlp.act(x), inner[0]))
        x = F.fc2(drop(mlp.act(x), inner[1])) + x_in
    expected = drop(mlp.fc_out(drop(mlp.act(x), last)), output)
    torch.testing.assert_close(found, expected)
    assert len(calls) == 2 * n_iter + 2


def test_evaluation_drops_nothing_and_neither_does_the_default():
    dropping, plain = small(inner_drop_rate=0.5), small()
    assert torch.equal(dropping.eval()(IMAGES), plain.eval()(IMAGES))
    assert torch.equal(small(inner_drop_rate=0.0).train()(IMAGES), plain.train()(IMAGES))
    assert not torch.allclose(dropping.train()(IMAGES), plain(IMAGES))
    assert not torch.allclose(dropping(IMAGES), dropping(IMAGES))  # a mask for each forward


@pytest.mark.parametrize("gradient", ["recompute", "implicit"])
def test_every_gradient_is_of_the_map_that_was_iterated(gradient):
    options = dict(inner_drop_rate=0.3, coeff=0.6, n_iter=60)
    other = small(**options, gradient=gradient, tolerance=1e-6, max_steps=200).train()
    assert_same_gradients(gradients(other), gradients(small(**options).train()), 1e-4)


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_solvers_to_a_tolerance_find_the_fixed_point_of_the_masked_map(solver):
    many, solved = (
        small(inner_drop_rate=0.3, coeff=0.6, n_iter=80),
        small(inner_drop_rate=0.3, coeff=0.6, solver=solver),
    )
    outputs = []
    for model in (many, solved):
        torch.manual_seed(7)
        outputs.append(model.train()(IMAGES))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_layers", [3, 4])
def test_a_checkpointed_replay_drops_the_same(num_layers):
    options = dict(inner_drop_rate=0.4, num_layers=num_layers, proj_drop_rate=0.1)
    plain, checkpointed = small(**options).train(), small(**options).train()
    checkpointed.set_grad_checkpointing()
    assert_same_gradients(gradients(checkpointed), gradients(plain))


def test_a_compiled_and_checkpointed_model_differentiates_the_map_that_it_applied():
    """By central differences along the gradient, with one seed: a backward with other masks would miss them."""
    # Without power iterations, which would move the map from one forward to the next.
    model = small(inner_drop_rate=0.4, n_power_iterations=0, num_blocks=1).train().double()
    model.set_grad_checkpointing()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    bias = model.blocks[0].mlp_tokens.contraction.fc1.bias

    def loss():
        torch.manual_seed(11)
        return compiled(IMAGES.double()).square().mean()

    (slope,) = torch.autograd.grad(loss(), bias)
    eps = 1e-5 / slope.norm()
    with torch.no_grad():
        bias.add_(eps * slope)
    up = loss().item()
    with torch.no_grad():
        bias.sub_(2 * eps * slope)
    assert (up - loss().item()) / (2 * float(eps)) == pytest.approx(float(slope.square().sum()), rel=1e-4)


def test_batch_normalisation_may_drop_inside():
    model = small(norm="batch", inner_drop_rate=0.2).train()
    assert all(g.isfinite().all() for g in gradients(model).values())


def test_the_automatic_ceiling_allows_for_the_dropout():
    coeff = small(coeff="auto", inner_drop_rate=0.2).blocks[0].mlp_tokens.contraction.fc1.coeff
    assert coeff == pytest.approx(0.8 * ceiling([GELU_SLOPE, GELU_SLOPE]))


def test_half_precision_keeps_its_dtype_under_dropout():
    model = small(inner_drop_rate=0.2).train().bfloat16()
    assert model(IMAGES.bfloat16()).dtype == torch.bfloat16


# --- decay and step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "step"), [(0.0, 0.25), (0.5, 1.0), (1.0, 1.0), (0.5, 1.5)])
def test_equations_12_and_14_a_block_takes_a_step_of_the_visible_neurons(decay, step):
    torch.manual_seed(0)
    block = IMixerBlock(12, 10, decay=decay, step=step).double().eval()
    v = torch.randn(2, 10, 12, dtype=torch.float64)
    velocity = block.mlp_tokens(block.norm1(v).transpose(1, 2)).transpose(1, 2) - decay * v
    moved = v + step * velocity
    torch.testing.assert_close(block(v), moved + block.mlp_channels(block.norm2(moved)))


def test_the_papers_step_and_decay_are_the_default_bit_for_bit():
    from timm.models.mlp_mixer import MixerBlock

    block = small().blocks[0].eval()
    v = torch.randn(2, 16, 32)
    assert (block.decay, block.step) == (0.0, 1.0)
    assert torch.equal(block(v), MixerBlock.forward(block, v))


def test_smaller_steps_over_more_blocks_follow_the_flow():
    torch.manual_seed(0)
    errors = []
    block = IMixerBlock(12, 10, decay=0.2).double().eval()
    nn.init.zeros_(block.mlp_channels.fc2.weight), nn.init.zeros_(block.mlp_channels.fc2.bias)
    for n in (1, 4, 16, 256):
        v, block.step = torch.ones(1, 10, 12, dtype=torch.float64).cumsum(1), 1 / n
        for _ in range(n):
            v = block(v)
        errors.append(v)
    distances = [(v - errors[-1]).norm().item() for v in errors[:-1]]
    assert distances[0] > 3 * distances[1] > 9 * distances[2] > 0


# --- as timm's mixer --------------------------------------------------------------------------------------------------

AS_TIMM = [
    {"num_classes": 0},
    {"num_classes": 0, "global_pool": ""},
    {"global_pool": ""},
    {"in_chans": 1},
    {"drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.1},
    {"features_only": True},
    {"features_only": True, "num_classes": 0},
    {"features_only": True, "num_classes": 0, "global_pool": ""},
    {"features_only": True, "num_classes": 0, "out_indices": 2},
    {"features_only": True, "num_classes": 0, "out_indices": (0,)},
    {"features_only": True, "num_classes": 0, "out_indices": (-1,)},
    {"features_only": True, "num_classes": 0, "out_indices": [1, 3], "in_chans": 1},
    {"features_only": True, "num_classes": 0, "drop_path_rate": 0.1},
    {"features_only": True, "feature_cls": "hook"},
    {"features_only": True, "feature_cls": "fx"},
    {"features_only": True, "feature_cls": "fx", "num_classes": 0},
    {"pretrained_cfg_overlay": {"num_classes": 7}},
]


@pytest.mark.parametrize("kwargs", AS_TIMM, ids=str)
def test_create_model_takes_what_it_takes_for_timms_mixer(kwargs):
    x = torch.randn(2, kwargs.get("in_chans", 3), 8, 8)
    shapes = []
    for name in ("mixer_t2_8", "imixer_t2_8"):
        model = timm.create_model(name, **kwargs)
        for training in (True, False):
            out = model.train(training)(x)
            shapes.append([tuple(o.shape) for o in out] if isinstance(out, (list, tuple)) else tuple(out.shape))
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]


def test_a_traced_model_goes_on_with_its_power_iteration_in_training():
    model = small().train()
    for layer in held(model):
        layer.v.copy_(torch.linspace(1, 2, layer.in_features))
    reference = copy.deepcopy(model)
    traced = torch.fx.symbolic_trace(model)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    torch.testing.assert_close(traced(IMAGES), reference(IMAGES))
    for a, b in zip(held(model), held(reference), strict=True):
        torch.testing.assert_close(a.v, b.v)


def test_a_headless_model_gets_a_head_whatever_was_pruned():
    model = timm.create_model("imixer_t2_8", num_classes=0).double()
    model.prune_intermediate_layers([0], prune_norm=True)
    model.reset_classifier(5, "avg")
    assert model(IMAGES.double()).shape == (3, 5)
