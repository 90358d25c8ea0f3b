"""A whitened stem gets its filters from the training images, once, and keeps them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.sources.open import open_dataset
from imixer.models.stems import Whitening, patch_covariance
from imixer.training.model import build_model
from imixer.training.run.config import ModelConfig, TrainConfig
from imixer.training.whitening import whiten_stem

STEM = ["--model.stem", "whitened"]


def filters(run):
    return load_file(run / "model" / "model.safetensors")["stem.proj.weight"]


@pytest.fixture(scope="module")
def whitened(train_quick, tmp_path_factory):
    return train_quick(tmp_path_factory.mktemp("whitening") / "run", *STEM, "--optim.opt", "muon", "--ema", "0.9")


def test_training_whitens_the_training_images_patches(whitened):
    data = open_dataset(DataConfig())
    images = torch.stack([torch.from_numpy(np.array(image))[None] / 255 for image, _ in data.train])
    images = (images - data.mean[0]) / data.std[0]
    stem = Whitening(1)
    stem.whiten(patch_covariance(images))
    torch.testing.assert_close(filters(whitened), stem.weight, rtol=1e-4, atol=1e-4)


def test_the_filters_do_not_depend_on_seed_or_pipeline(whitened, train_quick, tmp_path):
    other = train_quick(tmp_path / "other", *STEM, "--seed", "3", "--data.pipeline", "device", "--data.hflip", "0.5")
    assert torch.equal(filters(other), filters(whitened))


def test_weights_that_are_loaded_keep_their_filters(whitened):
    checkpoint = str(whitened / "model" / "model.safetensors")
    config = TrainConfig(model=ModelConfig(stem="whitened", num_blocks=1, embed_dim=16, checkpoint=checkpoint))
    data = open_dataset(config.data)
    built = build_model(config.model, config.data, native_size=(8, 8), in_chans=1, num_classes=10)
    assert not whiten_stem(built.model, config, data, built.input_size)
    assert torch.equal(built.model.stem.proj.weight, filters(whitened))


def test_other_stems_have_nothing_to_whiten():
    config = TrainConfig(model=ModelConfig(num_blocks=1, embed_dim=16))
    built = build_model(config.model, config.data, native_size=(8, 8), in_chans=1, num_classes=10)
    assert not whiten_stem(built.model, config, open_dataset(config.data), built.input_size)


def test_a_run_with_a_whitened_stem_is_evaluated_and_restored(whitened, capsys):
    assert main(["evaluate", str(whitened)]) == 0


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ["--model.stem", "conv", "--model.patch_size", "3", "--data.image_size", "9"],
            ["power of 2"],
        ),
        (["--model.num_blocks", "[1,1,1,1]", "--model.embed_dim", "8"], ["stage 4 halves the token grid"]),
        (["--model.name", "resnet18", "--model.stem", "conv"], ["resnet18 has no option model.stem"]),
        (["--model.stem", "deeper"], ["model.stem", "patch, conv, whitened, deep"]),
        (["--model.name", "mixer_t2_8", "--model.num_blocks", "0", "--optim.opt", "muon"], ["muon moves matrices"]),
        (["--model.patch_size", "4", "--model.stem", "conv", "--data.image_size", "10"], ["do not tile"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags, parts, capsys, tmp_path):
    assert main(["train", "--out", str(tmp_path / "run"), *flags]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imixer: ")
    for part in parts:
        assert part in line
