"""Models that ship with the package, and `imixer export --format package`, which makes them of runs."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import imixer.weights
from imixer.cli import main
from imixer.implicit import SpectralLinear
from imixer.training.evaluate import score
from imixer.training.finished_run import load_run
from imixer.training.run.parsing import load_config
from imixer.weights import MOST_BYTES, find_packaged, packaged_models, size_of

SHIPPED = packaged_models()
DIGITS = "imixer_n2_8.digits"


pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture(scope="module")
def laptop(train_quick, tmp_path_factory):
    """A run of a recipe whose architecture has a name of its own, on a folder that is called like a known data set."""
    folder = tmp_path_factory.mktemp("data") / "cifar10"
    for place, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number + 9 * place).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    out = tmp_path_factory.mktemp("runs") / "laptop"
    shape = ["--model.num_blocks", "[2, 4, 2]", "--model.embed_dim", "[64, 128, 192]"]  # over those of a quick run
    data = ["--data.name", str(folder), "--data.batch_size", "4", "--budget", "null", "--precision", "32"]
    return train_quick(out, "--recipe", "laptop/imixer_cifar10", *shape, *data, "--schedule.warmup_share", "null")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """An empty place for packaged models, instead of the package's."""
    monkeypatch.setattr(imixer.weights, "FOLDER", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def refused(capsys, words, *parts):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in ("imixer: ", *parts):
        assert part in line


# --- what ships -------------------------------------------------------------------------------------------------------


def test_all_packaged_models_together_take_at_most_8_megabytes():
    assert sum(map(size_of, SHIPPED.values())) <= MOST_BYTES == 8_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_timm_knows_and_loads_every_packaged_model_without_a_network(name, monkeypatch):
    def refuse(*args):
        raise AssertionError("no network is needed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert name in timm.list_models(pretrained=True)
    model = timm.create_model(name, pretrained=True).eval()
    classes = model.pretrained_cfg["label_names"]
    logits = model(torch.randn(2, *model.pretrained_cfg["input_size"]))
    assert logits.shape == (2, len(classes)) and logits.isfinite().all()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    untrained = timm.create_model(name)
    assert {k: v.shape for k, v in untrained.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert not torch.equal(untrained.blocks[0].norm1.weight, model.blocks[0].norm1.weight)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_packaged_model_adapts_as_timms_do(name):
    size = timm.get_pretrained_cfg(name).input_size[-1]
    model = timm.create_model(name, pretrained=True)
    other = timm.create_model(name, pretrained=True, num_classes=3, img_size=2 * size, n_iter=4)
    assert other.num_classes == 3 and other.n_iter == 4
    assert torch.equal(other.blocks[0].norm1.weight, model.blocks[0].norm1.weight)
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=[0])
    assert len(features(torch.randn(1, *model.pretrained_cfg["input_size"]))) == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_what_was_measured(name):
    scores = json.loads((SHIPPED[name] / "evaluation.json").read_text())
    card = (SHIPPED[name] / "README.md").read_text()
    assert scores["model"] == name
    for part in (f"# {name}\n", f'create_model("{name}", pretrained=True)', f"{scores['top1']:.2%}", "seed"):
        assert part in card


@pytest.mark.parametrize("name", SHIPPED)
def test_rounding_keeps_every_norm_at_its_ceiling(name):
    for module in timm.create_model(name, pretrained=True).eval().modules():
        if isinstance(module, SpectralLinear):
            assert torch.linalg.matrix_norm(module.normalized_weight().double(), ord=2) <= 1.001 * module.coeff


def test_the_digits_score_as_their_card_says():
    measured = score(load_run(str(find_packaged(DIGITS)), "cpu"))
    assert measured.top1 == pytest.approx(
        json.loads((SHIPPED[DIGITS] / "evaluation.json").read_text())["top1"], abs=3e-3
    )
    assert measured.top1 > 0.95


def test_a_name_without_a_tag_stays_the_untrained_variant():
    model = timm.create_model("imixer_t2_8")
    assert (model.num_classes, timm.get_pretrained_cfg("imixer_t2_8").tag) == (1000, "untrained")


def test_the_laptop_variant_is_that_of_the_recipe(laptop):
    config = json.loads((laptop / "model" / "config.json").read_text())
    like = timm.create_model(config["architecture"], **config["model_args"])
    named = timm.create_model("imixer_laptop_32")
    assert {k: v.shape for k, v in named.named_parameters() if "head" not in k} == {
        k: v.shape for k, v in like.named_parameters() if "head" not in k
    }
    assert named.n_iter == like.n_iter


# --- --model ----------------------------------------------------------------------------------------------------------


def test_predict_needs_no_run(image, capsys):
    assert main(["predict", "--model", DIGITS, str(image)]) == 0
    first = capsys.readouterr().out
    assert main(["predict", str(image), "--model", DIGITS]) == 0
    assert capsys.readouterr().out == first
    assert f"picture: {DIGITS}/prediction.png" in first
    assert main(["predict", "--model", DIGITS, "--top", "1"]) == 0
    assert capsys.readouterr().out.count("held-out") == 8


def test_every_command_writes_about_a_packaged_model_into_a_folder_of_its_name(elsewhere, capsys):
    before = size_of(SHIPPED[DIGITS])
    assert main(["evaluate", "--model", DIGITS]) == 0
    assert main(["analyze", "weights", "--model", DIGITS]) == 0
    assert main(["analyze", "convergence", "--images", "4", "--model", DIGITS]) == 0
    assert main(["export", "--model", DIGITS, "--format", "torch"]) == 0
    written = {path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*") if path.is_file()}
    files = {"evaluation.json", "analysis/weights.json", "analysis/convergence.json", "model.pt2"}
    assert {f"{DIGITS}/{file}" for file in files} <= written
    assert all(file.startswith(f"{DIGITS}/") for file in written)
    assert size_of(SHIPPED[DIGITS]) == before


def test_the_folder_of_what_was_written_about_a_packaged_model_does_not_hide_it(elsewhere, capsys):
    assert main(["analyze", "weights", "--model", DIGITS]) == 0
    words = ["train", "--out", "tuned", "--model.checkpoint", DIGITS, "--finetune", "head", "--epochs", "1"]
    assert main(words) == 0
    assert load_config(Path("tuned/config.yaml")).model.checkpoint == DIGITS
    shutil.rmtree("tuned/model")
    Path("tuned/result.json").unlink()
    assert main(["train", "--resume", "tuned"]) == 0
    capsys.readouterr()
    refused(capsys, ["train", "--model.checkpoint", f"./{DIGITS}"], "is a folder")  # the outputs
    refused(capsys, [*words[:2], "again", *words[3:], "--optim.opt", "muon"], "none but stem and classifier is trained")


def test_runs_and_packaged_models_are_compared(run, elsewhere, capsys):
    refused(capsys, ["analyze", "convergence", run, "--model", DIGITS], f"{run} has 1 block and {DIGITS} has")
    assert main(["analyze", "convergence", "--model", DIGITS, DIGITS, "--images", "4"]) == 0
    assert (elsewhere / DIGITS / "analysis" / "convergence_compared.json").is_file()


@pytest.mark.parametrize("command", [["predict"], ["evaluate"], ["analyze", "weights"], ["export"]])
def test_a_wrong_name_is_one_line(command, run, elsewhere, capsys):
    refused(capsys, [*command, "--model", "imixer_n2_8.digts"], "'imixer_n2_8.digts'; did you mean imixer_n2_8.digits?")
    refused(capsys, [*command, "--model", "../digits"], "no packaged model '../digits'")
    refused(capsys, [*command, "--model", "zzz"], "there is", DIGITS)
    refused(capsys, [*command, "--model"], "--model", "expected")
    refused(capsys, command, "RUN is missing")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_a_run_beside_a_model_is_refused(command, run, capsys):
    refused(capsys, [command, run, "--model", DIGITS], f"model is {DIGITS}", str(run))


def test_what_stands_in_the_way_of_the_outputs_is_named(elsewhere, capsys, run):
    (elsewhere / DIGITS).write_text("a file")
    refused(capsys, ["evaluate", "--model", DIGITS], f"the folder {DIGITS} cannot be made here")
    (elsewhere / DIGITS).unlink()
    shutil.copytree(run, elsewhere / DIGITS)
    refused(capsys, ["evaluate", "--model", DIGITS], f"{DIGITS} is a run here")


# --- export --format package ------------------------------------------------------------------------------------------


def test_a_package_is_a_small_run_in_float16(run, elsewhere, image, capsys):
    assert main(["export", str(run), "--format", "package", "--out", "imixer_t2_8.mine"]) == 0
    shown = capsys.readouterr().out
    folder = elsewhere / "imixer_t2_8.mine"
    whole = {"README.md", "config.yaml", "evaluation.json", "result.json", "model"}
    assert {path.name for path in folder.iterdir()} == whole
    stored, trained = load_file(folder / "model" / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    assert stored.keys() == trained.keys()
    parameters = dict(load_run(str(run), "cpu").model.named_parameters())
    for name, tensor in stored.items():
        assert torch.equal(tensor, trained[name].half() if name in parameters else trained[name])
    scores = json.loads((folder / "evaluation.json").read_text())
    assert scores["top1"] == pytest.approx(score(load_run(str(folder), "cpu")).top1, abs=1e-6)
    assert float(re.search(r"top1 ([\d.]+)", shown)[1]) == pytest.approx(scores["top1"], abs=1e-3)
    assert main(["predict", str(folder), str(image)]) == 0
    assert main(["analyze", "weights", str(folder)]) == 0
    assert "local-dir:" in (folder / "README.md").read_text()
    refused(capsys, ["export", run, "--format", "package", "--out", folder], "exists")


def test_a_package_forgets_where_the_data_lay_and_finds_them_again(laptop, own_folder, elsewhere, image, capsys):
    folder, data = own_folder / "imixer_laptop_32.cifar10", yaml.safe_load((laptop / "config.yaml").read_text())["data"]
    assert main(["export", str(laptop), "--format", "package", "--out", str(folder)]) == 0
    for file in folder.rglob("*"):
        assert not file.is_file() or str(elsewhere.parent).encode() not in file.read_bytes()
    config = json.loads((folder / "model" / "config.json").read_text())
    assert (config["architecture"], config["pretrained_cfg"]["tag"]) == ("imixer_laptop_32", "cifar10")
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["name"] == "cifar10"
    assert main(["predict", "--model", folder.name, str(image)]) == 0
    refused(capsys, ["evaluate", "--model", folder.name], "comes without its images, cifar10; say with --data")
    refused(capsys, ["evaluate", "--model", folder.name, "--data", "nowhere"], "nowhere")
    # the name is torchvision's, whose files these are not
    refused(capsys, ["evaluate", "--model", folder.name, "--data", data["name"]], "cifar10")


def test_a_folder_is_all_that_a_new_tag_takes_of_an_imixer_or_a_mixer(laptop, train_quick, tmp_path, elsewhere):
    mixer = train_quick(tmp_path / "mixer", "--model.name", "mixer_t2_8")
    assert main(["export", str(laptop), "--format", "package", "--out", "imixer_laptop_32.mine"]) == 0
    assert main(["export", str(mixer), "--format", "package", "--out", "mixer_t2_8.mine"]) == 0
    code = f"""
import imixer.weights
from pathlib import Path
imixer.weights.FOLDER = Path({str(elsewhere)!r})
import timm, torch, imixer
from imixer.data.config import DataConfig
from imixer.training.model import build_model
from imixer.training.run.config import ModelConfig
assert timm.list_models("imixer*", pretrained=True) == ["imixer_laptop_32.mine"]
model = timm.create_model("imixer_laptop_32.mine", pretrained=True).eval()
assert model(torch.randn(1, 3, 32, 32)).shape == (1, 2)
assert model.pretrained_cfg["label_names"] == ("cat", "dog")
config = ModelConfig(name="imixer_laptop_32.mine", pretrained=True)
built = build_model(config, DataConfig(), native_size=(32, 32), in_chans=3, num_classes=7)
assert built.args["num_blocks"] == [2, 4, 2]  # so that the run's model can be built again from its own file
assert torch.equal(built.model.blocks[0].norm1.weight, model.blocks[0].norm1.weight)
assert timm.create_model("mixer_t2_8.mine", pretrained=True).eval()(torch.randn(1, 1, 8, 8)).shape == (1, 10)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_names_that_no_package_can_have_are_refused(run, laptop, own_folder, elsewhere, capsys):
    for out, parts in {
        "mine": ["mine is no ARCHITECTURE.TAG"],
        "imixer_t2_8.": ["is no ARCHITECTURE.TAG"],
        "imixer_t2_9.mine": ["timm knows; did you mean imixer_t2_8"],
        own_folder / "resnet18.mine": ["imixer registers"],
        "imixer_t4_32.mine": ["imixer_t4_32 is not what", "imixer_t2_8"],
    }.items():
        refused(capsys, ["export", run, "--format", "package", "--out", out], "out: ", *parts)
    assert list(own_folder.iterdir()) == []


def test_a_package_that_would_make_the_distribution_too_large_is_refused(run, own_folder, monkeypatch, capsys):
    monkeypatch.setattr(imixer.weights, "MOST_BYTES", 100_000)
    words = ["export", run, "--format", "package", "--out"]
    assert main([str(word) for word in [*words, own_folder / "imixer_t2_8.first"]]) == 0
    monkeypatch.setattr(imixer.weights, "MOST_BYTES", int(1.5 * size_of(own_folder)))
    refused(capsys, [*words, own_folder / "imixer_t2_8.second"], "the packaged models would take", "MB")
    assert [path.name for path in own_folder.iterdir()] == ["imixer_t2_8.first"]


def test_a_weight_that_float16_cannot_hold_is_refused(run, tmp_path, capsys):
    from safetensors.torch import save_file

    large = shutil.copytree(run, tmp_path / "large")
    tensors = load_file(large / "model" / "model.safetensors")
    tensors["head.weight"][0, 0] = 1e5
    save_file(tensors, large / "model" / "model.safetensors", metadata={"format": "pt"})
    refused(capsys, ["export", large, "--format", "package"], "head.weight", "65,504")


def test_a_packaged_model_is_handed_over_to_the_hub(elsewhere):
    assert main(["export", "--model", DIGITS, "--format", "hub"]) == 0
    folder, top1 = elsewhere / DIGITS / "hub", json.loads((SHIPPED[DIGITS] / "evaluation.json").read_text())["top1"]
    assert f"| {top1:.2%} | 360 |" in (folder / "README.md").read_text()
    loaded, packaged = timm.create_model(f"local-dir:{folder}", pretrained=True), timm.create_model(DIGITS, True)
    assert all(torch.equal(value, packaged.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("command", [["predict"], ["evaluate"], ["analyze", "weights"], ["export"]])
def test_a_packaged_model_has_one_set_of_weights(command, elsewhere, capsys):
    refused(capsys, [*command, "--model", DIGITS, "--checkpoint", "best"], "checkpoint is best", DIGITS, "leave it out")
    assert list(elsewhere.iterdir()) == []


def test_options_that_do_not_go_with_a_format_are_refused(run, elsewhere, capsys):
    refused(capsys, ["export", run, "--format", "package", "--batch_size", "2"], "batch_size is 2")
    refused(capsys, ["export", run, "--data", "digits"], "data is digits", "onnx")
    refused(capsys, ["export", run, "--format", "hub", "--data", "digits"], "data is digits", "hub")
    refused(capsys, ["export", run, "--format", "hub", "--quantize", "int8"], "quantize is int8", "hub")
    refused(capsys, ["export", "--model", DIGITS, "--format", "package"], "packaged already")
    assert list(elsewhere.iterdir()) == []
