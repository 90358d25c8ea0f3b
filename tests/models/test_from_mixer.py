"""An iMixer that starts from a Mixer has its logits, then F learns; what cannot is refused in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from timm.models._hub import save_for_hf
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from imixer.errors import InputError
from imixer.models import IMLP, read_mixer, resample_tokens, start_from_mixer
from imixer.models.checkpoints import rename_published
from imixer.models.from_mixer import matching_variant

SIZES = {"num_blocks": 2, "embed_dim": 16}


def trained_mixer(**options):
    """A tiny Mixer that a few steps have moved from its random start, in float64."""
    model = timm.create_model("mixer_t2_8", **{"num_classes": 5, "in_chans": 1, **SIZES, **options}).double()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    images, labels = torch.rand(32, model.in_chans, *model.stem.img_size).double(), torch.arange(32) % 5
    for _ in range(4):
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def mixer():
    return trained_mixer()


@pytest.fixture
def file(mixer, tmp_path):
    path = tmp_path / "mixer.safetensors"
    save_file(mixer.state_dict(), path)
    return str(path)


def started(file, **options):
    return timm.create_model("imixer_t2_8", from_mixer=file, **{**SIZES, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2},
        {"num_layers": 4},
        {"n_iter": 7},
        {"norm": "none"},
        {"norm": "batch"},
        {"sigma": "exact"},
        {"sigma": "row_norm"},
        {"solver": "anderson", "gradient": "implicit"},
    ],
    ids=str,
)
def test_its_logits_are_the_mixers_whatever_its_inverse(mixer, file, options):
    model = started(file, **options).double()
    model.load_state_dict(read_mixer(file).state, strict=False)  # which creating in float32 has rounded
    images = torch.rand(7, 1, 8, 8).double()
    for training in (False, True):
        assert torch.allclose(model.train(training)(images), mixer.train(training)(images), rtol=0, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"norm": "none"}, {"norm": "batch"}, {"num_layers": 4}, {"legacy": True}])
def test_the_gradient_of_the_last_layer_of_F_does_not_vanish_and_F_learns(file, options):
    model = started(file, **options).train()
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 5
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
    for imlp in [module for module in model.modules() if isinstance(module, IMLP)]:
        last = imlp.contraction.bn2 if options.get("norm") == "batch" else imlp.contraction.fc2
        assert last.weight.abs().max() > 0 and last.bias.abs().max() > 0
        assert imlp.contraction.fc1.weight.grad.abs().max() > 0  # from the second step on


def test_classes_and_channels_are_the_mixers_unless_others_are_given(file):
    assert started(file).num_classes == 5 and started(file).stem.proj.in_channels == 1
    model = started(file, num_classes=3, in_chans=3)
    assert model.head.out_features == 3 and not model.head.weight.any()  # afresh
    weight = read_mixer(file).state["stem.proj.weight"].float()
    assert torch.allclose(model.stem.proj.weight.sum(1, keepdim=True), weight, atol=1e-6)


def test_another_image_size_is_resampled_and_said(file, caplog):
    model = started(file, img_size=16)
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 5)
    assert "resampled from 16 to 64 tokens" in caplog.text
    caplog.clear()
    started(file)
    assert not caplog.text


def test_as_many_tokens_of_another_grid_are_resampled_and_said(tmp_path):
    """They are the same images over the grid, where nothing but the size that the weights are for tells them apart."""
    wide = trained_mixer(img_size=(4, 16))
    save_for_hf(wide, tmp_path, model_args={**SIZES, "img_size": (4, 16)}, safe_serialization=True)
    model = timm.create_model("imixer_t2_8", **SIZES, num_classes=5, in_chans=1)
    mixer = read_mixer(str(tmp_path))
    assert mixer.img_size == (4, 16)
    assert "token mixing resampled to another grid of 16 tokens" in str(start_from_mixer(model, mixer))
    expected = wide.state_dict()
    rename_published(expected)
    resample_tokens(expected, (4, 4), source=(2, 8))
    for name in ("fc_in.weight", "fc_out.weight", "fc_out.bias"):
        found = model.state_dict()[f"blocks.1.mlp_tokens.{name}"]
        assert torch.allclose(found, expected[f"blocks.1.mlp_tokens.{name}"].float())


def test_features_only_starts_from_the_mixer_too(mixer, file):
    features = started(file, features_only=True, out_indices=(0, 1)).double()
    images = torch.rand(2, 1, 8, 8).double()
    expected = mixer.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    for mine, theirs in zip(features(images), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_nested_and_wrapped_weights_are_found(mixer, tmp_path):
    path = tmp_path / "lightning.ckpt"
    state = {f"model.{name}": value for name, value in mixer.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    assert read_mixer(str(path)).sizes == {**SIZES, "patch_size": 2, "tokens_dim": 8}


def test_a_name_is_loaded_as_timm_does_with_how_images_were_prepared(mixer, monkeypatch):
    asked = []

    def create(name, pretrained=False, **kwargs):
        if pretrained:
            asked.append(name)
            mixer.pretrained_cfg = {"mean": (0.1,), "std": (0.2,), "crop_pct": 0.9, "input_size": (1, 8, 8)}
            return mixer
        return original(name, pretrained=pretrained, **kwargs)

    original = timm.create_model
    monkeypatch.setattr("imixer.models.from_mixer.timm.create_model", create)
    model = original("imixer_t2_8", from_mixer="mixer_b16_224.goog_in21k_ft_in1k", **SIZES)
    assert asked == ["mixer_b16_224.goog_in21k_ft_in1k"]
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["crop_pct"]) == ((0.1,), 0.9)
    assert model.pretrained_cfg["architecture"] == "imixer_t2_8"


def test_the_variant_of_the_same_sizes_is_known(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("mixer_t2_8").state_dict(), path)
    assert matching_variant(read_mixer(str(path))) == "imixer_t2_8"


def test_weights_in_a_directory_are_read_while_a_model_is_built_without_memory(tmp_path):
    mixer = timm.create_model("mixer_t2_8")
    save_for_hf(mixer, tmp_path, safe_serialization=True)
    with torch.device("meta"):
        read = read_mixer(str(tmp_path))
        assert timm.create_model("imixer_t2_8", from_mixer=str(tmp_path)).head.weight.is_meta
    assert torch.equal(read.state["head.weight"], mixer.head.weight)


def test_a_random_stream_is_left_where_it_was(file, mixer):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    matching_variant(read_mixer(file))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"embed_dim": 32}, "has embed_dim 16, and the model 32; give embed_dim 16"),
        ({"num_blocks": 3}, "has num_blocks 2, and the model 3; give num_blocks 2"),
        ({"patch_size": 4}, "has patch_size 2, and the model 4; give patch_size 2"),
        ({"tokens_dim": 5}, "give tokens_dim 8"),
        ({"embed_dim": 32, "num_blocks": 1}, "give num_blocks 2 and embed_dim 16"),
        ({"mlp_ratio": (0.5, 2.0)}, "give mlp_ratio [0.5, 4]"),
        ({"stem": "conv"}, "give stem patch"),
        ({"tied": True}, "give tied false"),
        ({"decay": 0.1}, "give decay 0"),
        ({"step": 0.5}, "give step 1"),
        ({"norm": "orthogonal"}, "give norm spectral"),
        ({"scaling": "hard"}, "give scaling soft"),
        ({"act_layer": "relu"}, "give act_layer gelu"),
        ({"pretrained": True}, "leave one of them out"),
    ],
    ids=str,
)
def test_what_would_not_be_the_mixer_is_refused_with_what_to_give(file, options, said):
    with pytest.raises(InputError, match=re.escape(said)) as error:
        started(file, **options)
    assert "\n" not in str(error.value) and file in str(error.value)


STAGES = {"patch_size": 1, "num_blocks": [1, 2], "embed_dim": [8, 16], "tokens_dim": [6, 5], "mlp_ratio": (0.5, 3.0)}
SHAPED_STAGES = {name: value for name, value in STAGES.items() if name != "mlp_ratio"}


@pytest.mark.parametrize(
    ("made_with", "sizes"),
    [
        (STAGES, SHAPED_STAGES),
        ({**STAGES, "num_blocks": [1, 0], "tokens_dim": [6, 9]}, {"num_blocks": [1, 0], "tokens_dim": [6, 1]}),
        ({**STAGES, "stem": "whitened", "patch_size": 2}, {**SHAPED_STAGES, "stem": "whitened", "patch_size": 2}),
        ({"stem": "whitened", "patch_size": 4}, {"stem": "whitened", "patch_size": 4, "stem_width": 8}),
        ({"stem": "conv", "patch_size": 4, "stem_width": 5}, {"stem": "conv", "patch_size": 4, "stem_width": 5}),
        ({"stem": "deep", "patch_size": 4}, {"stem": "deep", "patch_size": 4, "stem_width": 6}),
        ({"stem": "deep", "patch_size": 8}, {"stem": "deep", "patch_size": 8, "stem_width": 6}),
        ({}, {**SIZES, "patch_size": 2, "tokens_dim": 8}),
    ],
    ids=str,
)
def test_the_sizes_of_a_mixer_are_read_from_its_shapes(made_with, sizes, tmp_path):
    save_file(trained_mixer(**made_with).state_dict(), tmp_path / "w.safetensors")
    read = read_mixer(str(tmp_path / "w.safetensors")).sizes
    assert read == read | sizes and read.keys() >= {"num_blocks", "embed_dim", "patch_size", "tokens_dim"}
    assert ("stem" in read) == ("stem" in made_with)


@pytest.mark.parametrize(
    ("stem", "patch_size", "options"),
    [
        ("patch", 1, {"mlp_ratio": (0.5, 2.0)}),
        ("conv", 4, {"stem": "whitened"}),
        ("whitened", 2, {"num_blocks": 2, "embed_dim": 16, "tokens_dim": 6}),
        ("deep", 4, {}),
    ],
)
def test_whoever_gives_what_is_said_starts_from_a_mixer_with_stages(stem, patch_size, options, tmp_path):
    mixer = trained_mixer(**STAGES | {"stem": stem, "patch_size": patch_size})
    file = str(tmp_path / "w.safetensors")
    save_file(mixer.state_dict(), file)
    for _ in range(2):
        with pytest.raises(InputError) as refused:
            timm.create_model("imixer_t2_8", from_mixer=file, **options)
        given = str(refused.value).rpartition("; give ")[2].split(" and ")
        options = options | {name: yaml.safe_load(value) for name, value in (each.split(" ", 1) for each in given)}
    model = timm.create_model("imixer_t2_8", from_mixer=file, **options).double()
    model.load_state_dict(read_mixer(file).state, strict=False)  # which creating in float32 has rounded
    images = torch.rand(3, 1, 8, 8).double()
    torch.testing.assert_close(model.eval()(images), mixer(images))


@pytest.mark.parametrize("channels", [3, 4, 6])
def test_filters_of_any_number_of_channels_are_summed_for_gray_images(tmp_path, channels):
    mixer = trained_mixer(in_chans=channels)
    save_file(mixer.state_dict(), tmp_path / "many.safetensors")
    model = started(str(tmp_path / "many.safetensors"), in_chans=1)
    expected = mixer.stem.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.stem.proj.weight, expected.float())


def test_a_model_that_began_as_a_mixer_loads_from_timms_folder_without_it(file, tmp_path):
    model = started(file)
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    if "from_mixer" not in (tmp_path / "saved" / "config.json").read_text():
        pytest.skip("this timm saves no arguments by itself")
    Path(file).unlink()
    loaded = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loaded.eval()(images), model.eval()(images))
    timm.create_model(f"local-dir:{tmp_path / 'saved'}")


def test_a_file_of_numpy_is_named_as_one(tmp_path):
    np.savez(tmp_path / "Mixer-B_16.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="a file of numpy, which is not read"):
        read_mixer(str(tmp_path / "Mixer-B_16.npz"))


def test_a_mixer_of_another_number_of_channels_that_cannot_be_adapted_is_refused(tmp_path):
    path = tmp_path / "four.safetensors"
    save_file(trained_mixer(in_chans=4).state_dict(), path)
    with pytest.raises(InputError, match="images of 4 channels, and the model of 2"):
        started(str(path), in_chans=2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gmlp_s16_224", "SpatialGatingBlock"),
        ("resmlp_12_224", "ResBlock"),
        ("gmixer_24_224", "GluMlp"),
        ("resnet18", "is no MLP-Mixer but ResNet"),
        ("imixer_s16_224", "is an iMixer"),
        ("mixer_s32_224", "timm has no weights for mixer_s32_224; it has some for mixer_b16_224.goog_in21k"),
        ("mixer_b16_24", "did you mean mixer_b16_224"),
        ("nowhere/mixer.pth", "no file nowhere/mixer.pth"),
    ],
)
def test_what_is_no_mixer_or_has_no_weights_is_refused_before_anything_is_loaded(name, said):
    with pytest.raises(InputError, match=re.escape(said)):
        read_mixer(name)


def other(kind):
    common = dict(img_size=8, patch_size=4, num_blocks=1, embed_dim=16, num_classes=2)
    if kind == "iMixer":
        return timm.create_model("imixer_t2_8", **SIZES)
    layers = timm.models.mlp_mixer
    options = {
        "ResMLP": dict(block_layer=layers.ResBlock, mlp_ratio=4, norm_layer=layers.Affine),
        "gMLP": dict(block_layer=layers.SpatialGatingBlock, mlp_ratio=4, mlp_layer=timm.layers.GatedMlp),
        "gated Mixer": dict(mlp_layer=timm.layers.GluMlp, mlp_ratio=(1.0, 4.0)),
        "no weights of an MLP-Mixer": None,
    }[kind]
    return nn.Sequential(nn.Linear(2, 2)) if options is None else MlpMixer(**common, **options)


@pytest.mark.parametrize("kind", ["iMixer", "ResMLP", "gMLP", "gated Mixer", "no weights of an MLP-Mixer"])
def test_files_of_other_models_are_told_apart(kind, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(other(kind).state_dict(), path)
    with pytest.raises(InputError, match=kind):
        read_mixer(str(path))


def test_weights_that_are_not_finite_damaged_files_and_empty_folders_are_refused(mixer, tmp_path):
    state = mixer.state_dict()
    state["head.bias"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    (tmp_path / "damaged.pth").write_bytes(b"nothing")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "nan.safetensors").read_bytes()[:-40])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("nan.safetensors", "not finite"),
        ("damaged.pth", "cannot be read|not a file of plain"),
        ("cut.safetensors", "cannot be read as weights .*cut short: fetch or copy it again"),
        ("text.pth", "cannot be read as weights; it is damaged"),
        ("missing.pth", "no file .*missing.pth; correct the path"),
        ("empty", "config.json"),
    ):
        with pytest.raises(InputError, match=said) as error:
            read_mixer(str(tmp_path / name))
        assert str(error.value).startswith("from_mixer: ") and "\n" not in str(error.value)


def test_weights_in_hand_can_be_given_to_a_model_in_hand(mixer, file):
    model = timm.create_model("imixer_t2_8", num_classes=5, in_chans=1, **SIZES).double()
    report = start_from_mixer(model, read_mixer(file))
    images = torch.rand(3, 1, 8, 8).double()
    assert torch.allclose(model.eval()(images), mixer(images), atol=1e-13)
    assert str(report) == f"weights taken from the Mixer {file}, F starts as zero"
