"""Weights from a file."""

import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

import imixer.models  # noqa: F401
from imixer.errors import InputError
from imixer.models import resample_tokens
from imixer.training.initial_weights import find_start, load_weights
from imixer.training.run.config import ModelConfig


def model(name="imixer_t2_8", **kwargs):
    return timm.create_model(name, **{"num_blocks": 1, "num_classes": 4, **kwargs})


def same(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod."])
def test_plain_tensors_load(tmp_path, wrap, prefix):
    source, target = model(), model()
    torch.save(wrap({prefix + name: value for name, value in source.state_dict().items()}), tmp_path / "w.pt")
    assert load_weights(target, str(tmp_path / "w.pt")).classifier
    assert same(source, target)


def test_safetensors_load(tmp_path):
    source, target = model(), model()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, str(tmp_path / "w.safetensors"))
    assert same(source, target)


def test_a_folder_that_says_its_image_size_is_resampled_from_its_grid(tmp_path, caplog):
    def made(*size):
        return timm.create_model("imixer_n2_8", num_classes=3, img_size=size)

    source, target = made(8, 32), made(8, 16)  # 4x16 tokens, which could be 8x8
    args = {"num_classes": 3, "img_size": [8, 32]}
    save_for_hf(source, tmp_path, model_args=args, safe_serialization=True)
    find_start(ModelConfig(checkpoint=str(tmp_path))).load_into(target)
    state = source.state_dict()
    resample_tokens(state, (4, 8), source=(4, 16))
    assert torch.equal(target.blocks[0].mlp_tokens.fc_in.weight, state["blocks.0.mlp_tokens.fc_in.weight"])
    assert not caplog.records


def test_the_checkpoint_of_a_run_loads(run):
    target = model(num_classes=10, in_chans=1, embed_dim=16)
    assert load_weights(target, str(run / "checkpoints" / "step-00000044.pt")).name == "model"


def test_another_number_of_classes_keeps_the_new_classifier(tmp_path):
    source, target = model(num_classes=4), model(num_classes=7)
    head = target.head.weight.clone()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert not load_weights(target, str(tmp_path / "w.safetensors")).classifier
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.stem.proj.weight, source.stem.proj.weight)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(InputError, match=f"{name} is not a file of plain tensors and was not executed"):
            load_weights(model(), name)
    assert not (tmp_path / "executed").exists()


def save_other_width(path):
    torch.save(model(embed_dim=8).state_dict(), path)


def save_vanilla(path):
    torch.save(model("mixer_t2_8").state_dict(), path)


def save_more_blocks(path):
    torch.save(model(num_blocks=2).state_dict(), path)


@pytest.mark.parametrize(
    ("save", "parts"),
    [
        (save_other_width, ["stem.proj.weight", "[8, 3, 2, 2]", "[96, 3, 2, 2]"]),
        (save_vanilla, ["mlp_tokens"]),
        (save_more_blocks, ["blocks.1."]),
        (lambda path: torch.save([1, 2], path), ["no state dict"]),
        (lambda path: torch.save({}, path), ["no state dict"]),
        (lambda path: path.write_bytes(b""), ["cannot be read"]),
        (lambda path: path.write_bytes(b"PK\x03\x04 damaged"), ["cannot be read"]),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, save, parts):
    save(tmp_path / "w.pt")
    with pytest.raises(InputError) as refused:
        load_weights(model(), str(tmp_path / "w.pt"))
    for part in ["w.pt", *parts]:
        assert part in str(refused.value)
