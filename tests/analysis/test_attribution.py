"""An attribution is Grad-CAM, for the class, block and image asked for."""

import json

import pytest
import timm
import torch
from torch import nn

import imixer  # noqa: F401
from imixer.analysis.analyze import analyze
from imixer.analysis.attribution import attribution_of
from imixer.analysis.views.attribution import ANALYSIS, draw
from imixer.errors import InputError

NAMES = ("cat", "dog", "owl")
IMAGE = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
KINDS = [("mixer_t2_8", {}), ("imixer_t2_8", {}), ("imixer_t2_8", {"solver": "picard", "gradient": "implicit"})]


def create(name="imixer_t2_8", **options):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=(8, 12), num_blocks=3, embed_dim=16, num_classes=3, **options).eval()
    nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize(("name", "options"), KINDS, ids=str)
@pytest.mark.parametrize("block", [0, 2])
def test_the_map_is_that_of_the_formula(name, options, block):
    model = create(name, **options | ({"coeff": 0.5} if options else {}))
    found = attribution_of(model, IMAGE, NAMES, target="owl", block=block)
    y = model.stem(IMAGE[None])
    for module in model.blocks[: block + 1]:
        y = module(y)
    y = y.detach().requires_grad_()
    logits = model.forward_head(model.norm(model.blocks[block + 1 :](y)))[0]
    logits[2].backward()
    expected = (y[0] @ y.grad[0].mean(0)).detach().relu()
    torch.testing.assert_close(found.map.flatten().float(), expected / expected.max(), rtol=1e-4, atol=1e-5)
    assert found.map.shape == (4, 6)
    assert (found.class_name, found.predicted) == ("owl", NAMES[logits.argmax()])
    assert found.probability == pytest.approx(float(logits.softmax(0)[2]), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "block", "shape", "covered"),
    [
        ({"num_blocks": 3, "embed_dim": 16}, 0, (3, 4), (6, 8)),
        ({"num_blocks": [1, 1, 1], "embed_dim": [8, 12, 16]}, 0, (3, 4), (6, 8)),
        ({"num_blocks": [1, 1, 1], "embed_dim": [8, 12, 16]}, 4, (1, 1), (8, 8)),
    ],
    ids=["blocks", "first stage", "last stage"],
)
def test_tokens_of_padding_alone_are_no_part_of_the_map(options, block, shape, covered):
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", num_classes=3, dynamic_img_size=True, **options).eval()
    nn.init.normal_(model.head.weight)
    found = attribution_of(model, torch.randn(3, 5, 8), NAMES, block=block)
    assert found.map.shape == shape and found.covered == covered
    (over,) = (axes for axes in draw(found).axes if len(axes.images) == 2)
    assert over.images[1].get_extent() == [0, covered[1], covered[0], 0]
    assert (over.get_xlim(), over.get_ylim()) == ((0, 8), (5, 0))


def test_it_is_what_the_package_grad_cam_finds():
    cam = pytest.importorskip("pytorch_grad_cam")
    scale_cam_image = pytest.importorskip("pytorch_grad_cam.utils.image").scale_cam_image
    target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(1)
    model = create()
    method = cam.GradCAM(model, [model.blocks[1]], reshape_transform=lambda x: x.transpose(1, 2).unflatten(2, (4, 6)))
    expected = method(IMAGE[None], targets=[target])[0]
    found = attribution_of(model, IMAGE, NAMES, target="dog", block=1)
    once = scale_cam_image(found.map[None].float().numpy(), (12, 8))  # and again where it joins layers
    assert scale_cam_image(once)[0] == pytest.approx(expected, abs=1e-4)


def test_by_default_it_explains_the_first_class_by_the_last_block():
    model = create()
    found = attribution_of(model, IMAGE, NAMES)
    assert (found.block, found.class_name) == (2, NAMES[int(model(IMAGE[None]).argmax())])
    assert float(found.map.max()) == 1 and float(found.map.min()) >= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"target": "dgo"}, "target is dgo.*cat, dog, owl.*did you mean dog"), ({"block": 3}, "block is 3.*0 to 2"),
     ({"block": -1}, "block is -1.*0 to 2")],
)  # fmt: skip
def test_what_is_not_there_is_said(options, message):
    with pytest.raises(InputError, match=message):
        attribution_of(create(), IMAGE, NAMES, **options)


def test_a_run_is_explained_by_the_command(train_quick, tmp_path):
    found, files = analyze(ANALYSIS, str(train_quick(tmp_path / "run")), device="cpu", image=1)
    assert [file.name for file in files] == ["attribution.json", "attribution.png", "attribution.pdf"]
    written = json.loads(files[0].read_text())
    assert written["class"] == found.class_name and torch.tensor(written["map"]).shape == found.map.shape
