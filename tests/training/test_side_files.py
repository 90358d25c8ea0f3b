"""What a run has lost is made again where it can be, else named; nothing that is good is overwritten."""

import csv
import json
import os
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml

from imixer.cli import main
from imixer.errors import InputError
from imixer.training.run.checkpoints import Checkpoints
from imixer.training.run.damage import damage
from imixer.training.run.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("undrawn")

LATEST, BEFORE = "checkpoints/step-00000044.pt", "checkpoints/step-00000022.pt"
FILES = [
    "config.yaml",
    "environment.json",
    "metrics.csv",
    "convergence.csv",
    "result.json",
    "confusion_matrix.csv",
    "confusion_matrix.png",
    "evaluation.json",
    "analysis/convergence.json",
    "analysis/energy.json",
    "checkpoints/index.json",
    LATEST,
    BEFORE,
    "model/config.json",
    "model/model.safetensors",
    ".lock",
]
READ_AGAIN = [  # one of each kind
    *("config.yaml", "metrics.csv", "result.json", "evaluation.json", "confusion_matrix.csv", "analysis/energy.json"),
    *("checkpoints/index.json", LATEST, "model/config.json", "model/model.safetensors"),
]


def missing(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def zeros(file):
    file.write_bytes(bytes(max(1, file.stat().st_size)))


def zero_tail(file):
    file.write_bytes(file.read_bytes() + bytes(512))


def garbage(file):
    file.write_bytes(bytes(range(256)) * 5)


def doubled(file):
    file.write_bytes(file.read_bytes() * 2)


def other_content(file):
    file.write_text('{"per_class": [3], "blocks": [{}], "mixings": [{"change": 1}], "top1": "x", "images": []}')


def folder(file):
    file.unlink()
    file.mkdir()


DAMAGES = [missing, empty, truncated, zeros, zero_tail, garbage, doubled, other_content, folder]
COMMANDS = {
    "resume": ["train", "--resume", "RUN"],
    "evaluate": ["evaluate", "RUN"],
    "predict": ["predict", "RUN"],
    "report": ["report", "RUN"],
    "analyze": ["analyze", "weights", "RUN"],
}


@pytest.fixture(scope="module")
def measured(train_quick, tmp_path_factory):
    """A run that everything was done with."""
    run = train_quick(tmp_path_factory.mktemp("side") / "run", "--logger", "csv")
    (run / "confusion_matrix.png").write_bytes(b"a picture")
    assert main(["evaluate", str(run)]) == 0
    for what in ("convergence", "energy"):
        assert main(["analyze", what, str(run), "--images", "4"]) == 0
    return run


@pytest.fixture
def copy(measured, tmp_path):
    return Path(shutil.copytree(measured, tmp_path / "run"))


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def works_or_says_why(words, capsys):
    """Give the exit code, 0 or 2, and see that it is 2 with one line that says why."""
    capsys.readouterr()
    code = main(words)
    said = capsys.readouterr().err
    assert code in (0, 2), said
    assert "Traceback" not in said
    assert sum(line.startswith("imixer: ") for line in said.splitlines()) == (code == 2), said
    if code == 2:
        assert said.splitlines()[-1].startswith("imixer: ")
    return code, said


def tried(name, damage, run, commands, capsys):
    whole = contents(run)
    (run / name).parent.mkdir(exist_ok=True)
    damage(run / name)
    for command in commands:
        code, said = works_or_says_why([word.replace("RUN", str(run)) for word in COMMANDS[command]], capsys)
        if code == 2:
            assert Path(name).name in said or damage is folder, f"{command}: {said}"
        for path in (run / LATEST, run / BEFORE, run / "model/model.safetensors"):
            if path != run / name:
                assert path.read_bytes() == whole[path], f"{command} has changed {path}"


@pytest.mark.parametrize(
    ("name", "damage"),
    [*((name, missing) for name in FILES), *((name, zero_tail) for name in READ_AGAIN)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_file_that_is_lost_or_ends_in_zeros_costs_no_good_file(copy, capsys, name, damage):
    tried(name, damage, copy, ["resume", "report"], capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    list(product(FILES, DAMAGES)),
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_command_works_or_names_the_file_however_it_is_damaged(copy, capsys, name, damage):
    tried(name, damage, copy, list(reversed(COMMANDS)), capsys)  # the last of which mends


def unfinished(run):
    """As it was after the last epoch, before the model was written."""
    shutil.rmtree(run / "model")
    (run / "result.json").unlink()
    return run


def test_a_lost_list_of_checkpoints_is_made_again_and_training_goes_on_from_the_latest(copy, measured, capsys):
    run = unfinished(copy)
    (run / "checkpoints/index.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().err
    assert "index.json is gone; listed again from the checkpoints: step-00000022.pt, step-00000044.pt" in said
    for name in ("checkpoints/index.json", "model/model.safetensors", LATEST, "metrics.csv"):
        assert (run / name).read_bytes() == (measured / name).read_bytes(), name


def test_a_checkpoint_that_is_damaged_is_left_out_of_the_new_list(copy, caplog):
    (copy / "checkpoints/index.json").write_bytes(bytes(100))
    content = bytearray((copy / LATEST).read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 200)  # more than is left empty between tensors
    content[middle] = bytes(each ^ 1 for each in content[middle])
    (copy / LATEST).write_bytes(content)
    checkpoints = Checkpoints(copy / "checkpoints")
    assert [entry.step for entry in checkpoints.entries()] == [22]
    assert all(part in caplog.text for part in ("zero bytes", "step-00000044.pt cannot be read"))
    assert checkpoints.latest()["step"] == 22


def test_a_list_older_than_the_checkpoints_loses_none(copy):
    index = copy / "checkpoints/index.json"
    old = [entry | {"file": "step-00000011.pt", "step": 11} for entry in json.loads(index.read_text())[:1]]
    index.write_text(json.dumps(old))
    assert Checkpoints(copy / "checkpoints").latest()["step"] == 44


@pytest.mark.parametrize("file", ["../../x.pt", "/etc/passwd", "a/../../x.pt", "..", ""])
def test_a_list_that_leads_elsewhere_is_refused(copy, capsys, file):
    run = unfinished(copy)
    index = run / "checkpoints/index.json"
    entries = json.loads(index.read_text())
    entries[-1]["file"] = file
    index.write_text(json.dumps(entries))
    before = contents(run)
    code, said = works_or_says_why(["train", "--resume", str(run)], capsys)
    assert code == 2 and "index.json" in said and "elsewhere" in said
    after = contents(run)
    assert all(after[path] == before[path] for path in before)


def test_without_any_checkpoint_a_run_of_several_epochs_does_not_start_over(copy, capsys):
    run = unfinished(copy)
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    code, said = works_or_says_why(["train", "--resume", str(run)], capsys)
    assert code == 2 and "2 epochs in metrics.csv, but no checkpoint" in said
    assert contents(run) == before


def test_a_run_stopped_before_its_first_checkpoint_says_that_it_starts_over(copy, capsys):
    run = unfinished(copy)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.csv").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert "no checkpoint yet; it starts from the beginning" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["result.json", "metrics.csv", "model/config.json", "model/model.safetensors"])
@pytest.mark.parametrize("damage_", [missing, zeros], ids=["missing", "zeros"])
def test_what_checkpoints_can_give_again_they_give(copy, measured, capsys, name, damage_):
    damage_(copy / name)
    damaged = {file.name: file.read_bytes() for file in (copy / "model").iterdir()}
    assert damage(RunDirectory(copy)) is not None
    assert main(["train", "--resume", str(copy)]) == 0
    assert damage(RunDirectory(copy)) is None
    if name != "result.json":  # which has times
        assert (copy / name).read_bytes() == (measured / name).read_bytes()
    aside, said = copy / "model.damaged-1", capsys.readouterr().err
    assert list(copy.glob("model.damaged-*")) == ([aside] if name.startswith("model/") else [])
    if name.startswith("model/"):
        assert {file.name: file.read_bytes() for file in aside.iterdir()} == damaged
        assert f"{copy / 'model'} was damaged and is now {aside}" in said


def test_metrics_that_end_in_zeros_are_written_again_and_lost_convergence_is_named(copy, measured, capsys):
    run = unfinished(copy)
    for name in ("metrics.csv", "convergence.csv"):
        content = (run / name).read_bytes()
        last = content.rindex(b"\n", 0, -1) + 1
        (run / name).write_bytes(content[:last] + bytes(len(content) - last))
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().err
    assert "convergence.csv has 1 damaged lines; how the inverses converged in epoch 2 is lost" in said
    assert (run / "metrics.csv").read_bytes() == (measured / "metrics.csv").read_bytes()
    assert [row["epoch"] for row in csv.DictReader((run / "convergence.csv").open())] == ["1"]


def rewritten(run, change):
    """Change what the latest checkpoint holds, with a checksum that is right."""
    state = torch.load(run / LATEST, weights_only=True)
    (run / "checkpoints/index.json").unlink()
    torch.save(change(state), run / LATEST)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [1, 2],
        lambda state: {"step": 44},
        lambda state: {key: value for key, value in state.items() if key != "model"},
        lambda state: {key: value for key, value in state.items() if key != "data_fingerprint"},
        lambda state: state | {"data_fingerprint": 3},
        lambda state: state | {"data_fingerprint": state["data_fingerprint"] | {"classes": torch.zeros(3)}},
        lambda state: state | {"data_fingerprint": state["data_fingerprint"] | {"held-out images": torch.zeros(3, 4)}},
        lambda state: state | {"rows": state["rows"] * 4},
        lambda state: state | {"rows": [1, 2]},
        lambda state: state | {"rows": [row | {"lr": torch.zeros(2)} for row in state["rows"]]},
        lambda state: state | {"confusion": torch.zeros(3, 4)},
        lambda state: state | {"losses": None},
        lambda state: state | {"confusion": None},
        lambda state: state | {"optimizer": {}},
        lambda state: state | {"seconds": "long"},
        lambda state: state | {"model": {key: value[..., :1] for key, value in state["model"].items()}},
    ],
)
def test_a_checkpoint_that_is_whole_and_of_something_else_is_named(copy, capsys, change):
    run = unfinished(copy)
    rewritten(run, change)
    before = contents(run)
    code, said = works_or_says_why(["train", "--resume", str(run)], capsys)
    assert "step-00000044.pt" in said
    assert (run / BEFORE).read_bytes() == before[run / BEFORE]
    assert code == 0 or (run / LATEST).read_bytes() == before[run / LATEST]


SPEC = {"name": "s", "set": {"epochs": 1, "schedule.warmup_epochs": 0, "model.num_blocks": 1, "model.embed_dim": 16}}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder_ = tmp_path_factory.mktemp("swept")
    (folder_ / "s.yaml").write_text(yaml.safe_dump(SPEC))
    assert main(["sweep", str(folder_ / "s.yaml"), "--out", str(folder_ / "out")]) == 0
    return folder_


@pytest.mark.parametrize(
    "name",
    [
        "spec.yaml",
        "results.csv",
        "summary.csv",
        "base/seed-0.log",
        "base/seed-0/metrics.csv",
        "base/seed-0/config.yaml",
    ],
)
@pytest.mark.parametrize("damage", [missing, zeros, doubled, folder], ids=lambda damage: damage.__name__)
def test_a_sweep_mends_its_tables_or_names_what_it_cannot_read(swept, tmp_path, capsys, name, damage):
    out = Path(shutil.copytree(swept / "out", tmp_path / "out"))
    weights = (out / "base/seed-0/model/model.safetensors").read_bytes()
    damage(out / name)
    code = main(["sweep", str(swept / "s.yaml"), "--out", str(out)])
    said = capsys.readouterr()
    assert code in (0, 1, 2) and "Traceback" not in said.err
    assert code == 0 or Path(name).name in said.err + said.out or "exists" in said.err
    assert (out / "base/seed-0/model/model.safetensors").read_bytes() == weights
    if code == 0:
        assert float(next(csv.DictReader((out / "summary.csv").open()))["val_acc_mean"]) > 0


@pytest.mark.parametrize("content", ["", "[]", "3", "{", "[" * 100_000, '{"shown": 3}', '{"panels": 3}', "\0" * 9])
def test_the_numbers_of_a_reproduction_that_are_damaged_are_named(tmp_path, capsys, content):
    (tmp_path / "table1.json").write_text(content)
    code, said = works_or_says_why(["report", str(tmp_path)], capsys)
    assert code == 2 and ("table1.json" in said or "holds no run" in said)


def test_nothing_is_removed_of_a_resumed_run_that_fails_at_once(copy, capsys, monkeypatch):
    from imixer.training.loop import Loop

    run = unfinished(copy)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.csv").unlink()

    def fail(self):
        raise InputError("the data are gone")

    monkeypatch.setattr(Loop, "fit", fail)
    assert main(["train", "--resume", str(run)]) == 2
    assert (run / "config.yaml").is_file() and os.path.isdir(run)


def set_entry(file, entry, value):
    """Change an entry of a JSON file, given by its dotted name; gives the last part of that."""
    content = json.loads(file.read_text())
    *outer, last = entry.split(".")
    (content[outer[0]] if outer else content)[last] = value
    file.write_text(json.dumps(content))
    return last


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("architecture", 3),
        ("label_names", ["0", None, *map(str, range(2, 10))]),
        ("label_names", [[]] * 10),
        ("label_names", []),
        ("num_classes", 10**12),
        ("model_args", []),
        ("model_args.num_blocks", 10**12),
        ("model_args.n_iter", 10**12),
        ("model_args.embed_dim", "wide"),
        ("pretrained_cfg", None),
        ("pretrained_cfg.input_size", [1, 10**9, 10**9]),
        ("pretrained_cfg.mean", [None]),
        ("pretrained_cfg.std", [0]),
        ("pretrained_cfg.crop_pct", -1),
        ("pretrained_cfg.interpolation", "magic"),
    ],
)
def test_a_model_whose_description_is_damaged_is_named_and_made_again(copy, measured, capsys, entry, value):
    file = copy / "model/config.json"
    last = set_entry(file, entry, value)
    code, said = works_or_says_why(["evaluate", str(copy)], capsys)
    assert code == 2 and ("config.json" in said or "model holds no model" in said or last in said)
    if last != "embed_dim":  # which only the model itself can find fault with
        assert damage(RunDirectory(copy)) is not None
    if entry in ("architecture", "pretrained_cfg.std"):
        assert main(["train", "--resume", str(copy)]) == 0
        assert file.read_text() == (measured / "model/config.json").read_text()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("parameters", None),
        ("parameters", "many"),
        ("epochs", 2.5),
        ("epochs", True),
        ("held_out", -1),
        ("seconds", []),
        ("model", {}),
        ("device", None),
        ("skipped", [3]),
        ("last", []),
        ("last.val_acc", None),
        ("last.lr", "fast"),
    ],
)
def test_a_result_with_an_entry_of_another_kind_is_made_again(copy, measured, capsys, entry, value):
    file = copy / "result.json"
    set_entry(file, entry, value)
    assert damage(RunDirectory(copy)) is not None
    if entry not in ("device", "last.lr"):
        return
    code, said = works_or_says_why(["train", "--resume", str(copy)], capsys)
    assert code == 0, said
    whole = json.loads((measured / "result.json").read_text())
    made = json.loads(file.read_text())
    assert all(made[name] == whole[name] for name in ("parameters", "epochs", "held_out", "model", "device", "skipped"))
