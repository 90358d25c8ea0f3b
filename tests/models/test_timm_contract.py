"""Everything that timm's own tests ask of a model, asked of ours; and every way timm has to load one."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import load_state_dict
from timm.models._hub import save_for_hf
from torch import nn

import imixer.models
from imixer.errors import InputError
from imixer.models.export import example_images, onnx_metadata

NAMES = timm.list_models("imixer*")
SMALL = "imixer_t4_32"
PAPER = [name for name in NAMES if name.endswith("_224")]
# S and below: the others are the same classes, wider.
QUICK = [name for name in NAMES if not name.startswith(("imixer_b", "imixer_l"))]
DEPTHS = [
    {},
    {"num_layers": 2, "tied": True},
    {"num_layers": 4, "hidden_ratio": [1.0, 0.5], "act_layer": ["gelu", "softmax", "relu"], "coeff": "auto"},
    {"num_layers": 5, "tied": True, "hidden_ratio": 0.5},
    {"stem": "whitened"},
    {"stem": "deep", "patch_size": 2, "num_blocks": [1, 2], "embed_dim": [16, 24], "tokens_dim": [12, 8]},
]


def depths(test):
    def name(depth):
        return "-".join([f"L{depth.get('num_layers', 3)}", *filter(None, [depth.get("stem")])])

    return pytest.mark.parametrize("depth", DEPTHS, ids=name)(test)


def size_of(name: str) -> tuple[int, int, int]:
    return timm.get_pretrained_cfg(name).input_size


def small(**kwargs) -> imixer.models.IMixer:
    torch.manual_seed(0)
    model = timm.create_model(SMALL, **{"num_classes": 10, "num_blocks": 3, **kwargs})
    if model.num_classes and "checkpoint_path" not in kwargs:
        nn.init.normal_(model.head.weight, std=0.1)  # timm starts it at zero, which would hide the rest
    return model


def test_the_papers_models_are_registered():
    assert {f"imixer_{size}{patch}_224" for size in "sbl" for patch in (16, 32)} <= set(NAMES)


@pytest.mark.parametrize("order", ["import timm, imixer", "import imixer, timm.models, timm"])
def test_importing_the_package_is_enough_in_any_order(order):
    code = f"{order}; assert {SMALL!r} in timm.list_models(); timm.create_model({SMALL!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_importing_the_package_alone_is_light():
    code = "import imixer, sys; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "kwargs", "parameters"),
    [
        ("imixer_s16_224", {}, 20_123_690),
        ("imixer_b16_224", {}, 66_210_874),
        ("imixer_l16_224", {}, 232_384_106),
        ("imixer_s32_224", {}, 20_700_050),
        ("imixer_s16_224", {"hidden_ratio": 0.25}, 18_285_098),
    ],
)
def test_parameter_counts_are_the_papers(name, kwargs, parameters):
    model = timm.create_model(name, num_classes=10, device="meta", **kwargs)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", PAPER)
def test_a_papers_name_pins_its_hyperparameters(name):
    model = timm.create_model(name, device="meta")
    mlp = model.blocks[0].mlp_tokens
    layer = mlp.contraction.fc1
    assert (mlp.n_iter, layer.coeff, layer.n_power_iterations, mlp.legacy) == (2, 0.9, 8, False)
    assert layer.out_features == 2 * layer.in_features == model.embed_dim
    assert isinstance(mlp.act, nn.GELU)


# --- timm's tests/test_models.py, on ours -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_forward(name):
    model = timm.create_model(name).eval()
    output = model(torch.randn(1, *size_of(name)))
    assert output.shape == (1, 1000)
    assert not output.isnan().any()


@pytest.mark.parametrize("name", QUICK)
def test_backward_reaches_every_parameter(name):
    model = timm.create_model(name, num_classes=42).train()
    output = model(torch.randn(2, *size_of(name)))
    output.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert output.shape[-1] == 42
    assert not output.isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_default_cfg_names_the_classifier_and_the_first_convolution(name):
    model = timm.create_model(name, device="meta")
    state, cfg = model.state_dict(), model.default_cfg
    assert cfg["classifier"] + ".weight" in state
    assert cfg["first_conv"] + ".weight" in state
    assert cfg["input_size"] == size_of(name)
    assert cfg["license"]


@pytest.mark.parametrize("name", QUICK)
def test_features_head_and_classifier_fit_together(name):
    model, x = timm.create_model(name).eval(), torch.randn(1, *size_of(name))
    tokens = model.forward_features(x)
    assert tokens.shape == (1, model.stem.num_patches, model.num_features)
    assert model.forward_head(tokens, pre_logits=True).shape == (1, model.head_hidden_size)
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == tokens.shape
    model.reset_classifier(7, "avg")
    assert model(x).shape == (1, 7)
    assert timm.create_model(name, num_classes=0, global_pool="", device="meta").num_classes == 0


@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
def test_forward_intermediates(output_fmt):
    model, x = small().eval(), torch.randn(2, 3, 32, 32)
    final, taps = model.forward_intermediates(x, output_fmt=output_fmt)
    assert [tuple(t.shape) for t in taps] == [(2, 128, 8, 8) if output_fmt == "NCHW" else (2, 64, 128)] * 3
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(model.forward_intermediates(x, indices=[0, 2], intermediates_only=True, stop_early=True)) == 2
    model.prune_intermediate_layers([0])
    assert len(model.blocks) == 1


@pytest.mark.parametrize("indices", [(0, 1, 2), (1,)])
def test_features_only(indices):
    model = timm.create_model(SMALL, features_only=True, out_indices=indices, num_blocks=3).eval()
    maps = model(torch.randn(2, 3, 32, 32))
    assert model.feature_info.channels() == [m.shape[1] for m in maps] == [128] * len(indices)
    assert model.feature_info.reduction() == [4] * len(indices)


@depths
def test_torchscript(depth):
    model, x = small(**depth).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=1e-5, atol=1e-6)


@depths
def test_fx_tracing_forward_and_backward(depth):
    model, x = small(**depth).train(), torch.randn(2, 3, 32, 32)
    traced = torch.fx.symbolic_trace(model.eval())
    torch.testing.assert_close(traced(x), model(x))
    traced(x).mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_group_matcher_orders_the_layers_for_layer_decay():
    from timm.models import group_parameters

    groups = group_parameters(small(), small().group_matcher())
    assert len(groups) == 5  # stem, three blocks, norm and head


@pytest.mark.parametrize(("in_chans", "img_size"), [(1, 32), (2, (32, 48)), (5, 32)])
def test_any_channels_and_any_size_that_patches_divide(in_chans, img_size):
    model = small(in_chans=in_chans, img_size=img_size)
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    assert model(torch.randn(1, in_chans, height, width)).shape == (1, 10)


def test_every_hyperparameter_passes_through_create_model():
    model = small(
        n_iter=4, hidden_ratio=0.5, coeff=0.7, n_power_iterations=3, legacy=True, act_layer="relu",
        mlp_ratio=(1.0, 2.0), drop_rate=0.1, proj_drop_rate=0.2, drop_path_rate=0.3, stem_norm=True, nlhb=True,
    )  # fmt: skip
    block = model.blocks[0]
    mlp = block.mlp_tokens
    assert (mlp.n_iter, mlp.legacy, mlp.drop1.p) == (4, True, 0.2)
    assert (mlp.contraction.fc1.coeff, mlp.contraction.fc1.n_power_iterations) == (0.7, 3)
    assert mlp.contraction.fc1.weight.shape == (64, 128)
    assert isinstance(mlp.act, nn.ReLU)
    assert isinstance(block.mlp_channels.act, nn.ReLU)
    assert block.drop_path.drop_prob == 0.3
    assert small(norm="batch").blocks[0].mlp_tokens.contraction.bn1.num_features == 128


@pytest.mark.parametrize("name", ["n_iters", "hidden", "spectral"])
def test_unknown_hyperparameters_raise(name):
    with pytest.raises(TypeError, match=name):
        timm.create_model(SMALL, **{name: 1})


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "depth"), [("safetensors", {}), *(("pth", depth) for depth in DEPTHS)], ids=lambda value: str(value)[:30]
)
def test_checkpoint_path_round_trip(tmp_path, kind, depth):
    from safetensors.torch import save_file

    model, x = small(**depth), torch.randn(2, 3, 32, 32)
    model.train()(x)
    path = tmp_path / f"weights.{kind}"
    torch.save(model.state_dict(), path) if kind == "pth" else save_file(model.state_dict(), path)
    again = small(checkpoint_path=str(path), **depth).eval()
    assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize(("in_chans", "num_classes"), [(3, 10), (1, 4)])
def test_local_dir_carries_hyperparameters_and_adapts(tmp_path, in_chans, num_classes):
    args = {"n_iter": 3, "hidden_ratio": 1.0, "num_blocks": 3}
    model, x = small(**args).eval(), torch.randn(2, 3, 32, 32)
    save_for_hf(model, tmp_path, model_args=args, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == SMALL
    again = timm.create_model(
        f"local-dir:{tmp_path}", pretrained=True, in_chans=in_chans, num_classes=num_classes
    ).eval()
    assert again.n_iter == 3
    if (in_chans, num_classes) == (3, 10):
        assert torch.equal(again(x), model(x))
    assert again(torch.randn(2, in_chans, 32, 32)).shape == (2, num_classes)


@depths
def test_local_dir_carries_the_depth(tmp_path, depth):
    model, x = small(**depth).eval(), torch.randn(2, 3, 32, 32)
    save_for_hf(model, tmp_path, model_args={"num_blocks": 3, **depth}, safe_serialization=True)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))


@pytest.mark.parametrize("options", [{}, {"features_only": True}], ids=["whole", "features"])
def test_a_whitened_stem_is_refused_for_other_channels_than_its_weights_in_a_sentence(tmp_path, options):
    name = "imixer_laptop_32.cifar10"
    for channels in (1, 4):
        with pytest.raises(InputError, match=f"in_chans is {channels}, .* imixer_laptop_32 .*; leave in_chans at 3"):
            timm.create_model(name, pretrained=True, in_chans=channels, **options)
    args = {"num_blocks": 1, "stem": "deep", "in_chans": 1}
    save_for_hf(small(**args), tmp_path, model_args=args, safe_serialization=True)
    with pytest.raises(InputError, match=f"in_chans is 3, .* {SMALL} .*; leave in_chans at 1"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=3, **options)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **options).training
    assert timm.create_model(name, in_chans=1, **options).training


def test_hf_hub_loading(tmp_path, monkeypatch):
    """The same directory through the hub's code path, its download replaced by the local file."""
    import timm.models._hub as hub

    args = {"n_iter": 3, "num_blocks": 3}
    model, x = small(**args).eval(), torch.randn(2, 3, 32, 32)
    save_for_hf(model, tmp_path, model_args=args, safe_serialization=True)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / filename))
    again = timm.create_model("hf-hub:someone/imixer", pretrained=True).eval()
    assert again.n_iter == 3
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("target", [(64, 64), (32, 64), (16, 24), (40, 56)])
def test_weights_load_at_another_image_size_and_mean_nearly_the_same(tmp_path, target):
    """On an image that does not vary within the plane, every grid sees the same thing."""
    model = small(img_size=48).eval()
    for block in model.blocks:  # smooth mixing weights, so that a coarser grid can represent them
        nn.init.constant_(block.mlp_tokens.fc_in.weight, 0.02)
        nn.init.constant_(block.mlp_tokens.fc_out.weight, 0.02)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other = small(img_size=target, checkpoint_path=str(tmp_path / "weights.pth")).eval()
    color = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(
        other(color.expand(2, 3, *target)), model(color.expand(2, 3, 48, 48)), rtol=1e-4, atol=1e-4
    )
    for theirs, ours in zip(model.blocks, other.blocks, strict=True):
        fc1, fc2 = theirs.mlp_tokens.contraction.fc1, ours.mlp_tokens.contraction.fc1
        assert torch.equal(fc1.normalized_weight(), fc2.normalized_weight())


def test_resampling_there_and_back_restores_a_smooth_mixing_weight(tmp_path):
    model = small(img_size=32)
    smooth = torch.linspace(0, 1, 8)[:, None] + torch.linspace(0, 2, 8)[None]
    with torch.no_grad():
        model.blocks[0].mlp_tokens.fc_in.weight.copy_(smooth.flatten().expand(64, 64))
    larger = small(img_size=64)
    larger.load_state_dict(model.state_dict())
    back = small(img_size=32)
    back.load_state_dict(larger.state_dict())
    weights = [m.blocks[0].mlp_tokens.fc_in.weight for m in (back, model)]
    torch.testing.assert_close(*weights, rtol=0.03, atol=0.03)


def test_a_non_square_source_is_known_from_its_directory(tmp_path):
    model = small(img_size=(32, 48))
    args = {"img_size": (32, 48), "num_blocks": 3}
    save_for_hf(
        model, tmp_path, model_config={"pretrained_cfg": {**model.pretrained_cfg, "input_size": (3, 32, 48)}},
        model_args=args, safe_serialization=True,
    )  # fmt: skip
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(40, 40))
    assert again.stem.grid_size == (10, 10)
    assert again(torch.randn(1, 3, 40, 40)).shape == (1, 10)


def test_a_non_square_source_of_unknown_shape_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"96 tokens.*resample_tokens"):
        small(img_size=32).load_state_dict(small(img_size=(32, 48)).state_dict())


def test_a_square_that_is_a_guess_is_said_once_and_a_grid_that_is_known_is_not(caplog, tmp_path):
    source = small(img_size=(16, 36))  # 4x9 tokens
    small(img_size=(16, 32)).load_state_dict(source.state_dict())
    assert [r.getMessage() for r in caplog.records] == [
        "the weights mix 36 tokens, which are taken for a grid of 6x6; if it is another, call "
        "model.adapt_weights(state_dict, img_size=(height, width)) before they are loaded"
    ]
    caplog.clear()
    small(img_size=48).load_state_dict(small().state_dict())  # of the size that the name is for
    save_for_hf(
        source, tmp_path, model_config={"pretrained_cfg": {**source.pretrained_cfg, "input_size": (3, 16, 36)}},
        model_args={"img_size": (16, 36), "num_blocks": 3}, safe_serialization=True,
    )  # fmt: skip
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(16, 32))
    small(img_size=(16, 36)).load_state_dict(source.state_dict())
    first, second = source.state_dict(), source.state_dict()
    imixer.models.resample_tokens(first, (4, 8), source=(4, 9))
    target = small(img_size=(16, 32))
    target.adapt_weights(second, img_size=(16, 36))  # the remedy
    target.load_state_dict(second)
    assert torch.equal(second["blocks.0.mlp_tokens.fc_in.weight"], first["blocks.0.mlp_tokens.fc_in.weight"])
    small(img_size=(64, 48), dynamic_img_size=True).eval()(torch.randn(1, 3, 32, 40))
    assert not caplog.records


def test_a_packaged_models_weights_are_for_its_size_where_another_has_as_many_tokens():
    name = "imixer_laptop_32.cifar10"
    state = timm.create_model(name, pretrained=True).state_dict()
    model = timm.create_model(name, pretrained=True, img_size=(16, 64))
    key = "blocks.0.mlp_tokens.fc_in.weight"
    expected = {k: v for k, v in state.items() if k.startswith("blocks.0.")}
    imixer.models.resample_tokens(expected, (8, 32), source=(16, 16))
    assert model.state_dict()[key].shape == state[key].shape
    off = (model.state_dict()[key] - expected[key]).norm() / expected[key].norm()
    assert off < 1e-3 < (state[key] - expected[key]).norm() / expected[key].norm()  # packed in float16


def test_a_folders_weights_are_for_its_size_where_another_has_as_many_tokens(tmp_path):
    model = small(img_size=(32, 32))
    if not hasattr(model, "pretrained_model_args"):
        pytest.skip("this timm does not say what was saved")
    args = {"img_size": (32, 32), "num_blocks": 3, "num_classes": 10}
    save_for_hf(model, tmp_path, model_args=args, safe_serialization=True)
    state = model.state_dict()
    key = "blocks.0.mlp_tokens.fc_in.weight"
    expected = {k: v.clone() for k, v in state.items() if k.startswith("blocks.0.")}
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(16, 64)).state_dict()[key]
    imixer.models.resample_tokens(expected, (4, 16), source=(8, 8))
    torch.testing.assert_close(loaded, expected[key])
    assert not torch.allclose(loaded, state[key])


def test_what_is_set_on_a_model_is_saved_with_it(tmp_path):
    model = timm.create_model("imixer_t2_8", num_blocks=1, embed_dim=16)
    model.n_iter, model.solver, model.tolerance = 7, "anderson", 1e-3
    save_for_hf(model, tmp_path, safe_serialization=True)
    if "model_args" not in json.loads((tmp_path / "config.json").read_text()):
        pytest.skip("this timm saves no arguments by itself")
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert (loaded.n_iter, loaded.solver, loaded.tolerance) == (7, "anderson", 1e-3)


def test_a_state_dict_with_others_is_renamed_within_its_prefix_only():
    model, mixer = timm.create_model("imixer_t2_8", num_layers=2), timm.create_model("mixer_t2_8")
    state = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in mixer.state_dict().items()}
    model.adapt_weights(state, prefix="student.")
    assert {key for key in state if key.startswith("teacher.")} == {f"teacher.{key}" for key in mixer.state_dict()}
    model.load_state_dict({key[8:]: value for key, value in state.items() if key.startswith("student.")})


def test_a_unet_and_a_segmenter_say_how_many_channels_they_take(tmp_path):
    for name, args in (("unet_16", {}), ("segmenter", {"backbone": "imixer_n2_8", "img_size": 8})):
        model = timm.create_model(name, in_chans=1, **args)
        assert model.in_chans == 1
        save_for_hf(model, tmp_path / name, safe_serialization=True)
        saved = json.loads((tmp_path / name / "config.json").read_text())
        assert saved["pretrained_cfg"]["input_size"][0] == 1 or not hasattr(model, "pretrained_model_args")


def test_weights_of_this_model_are_loaded_as_they_are_at_any_size():
    """Its name says a size, of which another may have as many tokens."""
    source, target = (small(img_size=(16, 64)) for _ in range(2))
    target.load_state_dict(source.state_dict())
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


def test_the_remedy_works():
    state = small(img_size=(32, 48)).state_dict()
    imixer.models.resample_tokens(state, (8, 8), likely_source=(8, 12))
    small(img_size=32).load_state_dict(state)


def test_timms_own_mixer_refuses_another_grid():
    """The reason for the tests above."""
    state = timm.create_model("mixer_t4_32", img_size=48).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model("mixer_t4_32").load_state_dict(state)


def test_authors_checkpoint_gives_their_logits_loss_and_gradients(golden):
    config = json.loads((golden / "authors_a_config.json").read_text())
    config["n_iter"] = config.pop("n_repeat")
    path = golden / "authors_a_checkpoint.pth"
    model = timm.create_model("imixer_s16_224", checkpoint_path=str(path), **config).eval()
    expected = torch.load(golden / "authors_a_expected.pth", weights_only=True)
    logits = model(expected["x"])
    loss = nn.functional.cross_entropy(logits, expected["y"])
    loss.backward()
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected["loss"], rtol=0, atol=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    theirs = dict(expected["grads"])
    imixer.models.checkpoints.rename_published(theirs)
    assert theirs.keys() == gradients.keys()
    largest = max(g.abs().max() for g in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6 * largest.item(), msg=name)
    for block, sigma in expected["exact_sigma"].items():
        ours = block.replace("fc_sn", "contraction.fc").removesuffix(".weight_orig")
        assert abs(model.get_submodule(ours).sigma(exact=True) - sigma) < 1e-4
        assert abs(model.get_submodule(ours).sigma() - sigma) < 1e-4


def test_authors_checkpoint_loads_at_another_size_too(golden):
    state = load_state_dict(str(golden / "authors_a_checkpoint.pth"))
    model = timm.create_model("imixer_s16_224", img_size=48, patch_size=8, num_blocks=2, embed_dim=48, num_classes=10)
    assert model.load_state_dict(state).missing_keys == []


def test_images_for_an_export_have_the_channels_that_the_model_takes():
    for name in ("repvgg_a0", "imixer_t2_8", "resnet18"):  # the first has two convolutions at its beginning
        model = timm.create_model(name, in_chans=2, device="meta")
        assert example_images(model, 1).shape[1] == 2


def test_an_exported_file_says_which_stored_values_are_black_and_white():
    model = timm.create_model("imixer_t2_8", num_blocks=1)
    assert json.loads(onnx_metadata(model)["value_range"]) == [0, 255]
    assert json.loads(onnx_metadata(model, (0.0, 4095.0))["value_range"]) == [0, 4095]
    assert [onnx_metadata(model)["background"], onnx_metadata(model, None, 0)["background"]] == ["255", "0"]
