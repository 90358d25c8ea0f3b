"""The command line: help, recipes, and every kind of bad input."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.recipes import recipes
from imixer.training.run.config import ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from imixer.training.run.directory import create_run
from imixer.training.run.parsing import expand_config_flags, load_config, save_config, train_parser

QUICK = [
    *("--recipe", "digits_general", "--epochs", "2", "--schedule.warmup_epochs", "1"),
    *("--model.num_blocks", "1", "--model.embed_dim", "16"),
]


pytestmark = pytest.mark.usefixtures("elsewhere")


def imixer(*words):
    return subprocess.run([sys.executable, "-m", "imixer", *words], capture_output=True, text=True)


def refused(capsys, words, parts):
    """Run a command that must fail: exit code 2 and one line that holds the parts."""
    assert main(words) == 2
    captured = capsys.readouterr()
    *before, line = captured.err.splitlines()
    assert line.startswith("imixer: ")
    assert all(text.startswith("loading") for text in before), captured.err
    for part in parts:
        assert part in line
    assert captured.out == ""


def default_train(*flags):
    return ["train", *QUICK, "--out", "out", *flags]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        # the parser's own
        ("--foo 3", ["unknown option --foo"]),
        ("--lr 3", ["--lr", "did you mean --optim.lr?"]),
        ("--data.batchsize 3", ["--data.batchsize", "--data.batch_size"]),
        ("--data.batch_size=many", ["data.batch_size", "many", "whole number"]),
        ("--data.image_size 8,8,8", ["data.image_size", "8,8,8"]),
        ("--optim.betas 0.9", ["optim.betas", "[a number, a number]"]),
        ("--model.norm spectrum", ["model.norm", "spectrum", "spectral, orthogonal, none, batch"]),
        ("--precision 8", ["precision", "8", "32, bf16, 16"]),
        ("--schedule.sched plateau", ["plateau", "cosine"]),
        ("--data folder", ["--data.name folder"]),
        ("--epochs", ["--epochs"]),
        ("stray", ["stray"]),
        ("--config nowhere.yaml", ["nowhere.yaml", "does not exist"]),
        ("--recipe digit", ["'digit'", "digits"]),
        ("--recipe", ["--recipe"]),
        # impossible values
        ("--epochs 0", ["epochs is 0"]),
        ("--optim.lr 0", ["optim.lr is 0"]),
        ("--optim.lr .nan", ["optim.lr is nan"]),
        ("--optim.weight_decay -1", ["optim.weight_decay is -1"]),
        ("--optim.clip_grad 0", ["optim.clip_grad is 0"]),
        ("--optim.betas [0.9,1.5]", ["optim.betas is [0.9, 1.5]"]),
        ("--optim.betas [1,0.9] --optim.opt muon", ["optim.betas is [1.0, 0.9]", "below 1"]),
        ("--optim.eps .nan", ["optim.eps is nan"]),
        ("--optim.lr 1e-7", ["schedule.min_lr is 1e-06, above the highest learning rate, 1e-07", "raise optim.lr"]),
        ("--schedule.warmup_lr 1", ["schedule.warmup_lr is 1, above"]),
        ("--schedule.warmup_epochs 2", ["schedule.warmup_epochs is 2", "epochs is 2"]),
        ("--schedule.min_lr -1", ["schedule.min_lr is -1"]),
        ("--smoothing 1", ["smoothing is 1"]),
        ("--seed -1", ["seed is -1"]),
        ("--devices 0", ["devices is 0"]),
        ("--data.val_fraction 1.5", ["data.val_fraction is 1.5"]),
        ("--data.crop_pct 2e-311", ["data.crop_pct is 2", "from 0.1 to 1"]),
        # what only the libraries know
        ("--optim.opt adamm", ["adamm", "did you mean adam"]),
        ("--accelerator warp", ["accelerator", "warp"]),
        ("--data.name nowhere", ["nowhere"]),
        ("--data.auto_augment wild", ["data.auto_augment", "wild"]),
        ("--data.mixup 0.5 --data.batch_size 33", ["data.batch_size is 33", "even"]),
        ("--data.image_size 9", ["4x4", "9x9"]),
        ("--model.patch_size 3", ["3x3", "8x8"]),
        ("--model.name imixer_t2_9", ["no model 'imixer_t2_9'; did you mean imixer_t2_8"]),
        ("--model.name resnet18.a1_in1kk", ["'resnet18.a1_in1kk'; did you mean resnet18.a1_in1k"]),
        ("--model.name imixer_n2_8.digitz --model.pretrained true", ["did you mean imixer_n2_8.digits?"]),
        ("--model.name imixer_n2_8.", ["'imixer_n2_8.'"]),
        ("--model.name mixer_t2_8.qqqqqqqqqqqqqqqqqqqq", ["leave the tag out, as in mixer_t2_8"]),
        ("--model.from_mixer mixer_b16_224.typo", ["mixer_b16_224.typo; did you mean mixer_b16_224.goog_in21k"]),
        ("--task segment --data.name scenes --model.name resnet18.a1_in1kk", ["did you mean resnet18.a1_in1k"]),
        ("--model.name mixer_t2_8 --model.n_iter 3", ["mixer_t2_8", "model.n_iter"]),
        ("--model.kwargs.wings 2", ["model.wings"]),
        ("--model.pretrained true", ["pretrained", "imixer_t2_8"]),
        ("--model.checkpoint nowhere.pt", ["nowhere.pt"]),
    ],
)
def test_bad_training_input(capsys, elsewhere, flags, parts):
    refused(capsys, default_train(*flags.split()), parts)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("data: {nam: 3}", ["data.nam", "data.name"]),
        ("foo: 3", ["unknown setting foo"]),
        ("epochs: many", ["epochs is 'many'"]),
        ("data: 3", ["data is 3", "mapping"]),
        ("recipe: digits", ["--recipe"]),
        ("- 3", ["mapping"]),
        ("", ["mapping"]),
        ("a: [1\nb: }", ["line 1"]),
    ],
)
def test_bad_configuration_files(capsys, elsewhere, content, parts):
    (elsewhere / "bad.yaml").write_text(content)
    refused(capsys, default_train("--config", "bad.yaml"), parts)
    assert not (elsewhere / "out").exists()


def test_nothing_is_overwritten(capsys, elsewhere):
    (elsewhere / "out").mkdir()
    refused(capsys, default_train(), ["out exists"])
    (elsewhere / "file").touch()
    refused(capsys, ["train", "--out", "file/deeper"], ["file"])
    for words in (["compare", "a", "b", "--out"], ["export", "a", "--out"], ["predict", "a", "--csv"]):
        refused(capsys, [*words, "file"], ["file exists, and nothing is overwritten"])
    assert {p.name for p in elsewhere.rglob("*")} == {"out", "file"}


@pytest.mark.parametrize("words", ["recall", "recall --compare", "train"])
def test_a_folder_of_runs_that_is_a_link_to_nowhere_is_named_before_anything_is_computed(elsewhere, capsys, words):
    (elsewhere / "runs").symlink_to("nothing")
    refused(capsys, words.split(), ["runs cannot be made", "runs is a link to nowhere"])
    refused(capsys, [*words.split(), "--out", "runs/mine"], ["runs/mine cannot be made", "runs is a link to nowhere"])
    with pytest.raises(InputError, match="link to nowhere"):
        create_run(None, "digits", "mixer")


@pytest.mark.parametrize(
    "words",
    [
        "compare RUN RUN --out no/images.csv",
        "export RUN --format torch --out no/model.pt2",
        "predict RUN --csv no/classes.csv",
        "report RUN --out no/report.html",
        "analyze convergence RUN RUN --out file",
        "analyze convergence RUN RUN --out file/deeper",
    ],
)
def test_where_a_result_cannot_be_written_is_told_before_it_is_computed(run, elsewhere, capsys, monkeypatch, words):
    def load(*args, **options):
        raise AssertionError("a run is loaded")

    for module in ("finished_run", "predict", "evaluate", "export_run"):
        monkeypatch.setattr(f"imixer.training.{module}.load_run", load)
    monkeypatch.setattr("imixer.experiments.image_comparison.load_run", load)
    monkeypatch.setattr("imixer.experiments.report.html_report.find_runs", load)
    (elsewhere / "file").touch()
    refused(capsys, [word.replace("RUN", str(run)) for word in words.split()], [words.split()[-1]])
    assert [path.name for path in elsewhere.iterdir()] == ["file"]


@pytest.mark.parametrize("words", ["evaluate RUN", "analyze weights RUN"])
def test_a_folder_in_the_place_of_a_result_is_told_before_it_is_computed(run, elsewhere, capsys, words):
    copy = shutil.copytree(run, elsewhere / "copy")
    shutil.rmtree(copy / "analysis", ignore_errors=True)
    (copy / "analysis").touch()
    (copy / "predictions.csv").unlink(missing_ok=True)
    (copy / "predictions.csv").mkdir()
    refused(capsys, words.replace("RUN", "copy").split(), ["copy/"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("flags", ["--accelerator cuda", "--accelerator gpu", "--precision 16"])
def test_no_accelerator_to_speak_of(capsys, elsewhere, flags):
    refused(capsys, default_train(*flags.split()), ["CUDA"])
    assert list(elsewhere.iterdir()) == []


def test_a_broken_image_is_named(capsys, elsewhere):
    for name in ("cat", "dog"):
        (elsewhere / "pets" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(elsewhere / "pets" / name / f"{number}.png")
    (elsewhere / "pets" / "cat" / "2.png").write_bytes(b"no picture")
    refused(capsys, default_train("--data.name", "pets"), ["2.png"])
    # found only while training, in a loader process: the line is as clear, and nothing stays
    for workers in ("0", "2"):
        flags = ["--data.name", "pets", "--data.check", "off", "--data.workers", workers, "--data.batch_size", "2"]
        refused(capsys, default_train(*flags), ["2.png"])
        assert not (elsewhere / "out").exists()


def test_a_piped_prediction_has_the_whole_path_of_an_image(run, capsys, elsewhere):
    file = elsewhere.joinpath("a" * 100, "b" * 100, "0.png")
    file.parent.mkdir(parents=True)
    Image.new("L", (8, 8)).save(file)
    assert main(["predict", str(run), str(file)]) == 0
    assert any(line.split()[:1] == [str(file)] for line in capsys.readouterr().out.splitlines())


def test_divergence_is_named(capsys, elsewhere):
    assert main(default_train("--optim.opt", "sgd", "--optim.lr", "1e30")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "diverged" in line
    assert "optim.lr" in line
    step = next((elsewhere / "out" / "nonfinite").iterdir())
    assert f"imixer replay {step.relative_to(elsewhere)}" in line
    assert main(["replay", str(step)]) == 0
    assert "blocks.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("trian", ["'trian'", "did you mean train?"]),
        ("evaluate", ["RUN is missing"]),
        ("evaluate nowhere", ["no run at nowhere"]),
        ("evaluate .", ["config.yaml"]),
        ("evaluate nowhere --batch_size 0", ["batch_size is 0"]),
        ("evaluate nowhere --test a --data b", ["data is given", "--test"]),
        ("evaluate nowhere --test a --corruptions", ["corruptions is given", "--test"]),
        ("evaluate nowhere --device warp", ["warp", "cpu"]),
        ("predict nowhere", ["no run at nowhere"]),
        ("predict nowhere --top 0", ["top is 0"]),
        ("predict nowhere --top x", ["top is 'x'"]),
        ("predict nowhere --csv no/folder.csv", ["no/folder.csv"]),
        ("export nowhere", ["no run at nowhere"]),
        ("export nowhere --format jpeg", ["jpeg", "onnx"]),
        ("export nowhere --batch_size 0", ["batch_size is 0"]),
        ("recipes all", ["all"]),
        ("predict nowhere --top null", ["no run at nowhere"]),
        ("models imixer_n2_8.digitz", ["did you mean imixer_n2_8.digits?"]),
        ("models resnet18.a1_in1kk", ["did you mean resnet18.a1_in1k"]),
        ("train --task anomaly --model.name imixer_n2_8.typo", ["'imixer_n2_8.typo'", "imixer_n2_8.digits"]),
    ],
)
def test_bad_input_elsewhere(capsys, elsewhere, words, parts):
    refused(capsys, words.split(), parts)
    assert list(elsewhere.iterdir()) == []


def test_bad_input_in_a_process_of_its_own(elsewhere):
    done = imixer("reproduce", "tabel1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("imixer: no experiment 'tabel1'; did you mean table1")
    assert done.stdout == ""
    assert list(elsewhere.iterdir()) == []


def test_help_waits_for_no_torch():
    code = "import sys, imixer.cli as c; [c.main(words) for words in %s]; print([m for m in %s if m in sys.modules])"
    commands = [["--help"], ["train", "--help"], ["recipes"]]
    heavy = ["torch", "timm", "lightning", "matplotlib", "numpy"]
    done = subprocess.run([sys.executable, "-c", code % (commands, heavy)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "digits" in done.stdout  # all of them ran


def test_help_documents_every_setting(capsys):
    assert main(["train", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    actions = {action.dest: action for action in train_parser()._actions}
    groups = {"": TrainConfig, "data.": DataConfig, "model.": ModelConfig, "optim.": OptimConfig}
    for prefix, group in {**groups, "schedule.": ScheduleConfig}.items():
        for field in dataclasses.fields(group):
            name = prefix + field.name
            assert f"--{name} " in shown
            if name not in ("data", "model", "optim", "schedule"):
                assert len(actions[name].help or "") > 10, f"{name} is not documented"
    for title in ("What to train on:", "What to train:", "How to step:", "How the learning rate moves:"):
        assert title in shown


def test_help_lists_the_commands(capsys):
    for words in ([], ["--help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        for command in ("train", "recipes", "evaluate", "predict", "export"):
            assert command in shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("imixer ")


def test_every_recipe_is_listed(capsys):  # that each parses, tests/test_recipes.py says
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(recipes()) >= 3
    for (name, description), line in zip(recipes().items(), lines, strict=True):
        assert len(description) > 20
        assert line.split(None, 1) == [name, description]


def test_flags_win_over_files_and_files_over_the_recipe(capsys, elsewhere):
    (elsewhere / "mine.yaml").write_text("epochs: 7\nsmoothing: 0.2\n")
    flags = [
        "--seed",
        "4",
        "--config",
        "mine.yaml",
        "--recipe=cifar10/mixer_quick",
        "--smoothing",
        "0.3",
        "--print_config",
    ]
    assert main(["train", *flags]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["name"] == "mixer_t4_32"  # from the recipe
    assert config["epochs"] == 7  # the file over the recipe's 15
    assert config["smoothing"] == 0.3  # the flag over both
    assert config["seed"] == 4  # a flag before the files


def test_configurations_go_before_all_other_words(elsewhere):
    (elsewhere / "x.yaml").write_text("data: {name: x}")
    assert expand_config_flags(["--a", "1", "--config", "x.yaml", "--b"]) == [
        "--config",
        "data:\n  name: x\n",
        "--a",
        "1",
        "--b",
    ]
    with pytest.raises(InputError):
        expand_config_flags(["--config"])


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(
            data=DataConfig(image_size=(8, 12), scale=(0.5, 0.9)),
            model=ModelConfig(norm="none", kwargs={"mlp_ratio": [0.5, 2.0]}),
            optim=OptimConfig(betas=(0.8, 0.9)),
            precision="bf16",
        ),
    ],
)
def test_configurations_survive_the_file(elsewhere, config):
    save_config(config, elsewhere / "c.yaml")
    assert load_config(elsewhere / "c.yaml") == config


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_after_the_step_which_is_saved(capsys, elsewhere, monkeypatch, number, code):
    from imixer.training.progress_bar import TrainingProgress

    def interrupt(self, done, loss):
        if done == 5:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", interrupt)
        assert main(default_train()) == code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imixer: interrupted after step 5 (epoch 0.23 of 2), which is saved")
    assert "imixer train --resume out" in line
    assert torch.load(elsewhere / "out" / "checkpoints" / "step-00000005.pt", weights_only=True)["step"] == 5


def test_a_second_ctrl_c_ends_training_at_once(capsys, elsewhere, monkeypatch):
    from imixer.training import stop_signals
    from imixer.training.train_state import TrainState

    def interrupt(self, step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stop_signals, "_PATIENCE_S", -1.0)
    monkeypatch.setattr(TrainState, "optimizer_step", interrupt)
    assert main(default_train()) == 130
    assert "nothing is saved" in capsys.readouterr().err.splitlines()[-1]
    assert not (elsewhere / "out").exists()
