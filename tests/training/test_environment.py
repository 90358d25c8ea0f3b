"""The commit of a run is that of the checkout which tracks the package, if one does."""

import json
import re
import shutil
import subprocess

import pytest
import torch

from imixer.cli import main
from imixer.training.run.environment import _commit, environment, environment_changes

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        named = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *named, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    (tmp_path / "tracked.py").write_text("one\n")
    git("init")
    git("add", "tracked.py")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a release")  # whose name is no commit
    return tmp_path, git("rev-parse", "HEAD").strip()


def test_a_commit_is_named_in_full_with_a_mark_if_changed(checkout):
    folder, head = checkout
    assert _commit(folder / "tracked.py") == head
    (folder / "tracked.py").write_text("two\n")
    assert _commit(folder / "tracked.py") == f"{head}-dirty"


def test_a_package_installed_inside_another_checkout_has_none(checkout):
    folder, _ = checkout
    (folder / "installed.py").touch()
    assert _commit(folder / "installed.py") is None


def test_no_checkout_or_no_git_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / "file.py").touch()
    assert _commit(tmp_path / "file.py") is None
    monkeypatch.setenv("PATH", "")
    assert _commit(tmp_path / "file.py") is None


def test_the_environment_says_which_commit():
    commit = environment()["commit"]
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


def test_what_makes_numbers_differ_is_found_and_nothing_else():
    begun = environment()
    assert environment_changes(begun, environment()) == {}
    now = begun | {"torch_threads": begun["torch_threads"] + 1, "cpu_capability": "AVX9", "platform": "elsewhere"}
    expected = {"cpu_capability": "AVX9", "torch_threads": begun["torch_threads"] + 1}
    assert environment_changes(begun, now) == expected
    assert environment_changes({"torch": begun["torch"]}, now) == {}  # a run of an older version


@pytest.mark.usefixtures("undrawn")
def test_a_run_resumed_with_other_threads_says_so_and_writes_it_down(run, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(run / "model")  # it is what makes a run finished
    begun = json.loads((run / "environment.json").read_text())
    assert main(["train", "--resume", str(run)]) == 0
    assert "resumed" not in json.loads((run / "environment.json").read_text())
    shutil.rmtree(run / "model")
    monkeypatch.setattr(torch, "get_num_threads", lambda: begun["torch_threads"] + 7)
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    threads = begun["torch_threads"] + 7
    said = f"resumed with torch_threads {threads} instead of {begun['torch_threads']}: numbers may differ"
    assert said in capsys.readouterr().err
    noted = json.loads((run / "environment.json").read_text())
    assert noted.pop("resumed") == [{"step": 44, "torch_threads": threads}] and noted == begun
