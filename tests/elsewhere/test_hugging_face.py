"""Hugging Face's Transformers and Accelerate take an iMixer as they take a timm Mixer."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import imixer

transformers = pytest.importorskip("transformers")

SIZES = {"num_blocks": 2, "embed_dim": 16}
NAMES = ["mixer_t4_32", "imixer_t4_32"]  # the one is what the other is measured by


def trained_like(name="imixer_t4_32", **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **SIZES, **options)
    nn.init.normal_(model.head.weight, std=0.1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, imixer.implicit.SpectralLinear):
                layer.weight.mul_(4).add_(torch.randn_like(layer.weight) / 10)  # above its ceiling
                layer.warm_up()
    return model.eval()


def written(model, folder, name="imixer_t4_32", state=None, **options):
    """Write a model as `imixer train` does."""
    folder.mkdir()
    config = {
        "architecture": name,
        "num_classes": 3,
        "label_names": ["cat", "dog", "owl"],
        "model_args": SIZES | options,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0,
                           "interpolation": "bicubic", "num_classes": 3, "tag": "imixer"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict() if state is None else state, folder / "model.safetensors", {"format": "pt"})
    return folder


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def close(theirs, ours):
    """The same to rounding: where numbers lie in memory decides how they are summed."""
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def load(folder, **kwargs):
    return transformers.AutoModelForImageClassification.from_pretrained(folder, **kwargs).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_comes_back_bit_for_bit_and_goes_out_again(name, tmp_path):
    model = trained_like(name)
    theirs = load(written(model, tmp_path / "model", name))
    close(theirs(images()).logits, model(images()))
    for key, value in theirs.timm_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    theirs.save_pretrained(tmp_path / "again")
    close(load(tmp_path / "again")(images()).logits, model(images()))


def test_weights_without_the_power_iterations_vector_give_the_numbers_that_timm_gives(tmp_path):
    model = trained_like()
    state = {key: value for key, value in model.state_dict().items() if not key.endswith(".v")}
    theirs = load(written(model, tmp_path / "model", state=state))
    torch.testing.assert_close(theirs(images()).logits, model(images()), rtol=1e-4, atol=1e-5)


def test_memory_that_was_only_allocated_is_given_numbers():
    model = timm.create_model("imixer_t4_32", device="meta", **SIZES).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(float("nan"))
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    layer = model.blocks[0].mlp_tokens.contraction.fc1
    torch.testing.assert_close(layer.sigma(), layer.sigma(exact=True), rtol=1e-2, atol=0)
    assert model(images()).isfinite().all()


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), 0.0, 1e-42, 1e38])
def test_a_vector_of_rubbish_does_not_outlive_the_warm_up(rubbish):
    layer = imixer.implicit.SpectralLinear(6, 4)
    expected = layer.sigma()
    layer.v.fill_(rubbish)
    layer.warm_up()
    torch.testing.assert_close(layer.sigma(), expected, rtol=1e-3, atol=0)


def test_the_published_codes_weights_load_as_timm_loads_them(golden, tmp_path):
    config = json.loads((golden / "authors_a_config.json").read_text())
    config["n_iter"] = config.pop("n_repeat")
    state = torch.load(golden / "authors_a_checkpoint.pth", weights_only=True)
    expected = torch.load(golden / "authors_a_expected.pth", weights_only=True)
    folder = tmp_path / "model"
    folder.mkdir()
    written = {"architecture": "imixer_s16_224", "num_classes": config.pop("num_classes"), "model_args": config}
    (folder / "config.json").write_text(json.dumps(written | {"pretrained_cfg": {"input_size": [3, 32, 32]}}))
    state = state.get("state_dict", state.get("model", state))
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load(folder)(expected["x"]).logits, expected["logits"], rtol=0, atol=1e-5)


def test_weights_of_another_image_size_load_as_timm_loads_them(tmp_path):
    model = trained_like()
    folder = written(model, tmp_path / "model", img_size=48)
    expected = timm.create_model("imixer_t4_32", num_classes=3, img_size=48, **SIZES).eval()
    expected.load_state_dict(model.state_dict())
    close(load(folder)(images(48)).logits, expected(images(48)))


def test_published_names_load_and_are_saved_under_ours(tmp_path):
    model = trained_like(num_layers=2)
    mixer = timm.create_model("mixer_t4_32", num_classes=3, **SIZES).eval()
    folder = written(mixer, tmp_path / "model", num_layers=2)
    model.load_state_dict(mixer.state_dict())
    theirs = load(folder)
    close(theirs(images()).logits, model(images()))
    theirs.save_pretrained(tmp_path / "again")
    assert "timm_model.blocks.0.mlp_tokens.fc_in.weight" in {
        key if key.startswith("timm_model.") else f"timm_model.{key}"
        for key in load_file(tmp_path / "again/model.safetensors")
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_names_the_classes(name, tmp_path):
    model = trained_like(name)
    folder = written(model, tmp_path / "model", name)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    answers = transformers.pipeline("image-classification", model=str(folder))(Image.fromarray(pixels))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    expected = model(x).softmax(1)[0].detach()
    assert {answer["label"] for answer in answers} == {"cat", "dog", "owl"}
    for answer in answers:
        index = ["cat", "dog", "owl"].index(answer["label"])
        assert answer["score"] == pytest.approx(float(expected[index]), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_trains_and_resumes(name, tmp_path):
    pytest.importorskip("accelerate")
    model = load(written(trained_like(name), tmp_path / "model", name))
    data = [{"pixel_values": image, "labels": number % 3} for number, image in enumerate(images().repeat(6, 1, 1, 1))]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, max_steps=4, save_steps=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    straight = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, straight[key], msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_prepares_and_steps(name):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = trained_like(name).train()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.blocks[0].mlp_tokens.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    for _ in range(2):
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(images()), torch.tensor([0, 1])))
            optimizer.step()
            optimizer.zero_grad()
    after = accelerator.unwrap_model(model).blocks[0].mlp_tokens.state_dict()
    assert [key for key in before if torch.equal(before[key], after[key]) and not key.endswith(".v")] == []
