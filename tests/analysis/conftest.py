import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture(scope="session")
def run(run: Path, tmp_path_factory) -> Path:
    """A copy of the finished run, which measurements may write into."""
    return Path(shutil.copytree(run, tmp_path_factory.mktemp("analysis") / "digits"))


@pytest.fixture(scope="session")
def mixer_run(train_quick, tmp_path_factory) -> Path:
    """A finished run of a Mixer."""
    return train_quick(tmp_path_factory.mktemp("runs") / "mixer", "--model.name", "mixer_t2_8")


@pytest.fixture
def unsaved(monkeypatch) -> None:
    """Build figures and save none, where a test looks at their parts: saving is nearly all of the time they take."""
    monkeypatch.setattr(Figure, "savefig", lambda *args, **kwargs: None)


@pytest.fixture
def is_print_pair() -> Callable[[Path], None]:
    """Check that a PNG of 300 dpi and a PDF of the same size with its letters as fonts lie side by side."""

    def check(png: Path) -> None:
        with Image.open(png) as picture:
            assert picture.format == "PNG" and round(picture.info["dpi"][0]) == 300
            assert (np.ptp(np.asarray(picture.convert("RGB")), axis=2) > 60).mean() > 1e-3  # there are colours
            width, height = picture.size
        pdf = png.with_suffix(".pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/CreationDate" not in pdf
        box = re.search(rb"/MediaBox \[ 0 0 (\S+) (\S+) \]", pdf)
        assert box is not None
        assert [float(side) / 72 * 300 for side in box.groups()] == pytest.approx([width, height], abs=2)

    return check
