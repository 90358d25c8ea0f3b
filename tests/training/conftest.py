from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def averaged_run(train_quick, tmp_path_factory) -> Path:
    """A finished run with a running average of its weights."""
    return train_quick(tmp_path_factory.mktemp("runs") / "averaged", "--ema", "0.9")
