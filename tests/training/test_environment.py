"""The commit of a run is that of the checkout which tracks the package, if one does."""

import re
import shutil
import subprocess

import pytest

from imixer.training.environment import _commit, environment

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
    found = environment()["commit"]
    assert found is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found)
