"""Stems and stages: all that timm asks of a model, the counts, and the mathematics of whitening."""

import math
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn

import imixer.models
from imixer.models.mixer import Merge, Mixer, grid_of
from imixer.models.stems import ConvStem, Whitening, build_stem, patch_covariance

PYRAMID = {"patch_size": 2, "num_blocks": [1, 2, 1], "embed_dim": [16, 24, 32], "tokens_dim": [20, 12, 8]}
OPTIONS = {
    "patch": {"stem": "patch"},
    "conv": {"stem": "conv"},
    "conv16": {"stem": "conv", "stem_width": 16},
    "whitened": {"stem": "whitened"},
    "deep": {"stem": "deep"},
    "pyramid": {"stem": "whitened", **PYRAMID},
    "plain pyramid": PYRAMID,
}
KINDS = [("imixer_t4_32", name) for name in OPTIONS] + [("mixer_t4_32", "whitened"), ("mixer_t4_32", "pyramid")]


def create(name="imixer_t4_32", options="whitened", **kwargs):
    torch.manual_seed(0)
    small = {"num_classes": 10, "num_blocks": 3, "embed_dim": 32}
    model = timm.create_model(name, **{**small, **OPTIONS[options], **kwargs})
    if getattr(model, "num_classes", 0):
        nn.init.normal_(model.head.weight, std=0.1)  # timm starts it at zero, which would hide the rest
    return model


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_backward_reaches_every_parameter(name, options):
    model = create(name, options).train()
    output = model(torch.randn(2, 3, 32, 32))
    output.square().mean().backward()
    assert output.shape == (2, 10)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert model.default_cfg["first_conv"] + ".weight" in model.state_dict()


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_features_head_and_classifier_fit_together(name, options):
    model, x = create(name, options).eval(), torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(x)
    height, width = grid_of(model, -1)
    assert tokens.shape == (2, height * width, model.num_features)
    assert model.forward_head(tokens, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_intermediates_stand_on_their_own_grids(name, options):
    model, x = create(name, options).eval(), torch.randn(2, 3, 32, 32)
    final, maps = model.forward_intermediates(x)
    _, tokens = model.forward_intermediates(x, output_fmt="NLC")
    torch.testing.assert_close(final, model.forward_features(x))
    for i, (image, flat) in enumerate(zip(maps, tokens, strict=True)):
        assert image.shape == (2, model.feature_info[i]["num_chs"], *grid_of(model, model.levels[i]))
        assert image.shape[-1] * model.feature_info[i]["reduction"] == 32
        assert torch.equal(image.flatten(2).transpose(1, 2), flat)
    features = create(name, options, features_only=True, out_indices=(0, 2)).eval()
    assert [tuple(each.shape) for each in features(x)] == [tuple(maps[i].shape) for i in (0, 2)]
    assert features.feature_info.channels() == [maps[i].shape[1] for i in (0, 2)]
    model.prune_intermediate_layers([0])
    assert len(model.blocks) == 1


@pytest.mark.parametrize("name", ["imixer_t4_32", "mixer_t4_32"])
def test_features_that_end_at_an_earlier_stage_are_not_normed(name):
    model, x = create(name, "pyramid").eval(), torch.randn(2, 3, 32, 32)
    last, maps = model.forward_intermediates(x, indices=[0], stop_early=True, output_fmt="NLC")
    assert torch.equal(last, maps[0])
    whole, _ = model.forward_intermediates(x, indices=[0])
    torch.testing.assert_close(whole, model.forward_features(x))


def test_a_norm_that_fits_the_last_stage_only_is_refused():
    with pytest.raises(ValueError, match="norm"):
        create(options="pyramid").forward_intermediates(torch.randn(1, 3, 32, 32), norm=True)


@pytest.mark.parametrize("options", ["whitened", "pyramid"])
def test_layers_are_ordered_for_layer_decay(options):
    model = create(options=options)
    groups = group_parameters(model, model.group_matcher())
    assert len(groups) == 1 + len(model.blocks) + 1  # stem, blocks with what merges their tokens, norm and head


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("in_chans", "size"), [(1, 32), (5, (32, 48)), (3, 16)])
def test_any_channels_and_any_size_that_the_stem_divides(options, in_chans, size):
    model = create(options=options, in_chans=in_chans, img_size=size).eval()
    height, width = (size, size) if isinstance(size, int) else size
    assert model(torch.randn(1, in_chans, height, width)).shape == (1, 10)
    assert model.stem(torch.randn(1, in_chans, height, width)).shape[1] == model.stem.num_patches
    with pytest.raises(AssertionError, match="doesn't match model"):
        model.stem(torch.randn(1, in_chans, height + 8, width))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("target", [(64, 64), (16, 16), (48, 32)])
def test_weights_load_at_another_image_size(options, target):
    source = create(options=options).eval()
    other = create(options=options, img_size=target).eval()
    assert other.load_state_dict(source.state_dict()).missing_keys == []
    for name, value in source.stem.state_dict().items():
        assert torch.equal(other.stem.state_dict()[name], value)
    assert other(torch.randn(1, 3, *target)).isfinite().all()


def test_each_stage_is_resampled_on_its_own_grid():
    """A mixing weight that is the same everywhere stays so, divided by the growth of the number of tokens."""
    source, other = create(options="pyramid"), create(options="pyramid", img_size=64)
    for block in source.blocks:
        if not isinstance(block, Merge):
            nn.init.constant_(block.mlp_tokens.fc_in.weight, 0.25)
    other.load_state_dict(source.state_dict())
    for i, block in enumerate(other.blocks):
        if not isinstance(block, Merge):
            weight = block.mlp_tokens.fc_in.weight
            assert weight.shape[1] == grid_of(other, i)[0] * grid_of(other, i)[1]
            torch.testing.assert_close(weight, torch.full_like(weight, 0.25 / 4))


def test_the_plain_stem_and_one_stage_are_timms_mixer_bit_for_bit():
    torch.manual_seed(0)
    ours = Mixer(img_size=32, patch_size=4, num_blocks=2, embed_dim=32, num_classes=10)
    torch.manual_seed(0)
    theirs = timm.models.MlpMixer(img_size=32, patch_size=4, num_blocks=2, embed_dim=32, num_classes=10)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


# 61 / 7 * 7 and 49 / 11 * 11 come out just below the whole number.
@pytest.mark.parametrize(("dim", "tokens_dim"), [(30, 1), (7, 61), (11, 49), (128, 64)])
def test_tokens_dim_is_the_width_of_the_token_mixing(dim, tokens_dim):
    model = Mixer(img_size=8, patch_size=2, num_blocks=1, embed_dim=dim, tokens_dim=tokens_dim)
    assert model.blocks[0].mlp_tokens.fc1.out_features == tokens_dim
    assert model.blocks[0].mlp_channels.fc1.out_features == 4 * dim


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_zero_init_starts_every_block_as_the_identity(name, options):
    model, x = create(name, options, zero_init=True).eval(), torch.randn(2, 3, 32, 32)
    for module in model.blocks:
        if not isinstance(module, Merge):
            tokens = torch.randn(2, module.mlp_tokens.fc_out.out_features if name[0] == "i" else
                                 module.mlp_tokens.fc2.out_features, module.norm1.normalized_shape[0])  # fmt: skip
            assert torch.equal(module(tokens), tokens)
    assert not torch.equal(create(name, options).eval()(x), model(x))


def test_the_plain_stem_cuts_off_what_no_whole_patch_covers():
    stem = build_stem("patch", img_size=(9, 11), patch_size=4, in_chans=1, embed_dim=8)
    image = torch.rand(2, 1, 9, 11)
    assert stem.grid_size == (2, 2)
    cut = F.pad(image[..., :8, :8], (0, 3, 0, 1))
    assert torch.equal(stem(image), stem(cut))


def test_names_of_blocks_count_what_merges_tokens_too():
    model = create(options="pyramid")
    names = [module.name for module in model.modules() if isinstance(module, imixer.models.IMLP)]
    assert names == [f"blocks.{i}.mlp_tokens" for i in (0, 2, 3, 5)]
    assert isinstance(model.blocks[1], Merge) and isinstance(model.blocks[4], Merge)


# --- whitening --------------------------------------------------------------------------------------------------------


def natural(count=64, channels=3, size=12):
    """Images whose neighbouring pixels and channels go together."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, channels, size + 4, size + 4, generator=generator)
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1)
    return 3 * smooth + smooth.mean(1, keepdim=True) * 6


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_and_of_variance_one(channels):
    images = natural(channels=channels).double()
    stem = Whitening(channels, dtype=torch.float64)
    covariance = patch_covariance(images)
    stem.whiten(covariance)
    outputs = stem(images)[:, :, :-1, :-1].transpose(0, 1).flatten(1)  # where the patch is within the image
    half = 4 * channels
    torch.testing.assert_close(outputs[:half], -outputs[half:])
    seen = outputs[:half] @ outputs[:half].T / outputs.shape[1]
    variances = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(seen, torch.diag(variances / (variances + 5e-4)), rtol=1e-9, atol=1e-9)


def test_whitening_does_not_depend_on_the_signs_of_eigenvectors(monkeypatch):
    covariance, eigh = patch_covariance(natural()), torch.linalg.eigh
    one, other = Whitening(3), Whitening(3)
    one.whiten(covariance)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], -eigh(matrix)[1]))
    other.whiten(covariance)
    assert torch.equal(one.weight, other.weight)


def test_whitening_is_finite_where_a_direction_has_no_variance():
    stem = Whitening(3)
    stem.whiten(torch.zeros(12, 12))
    assert stem.weight.isfinite().all()
    assert stem.weight.abs().max() == pytest.approx(5e-4**-0.5)


def test_whitening_is_frozen_saved_and_in_float32_under_autocast():
    model = create(options="whitened")
    model.stem.proj.whiten(patch_covariance(natural()))
    assert "stem.proj.weight" in model.state_dict()
    assert "stem.proj.weight" not in dict(model.named_parameters())
    images = natural(2, size=32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.stem.proj(images), Whitening.forward(model.stem.proj, images.float()))
        assert model.stem.proj(images).dtype == torch.float32


def test_whitening_of_a_model_in_bfloat16_is_computed_in_float32():
    """Not the filters, which are rounded once, but the sums of what nearly cancels."""
    stem, images = Whitening(3), natural(2, size=32).bfloat16()
    stem.whiten(patch_covariance(natural()))
    stem.bfloat16()
    exact = torch.nn.functional.conv2d(torch.nn.functional.pad(images.float(), (0, 1, 0, 1)), stem.weight.float())
    assert torch.equal(stem(images), exact.bfloat16())


def test_a_covariance_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"covariance has shape \(4, 4\)"):
        Whitening(3).whiten(torch.eye(4))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "convolution"}, "stem is 'convolution'; choose patch, conv"),
        ({"stem": "conv", "patch_size": 3}, "patch_size is 3; give a power of 2"),
        ({"stem": "conv", "patch_size": 8, "img_size": 36}, "8x8 pixels, which do not divide an image of 36x36"),
        ({"stem": "whitened", "patch_size": 64}, "64x64 pixels, which do not divide an image of 32x32"),
        ({"stem": "deep", "patch_size": 1}, "patch_size is 1"),
        ({"stem": "patch", "stem_width": 8}, "stem_width is 8; leave it out"),
        ({"stem": "conv", "stem_width": 0}, "stem_width is 0; give 1 or more"),
        ({"stem": "conv", "stem_width": 8, "patch_size": 2}, "only convolution has embed_dim"),
        ({"stem": "deep", "stem_width": 8, "patch_size": 2}, "only convolution has embed_dim"),
        ({"stem": "whitened", "stem_width": 256, "patch_size": 8, "embed_dim": 128}, "256, above embed_dim = 128"),
        (
            {"num_blocks": [1, 1], "embed_dim": [8, 8, 8]},
            r"embed_dim is \[8, 8, 8\]; give one number for each",
        ),
        ({"num_blocks": []}, "num_blocks is"),
        ({"num_blocks": [1, -1]}, r"num_blocks is \[1, -1\]; give 0 or more"),
        ({"embed_dim": [8, 0]}, r"embed_dim is \[8, 0\]; give 1 or more"),
        ({"num_blocks": [1] * 5, "embed_dim": 8}, "stage 5 halves the token grid, which is 1x1"),
        ({"num_blocks": [1, 1], "embed_dim": 8, "img_size": 24, "patch_size": 8}, "stage 2 .* 3x3; give fewer stages"),
        ({"tokens_dim": 0}, "tokens_dim is 0; give 1 or more"),
        ({"tokens_dim": [4, 4], "num_blocks": [1]}, "tokens_dim is"),
        ({"tied": True, "zero_init": True}, "zero_init is true, and the couplings are tied"),
    ],
)
def test_impossible_stems_and_stages_are_refused_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        timm.create_model("imixer_t4_32", **{"embed_dim": 16, "num_blocks": 2, **options})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_norm_of_every_stem_is_the_norm_layer_with_its_arguments(options):
    assert create(options=options, stem_norm=True).stem.norm.eps == 1e-6  # timm's default
    made = create(options=options, stem_norm=True, norm_layer=partial(nn.LayerNorm, eps=1e-3))
    assert made.stem.norm.eps == made.norm.eps == 1e-3
    assert isinstance(create(options=options).stem.norm, nn.Identity)


@pytest.mark.parametrize("options", [{}, {"num_blocks": [1, 1], "embed_dim": [8, 16]}], ids=["one", "stages"])
@pytest.mark.parametrize("name", ["imixer_t4_32", "mixer_t4_32"])
def test_the_negative_log_bias_is_that_of_the_classifier_with_stages_and_without_classes_too(name, options):
    sizes = {"embed_dim": 16, "num_blocks": 2} | options
    head = timm.create_model(name, num_classes=4, nlhb=True, **sizes).head
    torch.testing.assert_close(head.bias.detach(), torch.full((4,), -math.log(4)))
    assert isinstance(timm.create_model(name, num_classes=0, nlhb=True, **sizes).head, nn.Identity)


def test_stems_have_the_interface_of_timms():
    kwargs = dict(img_size=(32, 64), patch_size=4, in_chans=3, embed_dim=16)
    theirs = build_stem("patch", **kwargs)
    for name in ("conv", "whitened", "deep"):
        ours = build_stem(name, **kwargs)
        assert isinstance(ours, ConvStem)
        for attribute in ("grid_size", "num_patches", "img_size", "patch_size"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        assert ours.feat_ratio() == 4 and ours.dynamic_feat_size((64, 64)) == (16, 16)
        assert ours(torch.randn(2, 3, 32, 64)).shape == theirs(torch.randn(2, 3, 32, 64)).shape
