"""Any input gives exit code 0, or 2 with one line, and no traceback: configurations, images, parquet, weights, names.

`IMIXER_FUZZ_SEED=7 IMIXER_FUZZ_EXAMPLES=2000` looks elsewhere and longer.
"""

import io
import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from imixer.cli import main
from imixer.errors import InputError
from imixer.training.loop import Loop
from imixer.training.run.config import TrainConfig
from imixer.training.run.parsing import flatten, train_parser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(36_000),
    pytest.mark.filterwarnings("ignore"),  # of what Pillow and torch think of such files
]

EXAMPLES = int(os.environ.get("IMIXER_FUZZ_EXAMPLES", 0))
TINY = ["--epochs", "1", "--schedule.warmup_epochs", "0", "--model.num_blocks", "1", "--model.embed_dim", "8"]
SMALL = [*TINY, "--logger", "csv", "--data.batch_size", "4", "--data.image_size", "8", "--model.patch_size", "4"]
NO_SURROGATES = st.characters(exclude_categories=["Cs"])


def fuzzed(usually: int):
    """Look at so many examples, or at as many and elsewhere as the environment asks for."""
    examples = settings(max_examples=EXAMPLES or usually, suppress_health_check=list(HealthCheck))

    def mark(test):
        chosen = os.environ.get("IMIXER_FUZZ_SEED")
        return examples(test) if chosen is None else hypothesis.seed(int(chosen))(examples(test))

    return mark


@contextmanager
def elsewhere() -> Iterator[Path]:
    """Work in an empty folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def tried(*words: str) -> int:
    """Run a command, which must end with 0 and no complaint, or with 2 and one; a sweep may end with a failed trial."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    said = err.getvalue()
    complaints = [line for line in said.splitlines() if line.startswith("imixer: ")]
    assert code in (0, 2) or (code, words[0]) == (1, "sweep"), said
    assert len(complaints) == (code == 2), said
    assert "Traceback" not in said and "Traceback" not in out.getvalue()
    if code == 2:
        assert said.splitlines()[-1] == complaints[0] and len(complaints[0]) > 20, said
        assert "\x1b" not in complaints[0]
    return code


@contextmanager
def before_the_first_step() -> Iterator[None]:
    """Stop where training would begin: an input may be good and its training long."""
    fit = Loop.fit

    def stop(self: Loop) -> None:
        raise InputError("all was found good, and training would begin")

    Loop.fit = stop
    try:
        yield
    finally:
        Loop.fit = fit


# Configurations

NAMES = sorted(flatten(asdict(TrainConfig())).keys() | {a.dest for a in train_parser()._actions if "." in a.dest})
WORDS = [
    "",
    "digits",
    "none",
    "auto",
    "spectral",
    "picard",
    "implicit",
    "~",
    "null",
    "[",
    "1e3",
    "../..",
    "a" * 300,
    "é🙂",
]
NUMBERS = [-1, 0, 1, 2, 3, 8, 64, 0.5, 1.5, -0.5, 1e-9, 1e9, 10**12, 2**63, 10**30, float("nan"), float("inf")]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(NO_SURROGATES, max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(NO_SURROGATES, max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = st.one_of(st.sampled_from(NAMES), st.text(NO_SURROGATES, min_size=1, max_size=8))
RUNAWAY = {"accelerator", "logger", "model.pretrained", "data.download", "compile", "out", "data.root", "model.name"}


def nested(chosen: dict) -> dict:
    found: dict = {}
    for name, value in chosen.items():
        group, dot, field = name.partition(".")
        if dot and isinstance(found.setdefault(group, {}), dict):
            found[group][field] = value
        else:
            found[name] = value
    return found


@fuzzed(25)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
def test_any_configuration(chosen):
    chosen = {name: value for name, value in chosen.items() if name not in RUNAWAY}
    with elsewhere() as folder, before_the_first_step():
        Path("c.yaml").write_text(yaml.safe_dump(nested(chosen), allow_unicode=True), encoding="utf-8")
        tried("train", *TINY, "--config", "c.yaml", "--out", "out")
        tried("sweep", "c.yaml")
        assert {path.name for path in folder.iterdir()} <= {"c.yaml", "sweeps"}


@fuzzed(25)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.one_of(st.sampled_from(WORDS), LEAVES.map(str))), max_size=3))
def test_any_flags(flags):
    words = [word for name, value in flags if name not in RUNAWAY for word in (f"--{name}", value.replace("\0", ""))]
    with elsewhere() as folder, before_the_first_step():
        tried("train", *TINY, "--out", "out", *words)
        assert not any(folder.iterdir())


CHEAP = [
    *("optim.lr", "optim.weight_decay", "optim.eps", "optim.clip_grad", "optim.betas", "optim.opt", "optim.lr_batch"),
    *("schedule.min_lr", "schedule.warmup_lr", "schedule.decay_rate", "schedule.sched", "schedule.decay_epochs"),
    *("data.mixup", "data.cutmix", "data.random_erasing", "data.hflip", "data.scale", "data.ratio", "data.crop"),
    *("data.crop_pct", "data.erase", "data.pipeline", "data.auto_augment", "smoothing", "ema", "non_finite"),
    *("model.coeff", "model.decay", "model.step", "model.act_layer", "model.drop_rate", "model.hidden_ratio"),
    *("model.norm", "model.sigma", "model.solver", "model.gradient", "model.tolerance", "model.inner_drop_rate"),
]
GOOD = [
    "sgd",
    "lamb",
    "step",
    "tanh",
    "resized",
    "center",
    "device",
    "softplus",
    "relu",
    "exact",
    "row_norm",
    "anderson",
]
GOOD += ["neumann", "recompute", "skip", "rand-m9-mstd0.5-inc1", "augmix", "[0.5, 0.9]", "[0.9, 0.5]", "1e30", "1e-30"]


@fuzzed(25)
@given(
    st.dictionaries(
        st.sampled_from(CHEAP),
        st.one_of(st.sampled_from(GOOD), st.floats(-2, 2).map(str), st.sampled_from(NUMBERS).map(str)),
        min_size=1,
        max_size=3,
    )
)
def test_any_training(chosen):
    words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    with elsewhere():
        tried("train", *TINY, "--logger", "csv", "--data.batch_size", "256", "--out", "out", *words)
        if Path("out").exists():
            tried("evaluate", "out")
            tried("train", "--resume", "out")


YAML_BITS = [
    "a: 1",
    "a: &x",
    "*x",
    "<<: *x",
    "[",
    "]",
    "{",
    "}",
    "- ",
    "? ",
    ": ",
    "|",
    ">",
    "%",
    "!!str",
    "!!set",
    "\t",
]
YAML_BITS += ["---", "...", "data:", "model:", "  name: ", "epochs: ", "\n", "\n", "'", '"', "#", "\x00", "\ufeff", "é"]


@fuzzed(25)
@given(
    st.one_of(
        st.binary(max_size=200), st.lists(st.sampled_from(YAML_BITS), max_size=20).map(lambda b: "".join(b).encode())
    )
)
def test_any_bytes_as_a_configuration(content):
    with elsewhere(), before_the_first_step():
        Path("c.yaml").write_bytes(content)
        tried("train", *TINY, "--config", "c.yaml", "--out", "out")
        tried("sweep", "c.yaml")


# Damage

DAMAGES = st.tuples(
    st.sampled_from(["cut", "flip", "zeros", "insert", "remove", "double", "swap"]),
    st.floats(0, 1),
    st.binary(max_size=40),
)


def damaged(content: bytes, damage: tuple) -> bytes:
    how, where, more = damage
    place = int(where * len(content))
    if how == "cut":
        return content[:place]
    if how == "flip":
        return content[:place] + bytes(b ^ 255 for b in content[place : place + 1]) + content[place + 1 :]
    if how == "zeros":
        return content[:place] + bytes(len(content) - place)
    if how == "insert":
        return content[:place] + more + content[place:]
    if how == "remove":
        return content[:place] + content[place + len(more) :]
    return content + content if how == "double" else content[place:] + content[:place]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    run = tmp_path_factory.mktemp("fuzz") / "run"
    assert (
        main(["train", *TINY, "--logger", "csv", "--epochs", "2", "--data.batch_size", "256", "--out", str(run)]) == 0
    )
    assert main(["evaluate", str(run)]) == 0
    for what in ("convergence", "energy"):
        assert main(["analyze", what, str(run), "--images", "4"]) == 0
    return run


COMMANDS = [
    *(["report", "run"], ["evaluate", "run"], ["predict", "run"], ["train", "--resume", "run"]),
    *(["analyze", "weights", "run"], ["analyze", "contraction", "run", "--images", "2"]),
]


@fuzzed(25)
@given(st.data())
def test_any_damage_to_a_run(measured, data):
    with elsewhere():
        shutil.copytree(measured, "run")
        files = sorted(path for path in Path("run").rglob("*") if path.is_file())
        for _ in range(data.draw(st.integers(1, 3))):
            file = data.draw(st.sampled_from(files))
            if data.draw(st.integers(0, 5)) == 0:
                file.unlink(missing_ok=True)
            elif file.exists():
                file.write_bytes(damaged(file.read_bytes(), data.draw(DAMAGES)))
        if data.draw(st.booleans()):
            shutil.rmtree("run/model", ignore_errors=True)
        for command in data.draw(st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=3)):
            tried(*command)


JSON_FILES = ["result.json", "environment.json", "evaluation.json", "checkpoints/index.json", "model/config.json"]
JSON_FILES += ["analysis/convergence.json", "analysis/energy.json"]


def mutated(value, rng, draw):
    """The same JSON with one value replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutated(value[key], rng, draw)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(value[place], rng, draw), *value[place + 1 :]]
    return draw


@fuzzed(25)
@given(st.sampled_from(JSON_FILES), st.integers(0, 10**6), VALUES, st.sampled_from(COMMANDS))
def test_any_value_in_the_files_of_a_run(measured, name, number, value, command):
    with elsewhere():
        shutil.copytree(measured, "run")
        file = Path("run") / name
        file.write_text(json.dumps(mutated(json.loads(file.read_text()), random.Random(number), value)))
        tried(*command)
        tried("report", "run")


TENSORS = st.sampled_from(
    [
        torch.zeros(1),
        torch.tensor(float("nan")),
        torch.zeros(3, 4),
        torch.arange(4),
        torch.zeros(0),
        torch.zeros(2, 2).bool(),
    ]
)


@fuzzed(16)
@given(st.data())
def test_any_state_in_a_checkpoint(measured, data):
    with elsewhere():
        shutil.copytree(measured, "run")
        shutil.rmtree("run/model")
        Path("run/checkpoints/index.json").unlink()
        before, file = sorted(Path("run/checkpoints").glob("*.pt"))
        if data.draw(st.booleans()):  # so that there is an epoch to go
            file.unlink()
            file = before
        state = torch.load(file, weights_only=True)
        key = data.draw(st.sampled_from(sorted(state)))
        new = data.draw(st.one_of(VALUES, TENSORS))
        if isinstance(state[key], dict) and state[key] and data.draw(st.booleans()):
            inner = data.draw(st.sampled_from(sorted(state[key], key=str)))
            state[key][inner] = new
        elif data.draw(st.integers(0, 4)) == 0:
            del state[key]
        else:
            state[key] = new
        torch.save(state, file)
        tried("train", "--resume", "run")


# Weights from elsewhere

STATES = st.recursive(
    st.one_of(TENSORS, st.integers(-5, 5), st.text(NO_SURROGATES, max_size=5), st.none()),
    lambda inner: st.dictionaries(
        st.sampled_from(
            ["state_dict", "state_dict_ema", "model", "epoch", "head.weight", "blocks.0.norm1.weight", "x.y", ""]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)


@fuzzed(16)
@given(
    STATES,
    st.sampled_from(["pt", "safetensors", "pth", "ckpt", "bin", "npz"]),
    st.one_of(st.none(), DAMAGES),
    st.booleans(),
)
def test_any_file_of_weights(state, kind, damage, with_own):
    with elsewhere(), before_the_first_step():
        file = Path(f"w.{kind}")
        if kind == "safetensors":
            flat_state = (
                {str(k) or "e": v for k, v in state.items() if torch.is_tensor(v)} if isinstance(state, dict) else {}
            )
            save_file({k: v.clone() for k, v in flat_state.items()}, file)
        else:
            torch.save({"state_dict": state} if with_own else state, file)
        if damage is not None:
            file.write_bytes(damaged(file.read_bytes(), damage))
        tried("train", *TINY, "--out", "out", "--model.checkpoint", str(file))


# Images

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "HSV", "LAB"]
FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "webp": "WEBP",
    "ppm": "PPM",
    "jpeg": "PNG",
}


def image_bytes(mode: str, form: str, size: tuple[int, int], seed: int) -> bytes:
    """An image file, or something else of its name where the format has no such mode."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    target = io.BytesIO()
    try:
        image = Image.fromarray(pixels)
        image = image.convert("L").convert(mode) if mode in ("I", "F", "I;16", "LA", "P", "1") else image.convert(mode)
        image.save(target, FORMATS[form])
    except (OSError, ValueError):
        return pixels.tobytes()
    return target.getvalue()


IMAGES = st.builds(
    image_bytes,
    st.sampled_from(MODES),
    st.sampled_from(sorted(FORMATS)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 99),
)
FILE_NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))
CLASS_NAMES = st.one_of(
    FILE_NAMES,
    st.sampled_from(
        ["train", "Test", "val", "$\\foo$", "[/bold]", "=1+1", "-rf", ".hidden", " ", "a" * 200, "images", "CON"]
    ),
)


def write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError:  # a name that the file system does not take, or a file where a folder should be
        hypothesis.reject()


@fuzzed(16)
@given(st.data())
def test_any_folder_of_images(data):
    with elsewhere():
        root = Path("pictures")
        if data.draw(st.booleans()):
            root = root / data.draw(st.sampled_from(["train", "Training", "x", "data", "val"]))
        for name in data.draw(st.lists(CLASS_NAMES, min_size=1, max_size=4, unique=True)):
            for number in range(data.draw(st.integers(0, 6))):
                content = data.draw(IMAGES)
                if data.draw(st.integers(0, 6)) == 0:
                    content = damaged(content, data.draw(DAMAGES))
                ending = data.draw(st.sampled_from([*FORMATS, "PNG", "txt", "", "png.bak"]))
                write(root / name / f"{number}.{ending}", content)
        flags = data.draw(
            st.lists(
                st.sampled_from(
                    [
                        *("--data.skip_bad=true", "--data.check=off", "--data.check=full", "--data.background=black"),
                        *(
                            "--data.value_range=[0, 1]",
                            "--data.pipeline=device",
                            "--data.crop=resized",
                            "--data.workers=0",
                        ),
                    ]
                ),
                max_size=3,
                unique=True,
            )
        )
        if tried("train", *SMALL, "--data.name", "pictures", "--out", "out", *flags) == 0:
            tried("predict", "out")
            tried("evaluate", "out", "--test", "pictures")
            tried("report", "out")


@fuzzed(16)
@given(st.lists(st.tuples(FILE_NAMES, IMAGES, st.one_of(st.none(), DAMAGES)), min_size=1, max_size=3))
def test_any_image_to_predict_or_to_recall(measured, images):
    with elsewhere():
        for name, content, damage in images:
            write(Path("in") / f"{name}.png", content if damage is None else damaged(content, damage))
        tried("predict", str(measured), *map(str, sorted(Path("in").iterdir())), "--csv", "out.csv")
        tried("recall", "in", "--queries", "1", "--steps", "3", "--size", "8", "--out", "recalled")


# Parquet

PNG = image_bytes("RGB", "png", (8, 8), 1)
CELLS = {
    "image": [{"bytes": PNG, "path": "a.png"}, {"bytes": b"no", "path": None}, {"bytes": None, "path": "a.png"}, None],
    "bytes": [PNG, b"", b"x", None],
    "text": ["cat", "dog", "", "é", None],
    "number": [0, 1, 2, 7, -1, None],
    "huge": [0, 1, 2**40, -(2**62)],
    "float": [0.0, 1.0, 0.5, float("nan"), None],
    "bool": [True, False, None],
    "list": [[0], [1, 2], [], None],
    "struct": [{"a": 1}, {"a": None}, None],
}
COLUMNS = ["image", "img", "label", "labels", "fine_label", "class", "id", "x", "image.bytes", "é", ""]
METADATA = [
    None,
    b"{}",
    b"{",
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": []}, "image": {"_type": "Image"}}}}',
    b'{"info": {"features": 3}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"0": 1}}}}}',
    b"\xff\xfe",
]


@fuzzed(25)
@given(st.data())
def test_any_parquet(data):
    with elsewhere():
        names = data.draw(
            st.lists(
                st.sampled_from(
                    ["train-0.parquet", "test-0.parquet", "data.parquet", "train/0.parquet", "val-x.parquet"]
                ),
                min_size=1,
                max_size=2,
                unique=True,
            )
        )
        for name in names:
            rows = data.draw(st.sampled_from([0, 1, 3, 16]))
            columns = data.draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=3, unique=True))
            table = {}
            for column in columns:
                likely = {"image": ["image", "bytes"], "label": ["number", "text"]}.get(column, sorted(CELLS))
                kind = data.draw(st.sampled_from(likely if data.draw(st.integers(0, 3)) else sorted(CELLS)))
                most = len(CELLS[kind]) if data.draw(st.booleans()) else min(2, len(CELLS[kind]))
                first = 1 if kind in ("image", "bytes") and data.draw(st.booleans()) else most
                table[column] = pa.array([CELLS[kind][(i * 7 + i // 3) % first] for i in range(rows)])
            made = pa.table(table)
            if (metadata := data.draw(st.sampled_from(METADATA))) is not None:
                made = made.replace_schema_metadata({b"huggingface": metadata})
            target = io.BytesIO()
            pq.write_table(made, target)
            content = target.getvalue()
            if data.draw(st.integers(0, 5)) == 0:
                content = damaged(content, data.draw(DAMAGES))
            write(Path("shards") / name, content)
        tried("train", *SMALL, "--data.name", "shards", "--out", "out")


# Names

TEXT = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12)


@fuzzed(25)
@given(
    TEXT,
    st.sampled_from(["--out", "--data.name", "--config", "--resume", "--recipe", "--model.name", "--model.checkpoint"]),
)
def test_any_name_in_training(name, flag):
    with elsewhere(), before_the_first_step():
        tried("train", *TINY, *(["--out", "out"] if flag != "--out" else []), f"{flag}={name}")


@fuzzed(25)
@given(
    TEXT,
    st.sampled_from(
        [
            *("NAME", "evaluate NAME", "predict NAME", "report NAME", "export NAME", "replay NAME", "sweep NAME"),
            *(
                "analyze weights NAME",
                "analyze NAME RUN",
                "recall NAME",
                "evaluate RUN --test NAME",
                "predict RUN NAME",
            ),
            *("evaluate RUN --data NAME", "predict RUN --csv NAME", "analyze ood RUN --images 2 --ood_dataset NAME"),
            *("evaluate RUN --device NAME", "reproduce NAME", "recall --memory NAME --out r", "report RUN --out NAME"),
            *("analyze features RUN --image NAME", "recall --patterns 2 --queries 1 --out NAME", "train --NAME 3"),
        ]
    ),
)
def test_any_name_elsewhere(measured, name, words):
    if name in ("--version", "--help", "-h"):
        return
    with elsewhere():
        shutil.copytree(measured, "run")
        tried(*[word.replace("RUN", "run").replace("NAME", name) for word in words.split(" ")])


@fuzzed(25)
@given(st.binary(max_size=60), st.integers(0, 2**64 - 1))
def test_any_safetensors_header(measured, header, length):
    with elsewhere():
        shutil.copytree(measured, "run")
        weights = Path("run/model/model.safetensors")
        weights.write_bytes(struct.pack("<Q", length) + header)
        tried("evaluate", "run")
        tried("report", "run")
