"""Whatever is wrong is said in one line, exit code 2, before anything is written or taken: no traceback, no runaway."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from imixer.cli import main
from imixer.data.config import DataConfig, MaskConfig
from imixer.errors import InputError
from imixer.reading import read_json, read_rows
from imixer.reading_yaml import parse_yaml
from imixer.training.run.config import AnomalyConfig, ModelConfig, ScheduleConfig, SegmentConfig, TrainConfig
from imixer.training.unused_settings import unused_settings

TINY = ["train", "--epochs", "1", "--schedule.warmup_epochs", "0", "--model.num_blocks", "1", "--model.embed_dim", "8"]


pytestmark = pytest.mark.usefixtures("elsewhere")


def refused(capsys, words, *parts):
    capsys.readouterr()
    assert main(words) == 2
    captured = capsys.readouterr()
    *before, line = captured.err.splitlines()
    assert line.startswith("imixer: ") and captured.out == ""
    assert not any(text.startswith("imixer: ") for text in before)
    for part in parts:
        assert part in line


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (bytes(range(256)), ["c.yaml", "not of UTF-8"]),
        (b"\x89PNG\r\n\x1a\n", ["c.yaml", "not of UTF-8"]),
        (bytes(4000), ["c.yaml", "zero bytes"]),
        (b"epochs: 1\n\0\0\0", ["c.yaml", "YAML"]),
        (LAUGHS.encode(), ["c.yaml", "aliases"]),
        (b"a: &a [*a]", ["c.yaml", "alias of itself"]),
        (b"[" * 50_000, ["c.yaml", "too deep"]),
        *[(b"epochs: " + b"[" * depth + b"]" * depth, ["c.yaml", "too deep"]) for depth in (101, 330, 400, 480)],
        (b"seed: 0x" + b"f" * 4_000, ["c.yaml", "the number in line 1 has 4,002 digits"]),
        (b'out: "\\ud800"', ["c.yaml", "the text in line 1 has half a letter"]),
        (b"#" * (2**20 + 1), ["c.yaml", "larger than 1 MB"]),
        (b"epochs: 1\nepochs: 2", ["c.yaml", "epochs stands twice"]),
        (b"data: {name: digits, name: x}", ["c.yaml", "name stands twice"]),
        (b"optim: {lr: 1}\ndata: {}\noptim: {lr: 2}", ["c.yaml", "optim stands twice"]),
        (b"epochs: 2020-13-45", ["c.yaml"]),
        (b"epochs: !!bool maybe", ["c.yaml", "tag"]),
        (b"epochs: !!timestamp foo", ["c.yaml", "tag"]),
        (b"epochs: !!int ''", ["c.yaml", "tag"]),
        (b"? [1, 2]\n: 3", ["c.yaml"]),
        (b"1: 2", ["c.yaml"]),
        (b"null: 2", ["c.yaml"]),
        (b"!!python/object/apply:os.system [ls]", ["c.yaml", "YAML"]),
        (b"data: {split_seed: -1}", ["data.split_seed is -1"]),
        (b"<<: 3", ["c.yaml"]),
        (b"model: {kwargs: {n_iter: 1000000000}}", ["model.n_iter is 1000000000"]),
    ],
)
def test_a_configuration_that_is_none_is_named(elsewhere, capsys, content, parts):
    (elsewhere / "c.yaml").write_bytes(content)
    refused(capsys, [*TINY, "--out", "out", "--config", "c.yaml"], *parts)
    assert [path.name for path in elsewhere.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    "content", [bytes(range(256)), LAUGHS.encode(), b"epochs: 1\nepochs: 2", b"null: 2", b"data: {split_seed: -1}"]
)
def test_a_sweep_of_it_is_named_too(elsewhere, capsys, content):
    (elsewhere / "c.yaml").write_bytes(content)
    (elsewhere / "s.yaml").write_text("config: c.yaml")
    refused(capsys, ["sweep", "s.yaml"], "s.yaml")
    (elsewhere / "s.yaml").write_bytes(content)
    refused(capsys, ["sweep", "s.yaml"], "s.yaml")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["c.yaml", "s.yaml"]


LONG = "n" * 300


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--data.split_seed -1", "data.split_seed is -1"),
        ("--model.n_iter 1000000000", "model.n_iter is 1000000000"),
        ("--model.num_layers 50", "n^(L-2) = 2^48"),
        ("--model.num_layers 8 --model.n_iter 100", "n^(L-2) = 100^6"),
        ("--model.num_layers 1000 --model.n_iter 1", "model.num_layers is 1000"),
        ("--model.max_steps 1000000000", "model.max_steps"),
        ("--model.gradient_terms 1000000000", "model.gradient_terms"),
        ("--model.n_power_iterations 1000000000", "model.n_power_iterations"),
        ("--model.num_blocks 1000000000", "model.num_blocks"),
        ("--model.embed_dim 1000000000", "model.embed_dim"),
        ("--model.hidden_ratio 1e12", "model.hidden_ratio"),
        ("--model.num_blocks [2,1000000000,2]", "model.num_blocks is [2, 1000000000, 2]"),
        ("--model.tokens_dim 1000000000", "model.tokens_dim is 1000000000"),
        ("--data.auto_augment rand-m9-n1000000000", "data.auto_augment"),
        ("--data.auto_augment augmix-m5-w1000000000", "data.auto_augment"),
        ("--model.embed_dim 60000 --model.num_blocks 90", "parameters, which take"),
        ("--model.patch_size 0", "do not tile"),
        ("--data.workers 9999", "data.workers is 9999"),
        ("--data.image_size 1000000", "data.image_size is 1000000"),
        ("--data.image_size 8192 --data.batch_size 1024", "images of 8192x8192 take"),
        ("--data.batch_size 1000000000000", "1000000000000"),
        ("--epochs 1000000000000", "epochs is 1000000000000"),
        ("--schedule.cooldown_epochs 1000000000000", "schedule.cooldown_epochs 1000000000000"),
        ("--devices 9999 --data.batch_size 9999", "devices is 9999"),
        ("--num_nodes 64", "num_nodes is 64"),
        (f"--out {LONG}", "255 bytes"),
        (f"--out a/{LONG}/b", "255 bytes"),
        (f"--data.name {LONG}", "nnn"),
        (f"--config {LONG}", "nnn"),
        (f"--resume {LONG}", "nnn"),
        (f"--recipe {LONG}", "nnn"),
        (f"--model.name {LONG}", "nnn"),
        (f"--model.checkpoint {LONG}", "nnn"),
        (f"--optim.opt {LONG}", "nnn"),
        (f"--data.auto_augment {LONG}", "nnn"),
        (f"--{LONG} 3", "nnn"),
        ("--config .", "cannot be read"),
        ("--config /dev/zero", "larger than"),
    ],
)
def test_what_would_never_end_or_has_no_name_is_refused_before_anything_is_written(elsewhere, capsys, flags, part):
    refused(capsys, [*TINY, *([] if "--out" in flags else ["--out", "out"]), *flags.split()], part)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("recall --size 1000000", "size is 1000000"),
        ("recall --patterns 1000000000", "patterns is"),
        ("recall --queries 1000000000", "queries is"),
        ("recall --steps 1000000000000", "steps is"),
        ("recall --seed 100000000000000000000000", "seed is"),
        (f"recall --out {LONG}", "255 bytes"),
        (f"recall {LONG}", "nnn"),
        ("recall --noise .nan", "noise is nan"),
        (f"evaluate {LONG}", "nnn"),
        (f"predict {LONG}", "nnn"),
        (f"export {LONG}", "nnn"),
        (f"report {LONG}", "nnn"),
        (f"replay {LONG}", "nnn"),
        (f"sweep {LONG}", "nnn"),
        (LONG, "no command"),
    ],
)
def test_other_commands_refuse_them_too(elsewhere, capsys, words, part):
    refused(capsys, words.split(), part)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("predict RUN --n_iter 1000000000", "n_iter is 1000000000"),
        ("evaluate RUN/result.json", "result.json is a file and no run; give a folder that"),
        ("replay RUN/metrics.csv", "give a file in RUN/nonfinite"),
        ("predict RUN image.png --data x", "not looked at where images are given"),
        (f"predict RUN {LONG}.png", "nnn"),
        (f"predict RUN --csv {LONG}", "nnn"),
        ("analyze convergence RUN --n_iter 1000000000", "n_iter is 1000000000"),
        ("analyze features RUN --n_iter 1000000000", "n_iter is 1000000000"),
        ("evaluate RUN --adversarial --steps 1000000000", "steps is 1000000000"),
        (f"evaluate RUN --test {LONG}", "nnn"),
        (f"evaluate RUN --data {LONG}", "nnn"),
        (f"export RUN --format torch --out {LONG}", "nnn"),
        (f"report RUN --out {LONG}", "nnn"),
    ],
)
def test_of_a_run_too(run, capsys, words, part):
    before = sorted(run.rglob("*"))
    refused(capsys, [word.replace("RUN", str(run)) for word in words.split()], part)
    assert sorted(run.rglob("*")) == before


GRID = "grid: {" + ", ".join(f"model.kwargs.k{i}: {list(range(10))}" for i in range(10)) + "}"


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("seeds: 1000000000", "seeds is 1000000000"),
        (
            GRID,
            "10,000,000,000 cells",
        ),
        (f"name: {LONG}", "nnn"),
        (f"cases: {{{LONG}: {{}}}}", "nnn"),
        ("set: {epochs: 1000000000000}", "epochs"),
    ],
)
def test_sweeps_without_end_are_refused(elsewhere, capsys, spec, part):
    (elsewhere / "s.yaml").write_text(spec)
    refused(capsys, ["sweep", "s.yaml"], part)
    assert [path.name for path in elsewhere.iterdir()] == ["s.yaml"]


def test_a_lock_that_is_a_folder_is_named(run, elsewhere, capsys):
    copy = shutil.copytree(run, elsewhere / "copy")
    shutil.rmtree(copy / "model")
    (copy / ".lock").unlink()
    (copy / ".lock").mkdir()
    refused(capsys, ["train", "--resume", str(copy)], ".lock cannot be locked")


def test_what_the_system_has_against_a_file_is_one_line(run, capsys, monkeypatch):
    from imixer.training import evaluate

    def full(file, text):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(evaluate, "write_text", full)
    refused(capsys, ["evaluate", str(run)], "evaluation.json: the disk is full; not written was: accuracy ")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 TB")]
)
def test_too_little_memory_is_one_line_with_a_remedy(capsys, monkeypatch, error):
    from imixer.cli import dispatch

    def fail(argv):
        raise error

    monkeypatch.setattr(dispatch, "_run", fail)
    refused(capsys, ["train"], "not enough memory", "data.batch_size")


@pytest.mark.parametrize("how", ["is killed by signal: Bus error. It is possible", "exited unexpectedly"])
def test_a_loader_process_that_dies_is_one_line_with_a_remedy(capsys, monkeypatch, how):
    from imixer.cli import dispatch

    def fail(argv):
        raise RuntimeError(f"DataLoader worker (pid(s) 12) {how}")

    monkeypatch.setattr(dispatch, "_run", fail)
    refused(capsys, ["train"], "a loader process has died", how.split(".")[0].removeprefix("is "), "--data.workers 0")


def shell(line):
    command = line.replace("imixer", f"{sys.executable} -m imixer")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ)


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("imixer train --help | head -1; exit ${PIPESTATUS[0]}", (0, 141)),
        ("imixer train --print_config | true; exit ${PIPESTATUS[0]}", (0, 141)),
        ("imixer recipes >&-", (0,)),
        ("imixer --help >&- 2>&-", (0,)),
        ("imixer trian 2>&-", (2,)),
        ("imixer recipes > /dev/full", (2,)),
        ("imixer show RUN | true; exit ${PIPESTATUS[0]}", (141,)),  # a table, and not by print
        ("imixer show RUN > /dev/full", (2,)),
    ],
)
def test_a_closed_or_full_output_leaves_no_traceback(run, line, codes):
    done = shell(line.replace("RUN", str(run)))
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape"])
def test_letters_that_the_terminal_does_not_have_are_escaped(run, elsewhere, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    copy = shutil.copytree(run, elsewhere / "ü数")
    ran = [shell("imixer recipes"), shell(f"imixer show {copy.name}")]
    assert [(done.returncode, "Traceback" in done.stderr) for done in ran] == [(0, False)] * 2
    assert r"\u6570" in ran[1].stdout


def test_a_ctrl_c_before_a_command_begins_is_one_line(capsys, monkeypatch):
    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == "imixer.cli.dispatch":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "imixer.cli.dispatch", raising=False)
    monkeypatch.delattr("imixer.cli.dispatch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "imixer: interrupted\n"


@pytest.mark.parametrize("value", ["{mlp_ratio: 1, mlp_ratio: 2}", "{mlp_ratio: [0.5, 4], 'mlp_ratio': [0.5, 3]}"])
def test_doubled_keys_of_a_flag_are_refused_as_those_of_a_file(capsys, elsewhere, value):
    refused(capsys, [*TINY, "--out", "out", "--model.kwargs", value], "--model.kwargs: mlp_ratio stands twice")


def test_a_folder_that_is_called_like_yaml_is_still_a_folder(capsys, elsewhere):
    refused(capsys, [*TINY, "--out", "out", "--data.name", "{a: 1, a"], "{a: 1, a")


def test_doubled_keys_hide_nowhere():
    for text in ("a: 1\na: 2", "[{a: 1, a: 2}]", "b: &x {a: 1, a: 1}\nc: *x", "? {a: 1, a: 2}\n: 1"):
        with pytest.raises(InputError, match="a stands twice"):
            parse_yaml(text, "it")
    assert parse_yaml("b: &x {a: 1}\nc: {<<: *x, a: 2}", "it") == {"b": {"a": 1}, "c": {"a": 2}}


def test_a_table_gives_its_whole_rows(tmp_path):
    file = tmp_path / "t.csv"
    for content, rows, damaged in [
        (b"", 0, 0),
        (b"a,b\n", 0, 0),
        (b"a,b\n1,2\n", 1, 0),
        (b"a,b\n1,2\n3,4", 1, 0),  # being written
        (b"a,b\n1,2\n3\n", 1, 1),
        (b"a,b\n1,2\n3,x\n5,6\n", 2, 1),
        (b"a,b\n1,2\n\0\0\0", 1, 1),
        (b"a,b\n1,nan\n1,-inf\n", 2, 0),
        (b"\0\0\0", 0, 1),
        (b"b,c\n1,2\n", 0, 2),
        (b"a,a\n1,2\n", 0, 2),
        (b"a,b\n\xff,2\n", 0, 1),
    ]:
        file.write_bytes(content)
        found, bad = read_rows(file, ["a"])
        assert (len(found), bad) == (rows, damaged), content
    assert read_rows(tmp_path / "none", ["a"]) == ([], 0)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "3",
        "{",
        "[" * 100_000,
        "\0\0",
        '{"a": NaN}',
        '{"a": [-Infinity]}',
        '{"a": 1e999}',
        '{"b": 1}',
        '{"a": 1}{"a": 1}',
    ],
)
def test_json_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json"):
        read_json(tmp_path / "x.json", ["a"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model": ModelConfig(tolerance=1e-3)}, ["model.tolerance 0.001: solver is fixed"]),
        ({"model": ModelConfig(kwargs={"tolerance": 1e-3})}, ["model.tolerance 0.001: solver is fixed"]),
        ({"model": ModelConfig(max_steps=9, solver="fixed")}, ["model.max_steps 9: solver is fixed"]),
        ({"model": ModelConfig(tolerance=1e-3, gradient="implicit")}, []),
        ({"model": ModelConfig(tolerance=1e-3, max_steps=9, solver="anderson")}, []),
        (
            {"model": ModelConfig(n_iter=3, solver="picard")},
            ["model.n_iter 3: solver is picard, which goes"],
        ),
        ({"model": ModelConfig(gradient_terms=4)}, ["model.gradient_terms 4: gradient is unroll"]),
        ({"model": ModelConfig(on_failure="raise"), "compile": True}, ["model.on_failure raise: compile is true"]),
        ({"model": ModelConfig(on_failure="raise")}, []),
        ({"model": ModelConfig(gradient_terms=4, gradient="neumann")}, []),
        ({"model": ModelConfig(norm="none", coeff=0.8)}, ["model.coeff 0.8: norm is none"]),
        ({"model": ModelConfig(norm="orthogonal", n_power_iterations=4)}, ["model.n_power_iterations 4: norm is orth"]),
        ({"model": ModelConfig(sigma="exact", n_power_iterations=4)}, ["model.n_power_iterations 4: sigma is exact"]),
        (
            {"model": ModelConfig(num_layers=2, coeff=0.8, n_iter=3)},
            ["model.n_iter 3: num", "model.coeff 0.8: n"],
        ),
        ({"data": DataConfig(scale=(0.5, 1.0))}, ["data.scale (0.5, 1.0): crop is pad"]),
        ({"data": DataConfig(ratio=(1.0, 1.0), crop="center")}, ["data.ratio (1.0, 1.0): crop is center"]),
        ({"data": DataConfig(scale=(0.5, 1.0), crop="resized")}, []),
        ({"data": DataConfig(root="x")}, ["data.root x: the digits are built in"]),
        (
            {"data": DataConfig("cifar10", skip_bad=True, check="full", background="black")},
            ["data.skip_bad True: torchvision", "data.check full: torch", "data.background black: torchvision reads"],
        ),
        ({"data": DataConfig("hfds/mnist", check="full")}, ["data.check full: timm reads hfds/mnist"]),
        (
            {"data": DataConfig("photos", root="x", download=True)},
            ["data.root x: data.name is the place", "data.download True: data.name is"],
        ),
        ({"data": DataConfig(workers=2, pipeline="device")}, ["data.workers 2: pipeline is device"]),
        ({"data": DataConfig(keep_decoded=True, pipeline="device")}, ["data.keep_decoded True: pipeline is device"]),
        (
            {"data": DataConfig(name="x", interpolation="random"), "task": "segment"},
            ["data.interpolation random: task is segment, which takes bicubic"],
        ),
        ({"data": DataConfig(name="x", interpolation="bilinear", crop="center"), "task": "segment"}, []),
        (
            {
                "data": DataConfig(name="x", interpolation="bilinear", crop="resized", scale=(0.5, 1.0)),
                "task": "segment",
                "masks": MaskConfig(fit="window"),
            },
            [
                f"data.{name}"
                for name in ("crop resized: masks.fit is window", "scale (0.5, 1.0): m", "interpolation b")
            ],
        ),
        (
            {"data": DataConfig(name="x", shift=2), "task": "segment", "masks": MaskConfig(fit="window")},
            ["data.shift 2"],
        ),
        (
            {"data": DataConfig(name="x", check="full", cache_gb=2.0), "task": "segment"},
            ["data.check", "data.cache_gb"],
        ),
        ({"data": DataConfig(erase="after_mixing")}, ["data.erase after_mixing: nothing is erased"]),
        ({"schedule": ScheduleConfig(decay_rate=0.5)}, ["schedule.decay_rate 0.5: sched is cosine"]),
        ({"schedule": ScheduleConfig(decay_rate=0.5, sched="step")}, []),
        ({"schedule": ScheduleConfig(warmup_epochs=0, warmup_lr=1e-3)}, ["schedule.warmup_lr 0.001: warmup_epochs is"]),
        ({"schedule": ScheduleConfig(warmup_share=0, warmup_lr=1e-3)}, ["schedule.warmup_lr 0.001: warmup_share is 0"]),
        ({"schedule": ScheduleConfig(warmup_share=0.1, warmup_lr=1e-3)}, []),
        ({"minutes": 1.0}, ["minutes 1: neither model nor steps are chosen"]),
        ({"minutes": 1.0, "choose": ["loading"]}, ["minutes 1: neither model nor steps are chosen"]),
        ({"minutes": 1.0, "choose": ["steps"]}, []),
        ({"segment": SegmentConfig(dice=0.0)}, ["segment.dice 0: task is classify"]),
        ({"masks": MaskConfig(jitter=0.1)}, ["masks.jitter 0.1: task is classify"]),
        ({"anomaly": AnomalyConfig(memory=9)}, ["anomaly.memory 9: task is classify"]),
        ({"task": "segment", "segment": SegmentConfig(dice=0.0), "masks": MaskConfig(jitter=0.1)}, []),
        (
            {"task": "segment", "anomaly": AnomalyConfig(memory=9), "masks": MaskConfig(overlap=0.1)},
            ["anomaly.memory 9: task is segment", "masks.overlap 0.1: fit is resize"],
        ),
        ({"task": "segment", "masks": MaskConfig(overlap=0.1, fit="window")}, []),
        ({"task": "segment", "segment": SegmentConfig("linear", head_dim=9)}, ["segment.head_dim 9: head is linear"]),
        ({}, []),
    ],
)
def test_a_setting_without_effect_says_so(config, said):
    found = unused_settings(TrainConfig(**config))
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("brought", "given", "said"),
    [
        ({"solver": "anderson"}, {"tolerance": 1e-3, "max_steps": 9}, []),
        ({"gradient": "neumann"}, {"gradient_terms": 4}, []),
        ({"gradient": "neumann"}, {"gradient_terms": 4, "gradient": "unroll"}, ["model.gradient_terms 4: gradient is"]),
        ({"norm": "none"}, {"coeff": 0.8}, ["model.coeff 0.8: norm is none"]),
        ({"norm": "none", "coeff": 0.8}, {}, []),
        ({"num_layers": 2}, {"n_iter": 3}, ["model.n_iter 3: num_layers is 2"]),
        ({"solver": "picard"}, {"n_iter": 3}, ["model.n_iter 3: solver is picard"]),
    ],
    ids=str,
)
def test_what_comes_with_the_weights_decides_what_has_an_effect(brought, given, said):
    found = unused_settings(TrainConfig(model=ModelConfig(**given)), args=brought | given)
    assert len(found) == len(said) and all(map(str.startswith, found, said))


def test_settings_that_the_data_themselves_decide_say_so():
    data = DataConfig("cifar10", val_fraction=0.1, split_seed=7, cache_gb=2.0, streaming="always")
    found = unused_settings(TrainConfig(data=data), own_split=True, streamed=False)
    assert [text.partition(":")[0] for text in found] == [
        "data.val_fraction 0.1", "data.split_seed 7", "data.cache_gb 2", "data.streaming always",
    ]  # fmt: skip


def test_the_panel_before_training_shows_them(capsys):
    assert main([*TINY, "--out", "out", "--model.tolerance", "0.001", "--data.scale", "[0.5, 1]"]) == 0
    said = capsys.readouterr().err
    assert "no effect" in said
    assert "model.tolerance 0.001: solver is fixed" in said and "data.scale (0.5, 1.0): crop is pad" in said


def test_configurations_of_any_run_still_load(elsewhere):
    """What has no effect is told, never refused: a recipe or another cell of a sweep may need it."""
    (elsewhere / "c.yaml").write_text(yaml.safe_dump({"model": {"norm": "none", "coeff": 0.8, "tolerance": 0.1}}))
    from imixer.training.run.parsing import load_config

    assert load_config(elsewhere / "c.yaml").model.tolerance == 0.1


NOT_NULL = ["accumulate", "epochs", "seed", "optim.lr", "data.batch_size", "model.kwargs", "data"]


@pytest.mark.parametrize("name", NOT_NULL)
def test_null_is_refused_where_it_is_no_choice(capsys, name):
    refused(capsys, [*TINY, "--out", "out", f"--{name}", "null"], name)
