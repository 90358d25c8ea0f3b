"""Feature maps for dense tasks: levels, strides, sizes, and the libraries that take them."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations

import imixer.models  # noqa: F401
from imixer.models import Mixer, resample_tokens
from imixer.models.dense import DenseFeatures

SMALL = {"num_blocks": 3, "embed_dim": 16}
STAGES = {
    "stem": "whitened",
    "patch_size": 2,
    "num_blocks": [2, 2, 1],
    "embed_dim": [8, 16, 24],
    "tokens_dim": [12, 8, 6],
}
MODELS = {
    "plain": ("imixer_t4_32", SMALL),
    "tied": ("imixer_t4_32", {**SMALL, "tied": True}),
    "deep": ("imixer_t4_32", {**SMALL, "num_layers": 4}),
    "two layers": ("imixer_t4_32", {**SMALL, "num_layers": 2}),
    "solved": ("imixer_t4_32", {**SMALL, "solver": "anderson", "gradient": "implicit"}),
    "conv stem": ("imixer_t4_32", {**SMALL, "stem": "conv"}),
    "stages": ("imixer_t4_32", STAGES),
    "mixer": ("mixer_t4_32", SMALL),
    "mixer with stages": ("mixer_t4_32", STAGES),
}
each_model = pytest.mark.parametrize("kind", MODELS)


def create(kind="plain", **kwargs):
    torch.manual_seed(0)
    name, options = MODELS[kind]
    return timm.create_model(name, **{**options, **kwargs})


@each_model
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (16, 64), (37, 50), (5, 3)], ids=str)
def test_maps_have_the_size_that_their_strides_say(kind, size):
    for options in ({}, {"out_strides": (4, 8, 16)}, {"out_strides": {0: 2, -1: 6}}, {"out_indices": (0, -1)}):
        model = create(kind, features_only=True, **options).eval()
        maps = model(torch.randn(2, 3, *size))
        assert model.feature_info.channels() == [y.shape[1] for y in maps]
        for y, stride in zip(maps, model.feature_info.reduction(), strict=True):
            assert tuple(y.shape[-2:]) == tuple(-(-side // stride) for side in size)


@each_model
def test_at_its_own_size_a_map_is_what_the_block_gives(kind):
    x, whole = torch.randn(2, 3, 32, 32), create(kind, dynamic_img_size=False).eval()
    seen = {}
    for i, block in enumerate(whole.blocks):
        block.register_forward_hook(lambda _module, _args, output, i=i: seen.update({i: output}))
    whole(x)
    features = create(kind, features_only=True, out_indices=(-1, 0)).eval()
    for y, level in zip(features(x), (-1, 0), strict=True):
        torch.testing.assert_close(y.flatten(2).transpose(1, 2), seen[whole.levels[level]])


@each_model
@pytest.mark.parametrize("size", [(64, 32), (16, 64), (48, 80)], ids=str)
def test_another_size_gives_what_a_model_built_for_it_gives(kind, size):
    """Also where the tokens are as many, in another shape."""
    x, any_size = torch.randn(2, 3, *size), create(kind, dynamic_img_size=True).eval()
    built = create(kind, img_size=size).eval()
    weights = copy.deepcopy(any_size.state_dict())
    for i, (own, target) in enumerate(zip(any_size.grids, built.grids, strict=True)):
        resample_tokens(weights, target, source=own, within=f"blocks.{i}.")
    built.load_state_dict(weights)
    torch.testing.assert_close(any_size(x), built(x))
    torch.testing.assert_close(any_size.forward_intermediates(x)[1], built.forward_intermediates(x)[1])


def test_indices_come_in_the_order_asked_for_and_may_repeat():
    model, x = create().eval(), torch.randn(2, 3, 32, 32)
    every = model.forward_intermediates(x, intermediates_only=True)
    chosen = model.forward_intermediates(x, [-1, 0, 0], intermediates_only=True)
    for got, level in zip(chosen, (2, 0, 0), strict=True):
        assert torch.equal(got, every[level])


def test_stages_are_levels():
    model = create("stages", features_only=True).eval()
    assert model.feature_info.reduction() == [2, 4, 8]
    assert [y.shape[1] for y in model(torch.randn(1, 3, 32, 32))] == [8, 16, 24]


def test_without_stages_the_default_is_the_pyramid_that_heads_expect():
    assert timm.create_model("imixer_s32_224", features_only=True).feature_info.reduction() == [4, 8, 16, 32]


@each_model
def test_gradients_reach_every_weight_at_another_size(kind):
    model = create(kind, features_only=True).train()
    model.set_grad_checkpointing() if hasattr(model, "set_grad_checkpointing") else None
    sum(y.square().mean() for y in model(torch.randn(2, 3, 48, 40))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_padding_repeats_the_border():
    model, x = create(features_only=True).eval(), torch.full((1, 3, 30, 26), 0.7)
    for got, whole in zip(model(x), model(torch.full((1, 3, 32, 28), 0.7)), strict=True):
        torch.testing.assert_close(got, whole[..., : got.shape[-2], : got.shape[-1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_indices": (7,)}, "3 levels"),
        ({"out_strides": (1, 2, 3, 4)}, "at most 3"),
        ({"out_strides": (8, 4)}, "do not fall"),
        ({"out_strides": (0, 4)}, "1 or more"),
        ({"out_strides": {5: 4}}, "3 levels"),
    ],
)
def test_impossible_levels_and_strides_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create(features_only=True, **options)


class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base_layer, self.A = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, x):
        return self.base_layer(x) + self.A(x)


@pytest.mark.parametrize(
    ("kind", "way"), [("plain", "fc_in"), ("plain", "fc_out"), ("tied", "fc_in"), ("mixer", "fc2")]
)
@pytest.mark.parametrize("put", [parametrizations.weight_norm, LoRA])
def test_what_is_put_on_the_token_mixing_is_refused_at_another_size_in_a_sentence(kind, way, put):
    model = create(kind, features_only=True).eval()
    mlp = model.model.blocks[1].mlp_tokens
    setattr(mlp, way, put(getattr(mlp, way)))
    assert model(torch.randn(1, 3, 32, 32)) if kind != "tied" or put is not LoRA else True
    with pytest.raises(
        ValueError, match=rf"blocks\.1\.mlp_tokens\.{way}\.\w+ is no .*; give images of 32x32, or merge"
    ):
        model(torch.randn(1, 3, 48, 40))


def test_a_model_of_any_size_is_not_scripted():
    with pytest.raises(ValueError, match="dynamic_img_size"):
        torch.jit.script(create(dynamic_img_size=True).eval())


# --- libraries that take timm's features ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("imixer_laptop_32.cifar10", {"encoder_depth": 3, "encoder_weights": True}),
        ("imixer_t4_32", {"out_strides": (4, 8, 16, 32)}),
        ("imixer_t4_32", {}),
        ("imixer_n2_8", {"encoder_depth": 2, "in_channels": 1}),
    ],
)
def test_segmentation_models_pytorch_takes_an_imixer_as_its_encoder(name, options):
    smp = pytest.importorskip("segmentation_models_pytorch")
    depth = options.get("encoder_depth", 5)
    given = {"encoder_weights": None, "decoder_channels": [16] * depth, "classes": 2, **options}
    model = smp.Unet(f"tu-{name}", **given).train()
    x = torch.randn(2, given.get("in_channels", 3), 64, 96)
    masks = model(x)
    assert masks.shape == (2, 2, 64, 96)
    masks.mean().backward()


@pytest.mark.parametrize("head", ["FPN", "UPerNet", "MAnet"])
def test_heads_that_need_a_pyramid_get_one(head):
    smp = pytest.importorskip("segmentation_models_pytorch")
    make = getattr(smp, head)
    model = make("tu-imixer_t4_32", encoder_weights=None, classes=3, out_strides=(4, 8, 16, 32)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_dpt_takes_the_blocks():
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.DPT("tu-imixer_t4_32", encoder_weights=None, classes=3, dynamic_img_size=True).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape[:2] == (1, 3)


class Backbone(nn.Module):
    """What torchvision's own `BackboneWithFPN` does, over timm's features."""

    def __init__(self, name, **options):
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        self.body = timm.create_model(name, features_only=True, **options)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 16)
        self.out_channels = 16

    def forward(self, x):
        return self.fpn({str(i): y for i, y in enumerate(self.body(x))})


def test_torchvisions_detection_takes_an_imixer_as_its_backbone():
    """Its transform scales and pads images of different sizes."""
    detection = pytest.importorskip("torchvision.models.detection")
    torch.manual_seed(0)
    backbone = Backbone("imixer_t4_32", **SMALL)
    sizes = tuple((8 * 2**i,) for i in range(3))
    anchors = detection.rpn.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    pool = pytest.importorskip("torchvision.ops").MultiScaleRoIAlign(["0", "1", "2"], 4, 2)
    model = detection.FasterRCNN(
        backbone, 2, min_size=64, max_size=96, rpn_anchor_generator=anchors, box_roi_pool=pool,
        rpn_post_nms_top_n_train=20, rpn_post_nms_top_n_test=20,
    )  # fmt: skip
    images = [torch.rand(3, 40, 70), torch.rand(3, 50, 50)]
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    sum(model.train()(images, [target, target]).values()).backward()
    assert backbone.body.model.blocks[0].mlp_tokens.fc_in.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert {"boxes", "labels", "scores"} <= set(model.eval()(images)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "layers"), [("imixer_t4_32", ["blocks.3", "blocks.7"]), ("imixer_laptop_32.cifar10", [0, 1])], ids=str
)
def test_anomalibs_patchcore_takes_an_imixer_as_its_backbone(name, layers):
    patchcore = pytest.importorskip("anomalib.models.image.patchcore.torch_model")
    model = patchcore.PatchcoreModel(backbone=name, layers=layers, pre_trained="." in name, num_neighbors=3).train()
    images = torch.rand(4, 3, 64, 48)
    model(images)
    model.subsample_embedding(0.02)
    with torch.no_grad():
        found = model.eval()(images)
    assert found.anomaly_map.shape[-2:] == (64, 48) and found.pred_score.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_anomalibs_padim_takes_an_imixer_as_its_backbone():
    padim = pytest.importorskip("anomalib.models.image.padim.torch_model")
    model = padim.PadimModel(backbone="imixer_t4_32", layers=["blocks.3", "blocks.7"], pre_trained=False, n_features=8)
    images = torch.rand(12, 3, 32, 48)
    model.train()(images)
    model.fit()
    with torch.no_grad():
        found = model.eval()(images[:2])
    assert found.anomaly_map.shape[-2:] == (32, 48) and found.pred_score.isfinite().all()


def test_dense_features_can_be_had_without_timm():
    model = DenseFeatures(Mixer(img_size=16, patch_size=4, **SMALL, dynamic_img_size=True), out_strides=(4, 8))
    assert [tuple(y.shape) for y in model(torch.randn(1, 3, 16, 24))] == [(1, 16, 4, 6), (1, 16, 2, 3)]
