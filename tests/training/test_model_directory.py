"""A trained model comes back through timm."""

import json

import pytest
import timm
import torch

from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.training.model import build_model
from imixer.training.model_directory import load_model, save_model
from imixer.training.run.config import ModelConfig


def test_timm_restores_the_trained_model(run):
    trained = torch.load(run / "checkpoints" / "step-00000044.pt", weights_only=True)["model"]
    fresh = timm.create_model("imixer_t2_8", img_size=8, in_chans=1, num_classes=10, num_blocks=1, embed_dim=16)
    fresh.load_state_dict(trained)
    restored = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True)
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(fresh.eval()(images), restored.eval()(images))


def test_names_and_preparation_travel(run):
    cfg = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).pretrained_cfg
    assert list(cfg["label_names"]) == [str(digit) for digit in range(10)]
    assert tuple(cfg["input_size"]) == (1, 8, 8)
    assert cfg["num_classes"] == 10
    data = timm.data.resolve_data_config(pretrained_cfg=cfg)
    assert data["mean"] == pytest.approx(cfg["mean"])
    assert data["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (ModelConfig(name="imixer_t4_32", num_blocks=1, act_layer="silu", n_iter=3, norm="none"), (32, 32)),
        (ModelConfig(name="imixer_t2_8", num_blocks=1), (8, 12)),
        (ModelConfig(name="mixer_t2_8", num_blocks=1), (8, 8)),
        (ModelConfig(name="resnet10t"), (32, 32)),
        (ModelConfig(name="vit_tiny_patch16_224", kwargs={"depth": 1}), (32, 48)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_any_model_comes_back(tmp_path, config, size, in_chans):
    built = build_model(config, DataConfig(image_size=size), native_size=None, in_chans=in_chans, num_classes=3)
    path = tmp_path / "model"
    statistics = ((0.4,) * in_chans, (0.2,) * in_chans)
    save_model(
        built,
        built.model.state_dict(),
        path,
        class_names="abc",
        mean=statistics[0],
        std=statistics[1],
        crop_pct=0.9,
        interpolation="bilinear",
    )
    restored = load_model(path)
    images = torch.randn(2, in_chans, *size)
    assert torch.equal(built.model.eval()(images), restored(images))
    assert tuple(restored.pretrained_cfg["input_size"]) == (in_chans, *size)
    assert restored.pretrained_cfg["crop_pct"] == 0.9


def test_a_damaged_directory_is_refused(run, tmp_path):
    config = json.loads((run / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=str(tmp_path)):
        load_model(tmp_path)
