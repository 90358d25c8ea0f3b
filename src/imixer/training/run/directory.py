"""The directory of a run: the names of its files; making one and opening one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from imixer.errors import InputError
from imixer.escaping import middle_cut, printable, shell_word, slug
from imixer.writing import check_output_folder

_LONGEST_PART = 255  # bytes of a name, on all common file systems
_DEFAULT_PARENT = Path("runs")  # of a run whose directory is not named
_MOST_LETTERS = 40  # of a data set's or a model's name in that of a directory


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run, with the path of each of its files. A path does not mean that the file is there.

    `open_run` opens one and checks it; `imixer.training.finished_run.load_run` loads the model in it, too.

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
        """The versions and the hardware it was trained with."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """The metrics, one row per epoch."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files, with the same numbers."""
        return self.path / "tensorboard"

    @property
    def convergence(self) -> Path:
        """The convergence of the inverses, one row per epoch and block."""
        return self.path / "convergence.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the latest checkpoints and the best."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The folder of what is computed from the weights of the best epoch, with the same names as here."""
        return self.path / "best"

    @property
    def nonfinite(self) -> Path:
        """The folder of steps that were not finite, for `imixer replay`."""
        return self.path / "nonfinite"

    @property
    def lock(self) -> Path:
        """The file that the process that trains has locked."""
        return self.path / ".lock"

    @property
    def result(self) -> Path:
        """The result in numbers."""
        return self.path / "result.json"

    @property
    def finished(self) -> bool:
        """Whether training is done and everything is written."""
        return (self.model / "model.safetensors").is_file()

    @property
    def training(self) -> bool:
        """Whether a process trains it now."""
        return is_locked(self.lock)

    @property
    def model(self) -> Path:
        """The folder of weights and architecture, for `timm.create_model("local-dir:...", pretrained=True)`."""
        return self.path / "model"

    @property
    def learning_curves(self) -> Path:
        """The figure of loss, accuracy and learning rate over the epochs."""
        return self.path / "learning_curves.png"

    @property
    def confusion_matrix(self) -> Path:
        """The figure of true against predicted class on the validation data."""
        return self.path / "confusion_matrix.png"

    @property
    def confusion_counts(self) -> Path:
        """The counts of that figure, a row per true class, a column per predicted class."""
        return self.path / "confusion_matrix.csv"

    @property
    def evaluation(self) -> Path:
        """The scores that `imixer evaluate` writes."""
        return self.path / "evaluation.json"

    @property
    def predictions(self) -> Path:
        """The prediction for each held-out image, a row each, that `imixer evaluate` writes."""
        return self.path / "predictions.csv"

    @property
    def worst_images(self) -> Path:
        """The figure of the held-out images with the largest loss, that `imixer evaluate` draws."""
        return self.path / "worst_images.png"

    @property
    def test_evaluation(self) -> Path:
        """The scores that `imixer evaluate --test` writes."""
        return self.path / "test_evaluation.json"

    @property
    def test_predictions(self) -> Path:
        """The prediction for each image of a test set, a row each."""
        return self.path / "test_predictions.csv"

    @property
    def test_confusion_counts(self) -> Path:
        """The counts of true against predicted class on a test set, as `confusion_counts`."""
        return self.path / "test_confusion_matrix.csv"

    @property
    def test_confusion_matrix(self) -> Path:
        """The figure of true against predicted class on a test set."""
        return self.path / "test_confusion_matrix.png"

    @property
    def test_worst_images(self) -> Path:
        """The figure of the images of a test set with the largest loss."""
        return self.path / "test_worst_images.png"

    @property
    def corruptions(self) -> Path:
        """The scores that `imixer evaluate --corruptions` writes."""
        return self.path / "corruptions.json"

    @property
    def adversarial(self) -> Path:
        """The scores that `imixer evaluate --adversarial` writes."""
        return self.path / "adversarial.json"

    @property
    def prediction(self) -> Path:
        """The figure that `imixer predict` draws."""
        return self.path / "prediction.png"

    @property
    def mask_predictions(self) -> Path:
        """The folder of masks that `imixer predict` writes for a segmentation."""
        return self.path / "predictions"

    @property
    def normal_features(self) -> Path:
        """The features of normal images, for the detection of anomalies."""
        return self.path / "normal.safetensors"

    @property
    def anomalies(self) -> Path:
        """The numbers of the detection of anomalies."""
        return self.path / "anomaly.json"

    @property
    def heat_maps(self) -> Path:
        """The figure of the least normal images of each kind, with their heat maps."""
        return self.path / "heat_maps.png"

    @property
    def analysis(self) -> Path:
        """The folder of `imixer analyze`, with a table and a figure for each measurement."""
        return self.path / "analysis"


def is_locked(file: Path) -> bool:
    """Tell whether a process holds the lock of a file, by holding it for a moment beside no other."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never made, or a file system without locks
        return False
    return False


def check_out(out: str | None) -> None:
    """Check that a run can be written to a directory, without writing.

    Args:
        out: The directory. None stands for the next free one in `runs`.

    Raises:
        InputError: If it exists, lies under a file or a link to nowhere, may not be made, or no folder can have its
            name.
    """
    if out is None:
        check_output_folder(_DEFAULT_PARENT, "out")
        return
    path = Path(out)
    if "\0" in out or any(len(os.fsencode(part)) > _LONGEST_PART for part in path.parts):
        raise InputError(
            f"out: {middle_cut(printable(out), 80)} can be no folder; give names of at most {_LONGEST_PART} bytes, "
            "without zero bytes"
        )
    if path.exists() or path.is_symlink():
        raise InputError(f"out: {out} exists, and nothing is overwritten; give another name or remove it")
    check_output_folder(path, "out")


def create_run(out: str | None, data: str, model: str) -> RunDirectory:
    """Make the directory of a new run.

    Args:
        out: The directory. Default: the next free `runs/<data>-<model>-<number>`.
        data: The name of the data set.
        model: The name of the model.

    Raises:
        InputError: If the directory exists or cannot be made.
    """
    check_out(out)
    name = f"{_short_slug(data)}-{_short_slug(model)}"
    paths = [Path(out)] if out else (_DEFAULT_PARENT / f"{name}-{number:03d}" for number in count(1))
    for path in paths:
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another run took the number
            check_output_folder(path.parent, "out")  # else a link to nowhere in its place would never end this
        except OSError as error:
            raise InputError(f"out: {path} cannot be made, {error.strerror}") from error
        else:
            return RunDirectory(path)
    raise InputError(f"out: {out} exists, and nothing is overwritten; give another name or remove it")


def open_begun(path: str) -> RunDirectory:
    """Open the directory of a run, finished or not.

    Args:
        path: The directory.

    Raises:
        InputError: If it is not there, or is not that of a run.
    """
    run = RunDirectory(Path(path))
    if run.path.exists() and not run.path.is_dir():
        raise InputError(f"{path} is a file and no run; give a folder that `imixer train` has written to")
    if not run.path.is_dir():
        raise InputError(f"no run at {path}; `imixer train --out {shell_word(path)}` makes one")
    if not run.config.is_file():
        raise InputError(
            f"{path} is no run: it has no {run.config.name}; give a folder that `imixer train` has written to"
        )
    return run


def open_run(path: str) -> RunDirectory:
    """Open the directory of a finished run.

    Args:
        path: The directory.

    Raises:
        InputError: If it is not there, is not that of a run, or the run is not finished.
    """
    run = open_begun(path)
    for file in (run.model / "config.json", run.model / "model.safetensors"):
        if not file.is_file():
            raise InputError(
                f"{path} is not a finished run: it has no {file.relative_to(run.path)}; `imixer train --resume "
                f"{shell_word(path)}` finishes it"
            )
    return run


def _short_slug(name: str) -> str:
    whole = slug(name, empty="run")
    # both ends of a long one: file systems have a limit, in bytes
    return whole if len(whole) <= _MOST_LETTERS else f"{whole[: _MOST_LETTERS // 2]}_{whole[-_MOST_LETTERS // 2 :]}"


def short_names(paths: Sequence[Path]) -> list[str]:
    """Shorten paths to as many of their last parts as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
