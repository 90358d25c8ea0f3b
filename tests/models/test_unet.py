"""The U-Net takes images of any size, gives its maps by depth, and is a segmentation's backbone."""

import pytest
import timm
import torch

import imixer.models  # noqa: F401  (registers it)


@pytest.mark.parametrize("size", [(32, 32), (37, 21), (8, 9), (1, 1)])
def test_maps_have_the_size_of_the_image_at_each_depth(size):
    model = timm.create_model("unet_16", features_only=True, in_chans=1).eval()
    maps = model(torch.randn(2, 1, *size))
    sides = [size]
    while len(sides) < 4:
        sides.append(tuple(-(-side // 2) for side in sides[-1]))
    assert [tuple(each.shape) for each in maps] == [(2, 16 << i, *side) for i, side in enumerate(sides)]
    assert model.feature_info.reduction() == [1, 2, 4, 8]


def test_it_classifies_images_and_its_classifier_can_be_replaced():
    model = timm.create_model("unet_16", num_classes=7).eval()
    image = torch.randn(2, 3, 16, 16)
    maps = model.forward_intermediates(image, intermediates_only=True)
    torch.testing.assert_close(model(image), model.head(maps[0].mean((2, 3))))
    model.reset_classifier(3)
    assert model(image).shape == (2, 3)
    model.reset_classifier(2, "catavgmax")
    assert model(image).shape == (2, 2) and model.head.in_features == 32
    model.reset_classifier(0, "")
    assert model(image).shape == (2, 16, 16, 16)
    for build in (lambda: model.reset_classifier(5), lambda: timm.create_model("unet_16", global_pool="")):
        with pytest.raises(ValueError, match="global_pool is empty"):
            build()
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(image, output_fmt="NLC")
    with pytest.raises(ValueError, match="widths is empty"):
        timm.create_model("unet_16", widths=())


def test_it_is_made_where_and_of_what_type_it_is_asked_for():
    model = timm.create_model("unet_16", device="meta", dtype=torch.bfloat16)
    model.reset_classifier(3)
    held = [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if "num_batches" not in name)]
    assert {(tensor.device.type, tensor.dtype) for tensor in held} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("levels", [(3,), (2, 3), (0,), (1, 3)])
def test_what_no_chosen_map_needs_is_neither_kept_nor_computed(levels):
    torch.manual_seed(0)
    model = timm.create_model("unet_16", features_only=True, out_indices=levels).eval()
    torch.manual_seed(0)
    whole = timm.create_model("unet_16", features_only=True).eval()
    image = torch.randn(2, 3, 16, 24)
    assert len(model.model.up) == 3 - min(levels)
    for one, other in zip(model(image), [whole(image)[level] for level in levels], strict=True):
        torch.testing.assert_close(one, other)
    early = whole.model.forward_intermediates(image, list(levels), stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early, model(image))


@pytest.mark.parametrize("levels", [None, [0], [2], [0, 3]])
def test_every_parameter_of_a_linear_head_on_it_is_trained(levels):
    model = timm.create_model("segmenter", backbone="unet_16", head="linear", levels=levels, num_classes=5)
    assert model.levels == ((0,) if levels is None else (levels[-1],))
    model(torch.randn(2, 3, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert timm.create_model("unet_16", num_classes=2).prune_intermediate_layers([3], prune_head=False) == [3]


@pytest.mark.parametrize("widths", [(8,), (8, 16), (4, 6, 8, 10, 12)])
def test_all_maps_of_any_depth_are_features(widths):
    model = timm.create_model("unet_16", widths=widths, features_only=True).eval()
    assert [each.shape[1] for each in model(torch.randn(1, 3, 32, 32))] == list(widths)


def test_each_depth_is_seen_by_the_last_map():
    """What a skip carries, and what comes from below it, both matter."""
    model = timm.create_model("unet_16", widths=(4, 6, 8)).eval()
    image = torch.randn(1, 3, 16, 16)
    whole = model.forward_features(image)
    for pair in model.down:
        handle = pair.register_forward_hook(lambda module, given, out: torch.zeros_like(out))
        assert not torch.allclose(model.forward_features(image), whole)
        handle.remove()


def test_a_linear_head_is_the_usual_unet():
    model = timm.create_model("segmenter", backbone="unet_16", head="linear", num_classes=5).eval()
    image = torch.randn(2, 3, 24, 16)
    last = model.backbone(image)[0]
    torch.testing.assert_close(model(image), model.head(model.norms[0](last)))
    assert model(image).shape == (2, 5, 24, 16) and model.head.kernel_size == (1, 1)
