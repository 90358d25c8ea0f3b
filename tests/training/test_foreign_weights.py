"""Weights that others wrote load, said in a line, and nothing in their files is executed."""

import argparse
import collections
import os
import pathlib
import pickle
import types

import lightning
import numpy as np
import pytest
import timm
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.callbacks import WeightAveraging
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import imixer.models  # noqa: F401
from imixer.cli import main
from imixer.errors import InputError
from imixer.implicit import SpectralLinear
from imixer.models import read_mixer
from imixer.training.initial_weights import find_start, load_weights
from imixer.training.run.config import ModelConfig


def model(name="imixer_t2_8", seed=0, **kwargs):
    torch.manual_seed(seed)
    made = timm.create_model(name, **{"num_blocks": 1, "embed_dim": 16, "num_classes": 4, **kwargs})
    torch.nn.init.normal_(made.head.weight)
    return made


def moved(source, by):
    """The same model with other weights."""
    other = model()
    other.load_state_dict({name: value + by for name, value in source.state_dict().items()})
    return other


def same(a, b):
    return all(torch.equal(parameter, dict(b.named_parameters())[name]) for name, parameter in a.named_parameters())


def loaded(path, key=None, **kwargs):
    target = model(seed=9, **kwargs)
    return target, load_weights(target, str(path), key)


def refusal(path, key=None):
    target = model(seed=9)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(InputError) as refused:
        load_weights(target, str(path), key)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    message = str(refused.value)
    assert "\n" not in message and str(path) in message
    return message


# --- files that the real libraries write


@pytest.fixture
def timm_file(tmp_path):
    """Save as timm's training script does."""

    def save(source, average=None, **args):
        args = argparse.Namespace(model="imixer_t2_8", lr=0.1, mean=None, opt_betas=[0.9, 0.99], **args)
        optimizer = torch.optim.AdamW(source.parameters())
        source(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        saver = CheckpointSaver(source, optimizer, args=args, model_ema=average, checkpoint_dir=str(tmp_path))
        saver.save_checkpoint(0, metric=71.5)
        return tmp_path / "last.pth.tar"

    return save


def test_a_checkpoint_of_timms_script_loads_with_its_namespace(timm_file):
    source = model()
    target, taken = loaded(timm_file(source))
    assert same(source, target)
    assert (taken.name, taken.others, taken.ignored, taken.classifier) == ("state_dict", (), (), True)


def test_of_timms_two_sets_the_average_is_taken_as_timm_does_and_the_other_on_request(timm_file):
    source = model()
    average = ModelEmaV3(moved(source, 0.5))
    path = timm_file(source, average)
    target, taken = loaded(path)
    assert same(average.module, target)
    assert str(taken) == (
        f"weights taken from {path}: state_dict_ema; not state_dict, which model.checkpoint_key would choose"
    )
    target, taken = loaded(path, key="state_dict")
    assert same(source, target) and taken.others == ("state_dict_ema",)


class Classifier(lightning.LightningModule):
    """A model beside a loss that has weights of its own."""

    def __init__(self, attribute, net, **hyper):
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.attribute = attribute
        setattr(self, attribute, net)
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(4))

    def training_step(self, batch, index):
        return self.criterion(getattr(self, self.attribute)(batch), torch.zeros(2, dtype=torch.long))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def lightning_file(tmp_path):
    """Save as Lightning's trainer does, after two steps."""

    def save(module, *callbacks):
        silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        silent |= {"enable_model_summary": False, "barebones": False}
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=2, default_root_dir=tmp_path, callbacks=list(callbacks), **silent
        )
        trainer.fit(module, torch.utils.data.DataLoader(torch.randn(4, 3, 8, 8), batch_size=2))
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return save


@pytest.mark.parametrize("attribute", ["net", "model", "backbone"])
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_lightning_loads_whatever_the_module_calls_its_model(lightning_file, attribute):
    source = model()
    path = lightning_file(Classifier(attribute, source, lr=0.1, where=pathlib.Path("data"), shape=np.float64(3)))
    target, taken = loaded(path)
    assert same(source, target)
    assert (taken.name, taken.ignored) == (f"state_dict.{attribute}", ("criterion.weight",))
    assert str(taken).endswith(f"state_dict.{attribute}; criterion.weight left out")


@pytest.mark.filterwarnings("ignore")
def test_of_lightnings_averaged_weights_the_average_is_taken(lightning_file):
    averaging = WeightAveraging()
    source = model()
    path = lightning_file(Classifier("net", source), averaging)
    target, taken = loaded(path)
    assert (taken.name, taken.others) == ("state_dict.net", ("current_model_state.net",))
    assert same(averaging._average_model.module.net, target)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["swa", "ema"])
def test_torchs_averaged_model_loads_without_its_counter(tmp_path, average):
    source = model()
    averaged = AveragedModel(source, multi_avg_fn=average)
    averaged.update_parameters(moved(source, 0.5))
    averaged.update_parameters(moved(source, 0.7))
    torch.save(averaged.state_dict(), tmp_path / "swa.pt")
    target, taken = loaded(tmp_path / "swa.pt")
    assert same(averaged.module, target)
    assert taken.ignored == ("n_averaged",)


def test_an_average_of_power_iterations_is_not_taken_for_one(tmp_path):
    averaged = AveragedModel(model())
    for seed in range(4):
        averaged.update_parameters(model(seed=seed))
    torch.save(averaged.state_dict(), tmp_path / "swa.pt")
    target, _ = loaded(tmp_path / "swa.pt")
    for layer in target.modules():
        if isinstance(layer, SpectralLinear):
            assert torch.linalg.matrix_norm(layer.normalized_weight(), 2) <= layer.coeff * 1.01


def test_a_checkpoint_of_fabric_loads_whatever_its_key(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1)
    source = model()
    wrapped, optimizer = fabric.setup(source, torch.optim.AdamW(source.parameters()))
    wrapped(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    fabric.save(tmp_path / "fabric.ckpt", {"network": wrapped, "optimizer": optimizer, "step": 1})
    target, taken = loaded(tmp_path / "fabric.ckpt")
    assert same(source, target) and taken.name == "network"


WRAPPERS = {"compile": torch.compile, "parallel": torch.nn.DataParallel, "average": AveragedModel}


@pytest.mark.parametrize(
    "order",
    [
        ("compile", "parallel"),
        ("parallel", "compile"),
        ("average", "compile"),
        ("average", "parallel"),
        ("parallel", "average"),
        ("compile", "parallel", "average"),
    ],
    ids="-".join,
)
def test_wrappers_may_be_in_any_order(tmp_path, order):
    source = wrapped = model()
    for name in order:
        wrapped = WRAPPERS[name](wrapped)
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "w.pt")
    target, _ = loaded(tmp_path / "w.pt")
    assert same(source, target)


@pytest.mark.parametrize("prefix", ["net.module._orig_mod.", "module.module.", "student.encoder.", "_orig_mod.model."])
def test_prefixes_of_safetensors_go_too_under_any_name(tmp_path, prefix):
    source = model()
    save_file({prefix + name: value for name, value in source.state_dict().items()}, tmp_path / "weights.bin")
    target, taken = loaded(tmp_path / "weights.bin")
    assert same(source, target) and taken.name == prefix[:-1]


def test_the_checkpoint_of_our_own_run_gives_what_the_run_kept(averaged_run):
    kept = model(num_classes=10, in_chans=1)
    load_weights(kept, str(averaged_run / "model" / "model.safetensors"))
    target, taken = loaded(averaged_run / "checkpoints" / "step-00000044.pt", num_classes=10, in_chans=1)
    assert (taken.name, taken.others) == ("ema", ("model",))
    assert same(kept, target)


def test_the_published_codes_weights_load_under_prefixes_too(golden, tmp_path):
    shape = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 48, "num_classes": 10}
    plain, wrapped = (timm.create_model("imixer_s16_224", **shape) for _ in range(2))
    taken = load_weights(plain, str(golden / "authors_a_checkpoint.pth"))
    content = torch.load(golden / "authors_a_checkpoint.pth", weights_only=True)
    state = content[taken.name] if taken.name else content
    torch.save({"state_dict": {f"module.net.{name}": value for name, value in state.items()}}, tmp_path / "w.pt")
    load_weights(wrapped, str(tmp_path / "w.pt"))
    assert same(plain, wrapped)


def test_mlp_mixers_and_older_files_load_too(tmp_path):
    source, target = model("mixer_t2_8"), model("mixer_t2_8", seed=9)
    torch.save({"model": source.state_dict()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_weights(target, str(tmp_path / "old.pth"))
    assert same(source, target)


RECORDS = {
    "namespace": argparse.Namespace(where=pathlib.PurePosixPath("a"), inner=argparse.Namespace(b=1)),
    "simple": types.SimpleNamespace(a=1),
    "path": pathlib.Path("a/b"),
    "windows": pathlib.PureWindowsPath("a/b"),
    "attributes": AttributeDict(a=1, b={"c": 2}),
    "default": collections.defaultdict(list, {"a": [1]}),
    "kinds": [int, dict, str],
    "scalar": np.float32(0.5),
    "array": np.arange(3.0),
    "dtype": [torch.float16, torch.device("cpu"), torch.Size([1, 2])],
}


@pytest.mark.parametrize("record", list(RECORDS))
def test_records_beside_the_weights_do_not_matter(tmp_path, record):
    source = model()
    torch.save({"args": RECORDS[record], "state_dict": source.state_dict(), "more": [RECORDS[record]]}, tmp_path / "w")
    target, taken = loaded(tmp_path / "w")
    assert same(source, target) and taken.name == "state_dict"


def test_hydras_settings_beside_the_weights_do_not_matter(tmp_path):
    create = pytest.importorskip("omegaconf").OmegaConf.create
    settings = create({"lr": 0.1, "n": None, "layers": [1, {"act": "gelu"}], "data": {"root": "a"}})
    torch.save({"hyper_parameters": settings, "state_dict": model().state_dict()}, tmp_path / "w")
    assert loaded(tmp_path / "w")[1].name == "state_dict"


# --- which set: said, and never guessed


def write(path, **sets):
    torch.save({name: source.state_dict() for name, source in sets.items()}, path)
    return path


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "ema", "ema_model", "swa", "average"])
def test_an_average_is_found_by_its_name(tmp_path, average):
    source = model()
    path = write(tmp_path / "w.pt", model=source, **{average: moved(source, 1.0)})
    _, taken = loaded(path)
    assert (taken.name, taken.others) == (average, ("model",))


def test_a_model_beside_its_average_under_prefixes(tmp_path):
    source = model()
    state = {f"net.{name}": value for name, value in source.state_dict().items()}
    state |= {f"net_ema.module.{name}": value + 1 for name, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    target, taken = loaded(tmp_path / "w.pt")
    assert (taken.name, taken.others) == ("state_dict.net_ema.module", ("state_dict.net",))
    assert same(moved(source, 1.0), target)


@pytest.mark.parametrize("names", [("student", "teacher"), ("state_dict", "model"), ("ema", "swa")])
def test_two_sets_without_an_obvious_one_are_not_guessed_between(tmp_path, names):
    path = write(tmp_path / "w.pt", **{name: model(seed=seed) for seed, name in enumerate(names)})
    message = refusal(path)
    assert all(name in message for name in names) and "choose one with model.checkpoint_key" in message
    target, taken = loaded(path, key=names[1])
    assert same(model(seed=1), target) and taken.others == (names[0],)


def test_a_set_that_is_not_there_is_named_beside_those_that_are(tmp_path):
    path = write(tmp_path / "w.pt", state_dict=model(), state_dict_ema=model())
    message = refusal(path, "ema")
    assert message.startswith("model.checkpoint_key is 'ema'") and message.endswith("are: state_dict, state_dict_ema")


def test_a_key_without_a_file_and_a_folder_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--model.checkpoint_key", "ema"]) == 2
    assert "there is no model.checkpoint" in capsys.readouterr().err
    assert "is a folder; name a file in it" in refusal(tmp_path)


def test_weights_of_another_image_size_that_are_not_resampled_are_refused_with_theirs(tmp_path):
    save_file(model("mixer_t2_8").state_dict(), tmp_path / "weights.safetensors")
    for size, said in (((8, 8), "images of 8x8: give data.image_size 8"), ((4, 16), r"give data.image_size \[4, 16\]")):
        with pytest.raises(InputError, match=said):
            load_weights(model("mixer_t2_8", img_size=16), str(tmp_path / "weights.safetensors"), img_size=size)


def test_a_home_is_found_where_no_shell_has_expanded_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(model("mixer_t2_8").state_dict(), tmp_path / "weights.safetensors")
    start = find_start(ModelConfig(name="mixer_t2_8", checkpoint="~/weights.safetensors"))
    assert start.path == str(tmp_path / "weights.safetensors")
    assert read_mixer("~/weights.safetensors").state["norm.weight"].shape == (16,)


def test_the_command_says_in_one_line_which_weights_it_took(tmp_path, capsys, train_quick):
    path = write(tmp_path / "w.pt", model=model(in_chans=1), model_ema=model(in_chans=1))
    train_quick(tmp_path / "run", "--model.checkpoint", str(path), "--model.checkpoint_key", "model")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("weights taken from")]
    assert lines == [
        f"weights taken from {path}: model; not model_ema, which model.checkpoint_key would choose; "
        "the classifier, for another number of classes, starts afresh"
    ]


# --- what is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_that_are_not_finite_are_refused_with_the_name_of_the_first(tmp_path, value, dtype):
    state = model().state_dict()
    state["blocks.0.mlp_channels.fc1.weight"][3, 5] = value
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    if dtype is torch.float8_e4m3fn:  # has no infinity
        state["blocks.0.mlp_channels.fc1.weight"].view(torch.uint8)[3, 5] = 0x7F
    torch.save(state, tmp_path / "w.pt")
    message = refusal(tmp_path / "w.pt")
    assert "blocks.0.mlp_channels.fc1.weight" in message
    assert "is not finite, in 1 of" in message and "take an earlier checkpoint" in message


def test_the_other_set_is_offered_if_the_average_is_not_finite(tmp_path):
    path = write(tmp_path / "w.pt", state_dict=model(), state_dict_ema=moved(model(), float("nan")))
    assert "take state_dict with model.checkpoint_key, or an earlier" in refusal(path)
    loaded(path, key="state_dict")


def test_what_the_model_does_not_take_may_be_anything(tmp_path):
    state = {f"net.{name}": value for name, value in model().state_dict().items()} | {
        "loss": torch.tensor(float("nan"))
    }
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    assert loaded(tmp_path / "w.pt")[1].ignored == ("loss",)


# --- nothing is executed


class Call:
    """Calls something when unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class State:
    """Sets a state when unpickled, in whatever way its class likes."""

    def __setstate__(self, state):
        os.mkdir("executed")

    def __getstate__(self):
        return {"a": 1}


ATTACKS = {
    "call": lambda: Call(os.mkdir, "executed"),
    "eval": lambda: Call(eval, "__import__('os').mkdir('executed')"),
    "exec": lambda: Call(exec, "import os; os.mkdir('executed')"),
    "attribute": lambda: Call(getattr, "text", "upper"),
    "state": State,
    "namespace": lambda: argparse.Namespace(inner=Call(os.mkdir, "executed")),
    "path": lambda: Call(pathlib.Path.mkdir, pathlib.Path("executed")),
    "array": lambda: np.array([Call(os.mkdir, "executed")], dtype=object),
}


@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize("place", ["state_dict", "args", "alone", "pickle"])
def test_code_in_a_file_is_not_executed_wherever_it_stands(tmp_path, monkeypatch, attack, place):
    monkeypatch.chdir(tmp_path)
    evil = ATTACKS[attack]()
    if place == "pickle":
        pathlib.Path("evil.pt").write_bytes(pickle.dumps(evil, protocol=2))
    else:
        content = {"state_dict": model().state_dict(), "args": None} | {place: evil}
        torch.save(evil if place == "alone" else content, "evil.pt")
    message = refusal("evil.pt")
    assert "evil.pt is not a file of plain tensors and was not executed" in message or "cannot be read" in message
    assert sorted(os.listdir()) == ["evil.pt"]


def test_a_pickle_within_a_numpy_scalar_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scalar, kind = np.float64(1).__reduce__()[0], np.dtype(object)
    torch.save({"state_dict": model().state_dict(), "metric": Call(scalar, kind, pickle.dumps(ATTACKS["call"]()))}, "w")
    loaded("w")
    assert os.listdir() == ["w"]


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(model(), tmp_path / "whole.pt")
    message = refusal(tmp_path / "whole.pt")
    assert "it asks for imixer.models.imixer.IMixer" in message and "save the state dict alone" in message
