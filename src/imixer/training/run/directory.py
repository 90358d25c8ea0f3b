"""Where a run keeps its files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from imixer.errors import InputError
from imixer.escaping import middle_cut, printable

_LONGEST_PART = 255  # bytes of a name, on all common file systems
_MOST_LETTERS = 40  # of a data set's or a model's name in that of a directory


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, by name.

    Args:
        path: The directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The whole configuration; loads again through `--config`."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and hardware."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files of the same numbers."""
        return self.path / "tensorboard"

    @property
    def convergence(self) -> Path:
        """How the inverses converge: one row per epoch and block."""
        return self.path / "convergence.csv"

    @property
    def checkpoints(self) -> Path:
        """The latest checkpoints and the best."""
        return self.path / "checkpoints"

    @property
    def nonfinite(self) -> Path:
        """Steps that were not finite, for `imixer replay`."""
        return self.path / "nonfinite"

    @property
    def lock(self) -> Path:
        """Locked by the process that trains."""
        return self.path / ".lock"

    @property
    def result(self) -> Path:
        """What came out."""
        return self.path / "result.json"

    @property
    def finished(self) -> bool:
        """Whether training is done and everything is written."""
        return (self.model / "model.safetensors").is_file()

    @property
    def model(self) -> Path:
        """Weights and architecture, for `timm.create_model("local-dir:...", pretrained=True)`."""
        return self.path / "model"

    @property
    def learning_curves(self) -> Path:
        """Loss, accuracy and learning rate over the epochs."""
        return self.path / "learning_curves.png"

    @property
    def confusion_matrix(self) -> Path:
        """True against predicted class on the validation data, drawn."""
        return self.path / "confusion_matrix.png"

    @property
    def confusion_counts(self) -> Path:
        """The numbers of it: a row per true class, a column per predicted class."""
        return self.path / "confusion_matrix.csv"

    @property
    def evaluation(self) -> Path:
        """What `imixer evaluate` found."""
        return self.path / "evaluation.json"

    @property
    def test_evaluation(self) -> Path:
        """What `imixer evaluate --test` found."""
        return self.path / "test_evaluation.json"

    @property
    def corruptions(self) -> Path:
        """What `imixer evaluate --corruptions` found."""
        return self.path / "corruptions.json"

    @property
    def adversarial(self) -> Path:
        """What `imixer evaluate --adversarial` found."""
        return self.path / "adversarial.json"

    @property
    def prediction(self) -> Path:
        """What `imixer predict` drew."""
        return self.path / "prediction.png"

    @property
    def analysis(self) -> Path:
        """What `imixer analyze` measured: a table and a figure for each measurement."""
        return self.path / "analysis"


def check_out(out: str | None) -> None:
    """See that a run can be written to `out`, without writing.

    Raises:
        InputError: If it exists, or lies under a file.
    """
    if out is None:
        return
    path = Path(out)
    if "\0" in out or any(len(os.fsencode(part)) > _LONGEST_PART for part in path.parts):
        raise InputError(
            f"out: {middle_cut(printable(out), 80)} can be no folder; give names of at most {_LONGEST_PART} bytes, "
            "without zero bytes"
        )
    if path.exists() or path.is_symlink():
        raise InputError(f"out: {out} exists, and nothing is overwritten; give another name or remove it")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise InputError(f"out: {out} cannot be made, {parent} is a file")


def create_run(out: str | None, data: str, model: str) -> RunDirectory:
    """Make the directory, `out` or the next free `runs/<data>-<model>-<number>`.

    Raises:
        InputError: If it exists or cannot be written.
    """
    check_out(out)
    name = f"{_slug(data)}-{_slug(model)}"
    paths = [Path(out)] if out else (Path("runs") / f"{name}-{number:03d}" for number in count(1))
    for path in paths:
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another run took the number
            continue
        except OSError as error:
            raise InputError(f"out: {path} cannot be made, {error.strerror}") from error
        return RunDirectory(path)
    raise InputError(f"out: {out} exists, and nothing is overwritten; give another name or remove it")


def open_begun(path: str) -> RunDirectory:
    """The directory of a run, finished or not.

    Raises:
        InputError: If `path` is none.
    """
    run = RunDirectory(Path(path))
    if not run.path.is_dir():
        raise InputError(f"no run at {path}; `imixer train --out {path}` makes one")
    if not run.config.is_file():
        raise InputError(f"{path} is no run: it has no {run.config.name}")
    return run


def open_run(path: str) -> RunDirectory:
    """The directory of a finished run.

    Raises:
        InputError: If `path` is none; it says what is missing.
    """
    run = open_begun(path)
    for file in (run.model / "config.json", run.model / "model.safetensors"):
        if not file.is_file():
            raise InputError(
                f"{path} is not a finished run: it has no {file.relative_to(run.path)}; `imixer train --resume {path}` "
                "finishes it"
            )
    return run


def _slug(name: str) -> str:
    slug = re.sub(r"[^\w.]+", "_", name).strip("_") or "run"
    # both ends of a long one: file systems have a limit, in bytes
    return slug if len(slug) <= _MOST_LETTERS else f"{slug[: _MOST_LETTERS // 2]}_{slug[-_MOST_LETTERS // 2 :]}"


def short_names(paths: Sequence[Path]) -> list[str]:
    """Shorten some paths to their ends, as long as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
