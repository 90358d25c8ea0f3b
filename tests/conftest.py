import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from imixer.cli import main
from imixer.data.randomness import seed_globally

# By these, whoever calls the tests would choose how wide, in what colours and in what letters the commands print,
# here and in every process that a test starts.
for _name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "PYTHONIOENCODING"):
    os.environ.pop(_name, None)

# The same examples everywhere, and as long as they take: no test may pass on one machine and fail on a slower one.
settings.register_profile(
    "anywhere", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("anywhere")

QUICK = [
    *("--recipe", "digits_general", "--epochs", "2", "--schedule.warmup_epochs", "1"),
    *("--model.num_blocks", "1", "--model.embed_dim", "16"),
]
DRAWN_AFTER_TRAINING = "imixer.training.tasks.classification.drawn"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same numbers in every test, whichever ran before it."""
    seed_globally(0)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, to see what is left behind."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without(monkeypatch) -> Callable[..., None]:
    """Make imixer believe that some packages are not installed."""

    def hide(*modules: str) -> None:
        monkeypatch.setattr("imixer.extras.find_spec", lambda name: None if name in modules else find_spec(name))

    return hide


@pytest.fixture
def golden() -> Path:
    """Reference numbers of the authors' implementation, see its README."""
    return Path(__file__).parent / "golden"


@pytest.fixture
def bytes_in_cache() -> Callable[[Path], int]:
    """Count what a cache of streamed images takes, while others write to it."""

    def count(folder: Path) -> int:
        sizes = {}
        with FileLock(folder / "place.lock"):  # else others make place between two looks
            for file in folder.rglob("*"):
                if file.suffix in (".images", ".part"):
                    with suppress(FileNotFoundError):  # a part that became whole, and is seen as that or not at all
                        sizes[file.parent, file.stem.partition("-")[0]] = file.stat().st_size
        return sum(sizes.values())

    return count


@pytest.fixture(scope="session")
def train_quick() -> Callable[..., Path]:
    """Train a tiny model for two epochs through the command line, and draw its two pictures if asked to."""

    def train(out: Path, *flags: str, pictures: bool = False) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            if not pictures:
                patch.setattr(DRAWN_AFTER_TRAINING, lambda path, draw: True)
            assert main(["train", *QUICK, "--out", str(out), *flags]) == 0
        return out

    return train


@pytest.fixture(scope="session")
def run(train_quick, tmp_path_factory) -> Path:
    """A finished run on the digits. Tests only add to it what `evaluate` and `predict` write."""
    return train_quick(tmp_path_factory.mktemp("runs") / "digits", pictures=True)


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Draw no picture after training: a third of a short run's time, where a module looks at its numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAWN_AFTER_TRAINING, lambda path, draw: True)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
