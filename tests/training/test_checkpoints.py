"""Checkpoints that are whole, or not there."""

import json
import os
import resource
import subprocess
import sys
import textwrap

import pytest
import torch

from imixer.errors import InputError
from imixer.training.run.checkpoints import Checkpoints, NotSaved


def state(step):
    return {"model": {"weight": torch.full((1000,), float(step))}, "step": step, "rows": [{"epoch": 1}]}


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (10, 20, 30):
        checkpoints.save(state(step), step)
    return checkpoints


def files(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_there_is_none_at_first(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").latest() is None


def test_the_latest_come_back_and_older_ones_go(checkpoints):
    assert checkpoints.latest()["step"] == 30
    assert torch.equal(checkpoints.latest()["model"]["weight"], torch.full((1000,), 30.0))
    assert files(checkpoints) == ["index.json", "step-00000020.pt", "step-00000030.pt"]


def test_the_best_is_kept_besides_the_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        checkpoints.save(state(step), step, best=step in (1, 2))
    assert files(checkpoints) == ["index.json", *(f"step-0000000{step}.pt" for step in (2, 5, 6))]
    assert [entry.step for entry in checkpoints.entries() if entry.best] == [2]


def test_saving_a_step_again_keeps_its_honours(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), 1, best=True)
    checkpoints.save(state(1) | {"step": 100}, 1)
    assert [(entry.step, entry.best) for entry in checkpoints.entries()] == [(1, True)]
    assert checkpoints.latest()["step"] == 100


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", [0, 1])
def test_whoever_is_killed_while_a_step_is_saved_again_has_one_of_the_two(checkpoints, writes, monkeypatch, caplog):
    left = iter([None] * writes)

    def write(self, entries, done=Checkpoints._write):
        if next(left, "none") == "none":
            raise Killed
        done(self, entries)

    monkeypatch.setattr(Checkpoints, "_write", write)
    with pytest.raises(Killed):
        checkpoints.save(state(30) | {"rows": ["validated"]}, 30)
    monkeypatch.undo()
    again = Checkpoints(checkpoints.folder)
    assert again.latest()["step"] == 30 and again.latest()["rows"] == (["validated"] if writes else [{"epoch": 1}])
    assert not caplog.messages
    again.save(state(40), 40)
    assert again.latest()["step"] == 40


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def tamper(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, tamper, os.unlink], ids=["truncated", "one bit flipped", "gone"])
def test_a_damaged_one_is_named_and_the_one_before_it_used(checkpoints, caplog, damage):
    damage(checkpoints.folder / "step-00000030.pt")
    assert checkpoints.latest()["step"] == 20
    (said,) = caplog.messages
    assert "step-00000030.pt" in said
    assert "damaged" in said or "gone" in said
    checkpoints.save(state(25), 25)  # training went back, and passes the damaged one by
    assert files(checkpoints) == ["index.json", "step-00000020.pt", "step-00000025.pt"]


def test_if_all_are_damaged_nothing_is_guessed(checkpoints):
    for path in checkpoints.folder.glob("*.pt"):
        truncate(path)
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole; start the run again"):
        checkpoints.latest()


@pytest.mark.parametrize("content", ["", "[{]", '[{"file": 1}]', '{"a": 1}', "\0\0", "[" * 100_000])
def test_a_damaged_list_is_made_again_from_the_files(checkpoints, caplog, content):
    listed = checkpoints.index.read_text()
    checkpoints.index.write_text(content)
    assert checkpoints.latest()["step"] == 30
    assert "listed again from the checkpoints: step-00000020.pt, step-00000030.pt" in caplog.messages[0]
    assert json.loads(checkpoints.index.read_text()) == json.loads(listed)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    """By the system's own limit on the size of a file."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"weight": torch.zeros(1000)}, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(NotSaved, match=r"step-00000002.pt could not .* that of step 1 is whole; make room"):
            checkpoints.save({"weight": torch.zeros(1_000_000)}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "step-00000001.pt"]
    assert Checkpoints(tmp_path).latest()["weight"].shape == (1000,)


ENDLESS = """
    import itertools, os, pathlib, signal, sys, torch
    from imixer.training.run.checkpoints import Checkpoints

    def write(folder, told):
        checkpoints = Checkpoints(pathlib.Path(folder))
        for step in itertools.count(1):
            checkpoints.save({"step": step, "weight": torch.full((300_000,), float(step))}, step, best=step % 5 == 0)
            os.write(told, b".")

    for after in sys.argv[1:]:  # forked, so that torch is imported once
        reading, writing = os.pipe()
        if (writer := os.fork()) == 0:
            write(after, writing)
        for _ in range(int(after)):
            os.read(reading, 1)
        os.kill(writer, signal.SIGKILL)  # in the middle of the next
        os.waitpid(writer, 0)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_one(tmp_path):
    moments = (1, 7, 20)
    command = [sys.executable, "-c", textwrap.dedent(ENDLESS), *map(str, moments)]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for after in moments:
        folder = tmp_path / str(after)
        found = Checkpoints(folder).latest()
        assert found["step"] >= after
        assert torch.equal(found["weight"], torch.full((300_000,), float(found["step"])))
        listed = {entry["file"] for entry in json.loads((folder / "index.json").read_text())}
        assert all((folder / file).is_file() for file in listed)
