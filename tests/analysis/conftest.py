import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run(run: Path, tmp_path_factory) -> Path:
    """A copy of the finished run, which measurements may write into."""
    return Path(shutil.copytree(run, tmp_path_factory.mktemp("analysis") / "digits"))
