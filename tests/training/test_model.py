"""Which model is built, and what is refused."""

import pytest

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.training.model import build_model, default_name
from imixer.training.run.config import ModelConfig


def build(native_size=None, image_size=None, in_chans=3, **config):
    data = DataConfig(image_size=image_size)
    return build_model(ModelConfig(**config), data, native_size=native_size, in_chans=in_chans, num_classes=2)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ((8, 8), "imixer_t2_8"),
        ((28, 28), "imixer_t4_32"),
        ((32, 32), "imixer_t4_32"),
        ((96, 96), "imixer_s16_224"),
        (None, "imixer_s16_224"),
    ],
)
def test_the_default_follows_the_images(size, name):
    assert default_name(size) == name


def test_the_input_is_the_models_own_unless_asked(tmp_path):
    assert build(native_size=(28, 28), num_blocks=1).input_size == (3, 32, 32)
    assert build(native_size=(28, 28), image_size=28, num_blocks=1).input_size == (3, 28, 28)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"name": "imixer_t4_23"}, ["imixer_t4_23", "imixer_t4_32"]),
        ({"name": "hf-hub:someone/model"}, ["model.checkpoint"]),
        ({"name": "mixer_t4_32", "n_iter": 3}, ["mixer_t4_32", "model.n_iter"]),
        ({"name": "mixer_t4_32", "kwargs": {"wings": 2}}, ["mixer_t4_32", "model.wings"]),
        ({"name": "imixer_t4_32", "kwargs": {"num_classes": 2}}, ["num_classes", "data"]),
        ({"name": "imixer_t4_32", "act_layer": "gelo"}, ["act_layer", "gelo"]),
        ({"name": "imixer_t4_32", "n_iter": -1}, ["n_iter", "-1"]),
        ({"name": "imixer_t4_32", "image_size": 30}, ["4x4", "30x30"]),
        ({"name": "imixer_t4_32", "image_size": (32, 34)}, ["4x4", "32x34"]),
        ({"name": "imixer_t4_32", "patch_size": 64}, ["64x64", "32x32"]),
        ({"name": "imixer_t4_32", "patch_size": 0}, ["0x0"]),
        ({"name": "imixer_t4_32", "embed_dim": -8}, ["embed_dim"]),
        ({"name": "imixer_t4_32", "pretrained": True}, ["pretrained", "imixer_t4_32"]),
        ({"name": "imixer_t4_32", "checkpoint": "nowhere.pt"}, ["nowhere.pt"]),
        ({"name": "imixer_t4_32", "num_blocks": 0}, ["model.num_blocks", "no block", "mixer_*"]),
        ({"name": "imixer_t4_32", "num_blocks": [0, 0, 0], "patch_size": 2}, ["model.num_blocks", "no block"]),
        (
            {"name": "imixer_laptop_32.cifar10", "pretrained": True, "in_chans": 1},
            ["model.pretrained: in_chans is 1", "whitening of 3 channels"],
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(config, parts):
    with pytest.raises(InputError) as refused:
        build(**config)
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["resnet18", "--data.batch_size", "1"], ["batch norms", "1 image of 32x32", "raise data.batch_size"]),
        (["resnet18", "--data.batch_size", "4", "--accumulate", "4"], ["1 image of 32x32", "lower accumulate"]),
        (["vgg11", "--data.image_size", "16"], ["vgg11 leaves nothing of an image of 16x16"]),
    ],
    ids=str,
)
def test_images_that_a_model_cannot_be_trained_on_are_refused_in_a_line(words, parts, elsewhere, capsys):
    name, *more = words
    size = [] if "--data.image_size" in more else ["--data.image_size", "32"]
    assert main(["train", "--recipe", "digits_general", "--out", "run", "--model.name", name, *size, *more]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imixer: ") and all(part in line for part in parts), line
    assert list(elsewhere.iterdir()) == []
