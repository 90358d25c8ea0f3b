"""The result of a run, in numbers, and the file that holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imixer.errors import InputError
from imixer.escaping import one_line
from imixer.reading import is_number, read_json
from imixer.training.run.config import TaskName
from imixer.training.run.directory import RunDirectory
from imixer.writing import json_text, write_text


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished run, in numbers. `load_run` gives its model.

    Args:
        run: The directory of the run.
        last: The metrics of the last epoch, a row of `metrics.csv`.
        seconds: The time from the first to the last step, validation included, over all sessions.
        epochs: The number of epochs.
        parameters: The number of trainable parameters.
        model: The name of the model.
        data: The name of the data set.
        held_out: The number of held-out images.
        skipped: The names of unreadable images that were left out.
        device: The name of the device.
        best: The metrics of the best epoch, likewise; see `best_row`. None: written by an earlier version.
        held_out_draw: The checksum of which images were held out of those of training, see
            `imixer.training.same_data.held_out_draw`. Empty: the data had a part of their own for it. None: written by
            an earlier version.
    """

    run: RunDirectory
    last: dict[str, Any]
    seconds: float
    epochs: int
    parameters: int
    model: str
    data: str
    held_out: int
    skipped: tuple[str, ...]
    device: str
    best: dict[str, Any] | None = None
    held_out_draw: str | None = None

    def write(self) -> None:
        """Write `result.json`, with null for what is not finite, such as a bound that does not exist."""
        written = {name: value for name, value in asdict(self).items() if name != "run"}
        write_text(self.run.result, json_text(written, non_finite="null"))


METRIC_NAMES = {"val_miou": "mIoU", "val_auroc": "AUROC", "val_acc": "accuracy"}  # of those that decide


def metric_of(task: TaskName) -> str:
    """Name the metric that runs of a task are compared by.

    Args:
        task: The task.
    """
    return {"segment": "val_miou", "anomaly": "val_auroc"}.get(task, "val_acc")


def best_by(row: Mapping[str, Any]) -> str:
    """Name the metric that decides which epoch is the best: that of the task, or else accuracy.

    Args:
        row: The metrics of an epoch.
    """
    return next((name for name in METRIC_NAMES if name in row), "val_acc")


def best_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of the best epoch: the first with the highest value of `best_by` on the held-out images.

    Epochs whose loss there is not finite are passed over, if there are others.

    Args:
        rows: The metrics of each epoch, at least one.
    """
    finite = [row for row in rows if has_finite_loss(row)]
    best: Mapping[str, Any] = max(finite or rows, key=lambda row: row[best_by(row)])
    return dict(best)


def has_finite_loss(row: Mapping[str, Any]) -> bool:
    """Tell whether the loss on the held-out images was finite after an epoch.

    Args:
        row: The metrics of the epoch.
    """
    return row.get("val_loss") is not None and math.isfinite(row["val_loss"])


def read_result(run: RunDirectory) -> TrainingResult:
    """Read the result of a run, as `TrainingResult.write` wrote it.

    Args:
        run: The directory of the run.

    Raises:
        InputError: If `result.json` is missing or damaged.
    """
    content = read_json(run.result)
    try:
        read = TrainingResult(run, **content | {"skipped": tuple(content["skipped"])})
    except (LookupError, TypeError) as error:
        raise InputError(f"{run.result} is damaged: it is not what training writes ({one_line(error)})") from error
    if (wrong := _first_wrong(read)) is not None:
        raise InputError(f"{run.result} is damaged: {wrong} is not what training writes")
    return read


def _first_wrong(read: TrainingResult) -> str | None:
    """Name the first entry that cannot be of a run."""
    for which, row in (("last", read.last), ("best", read.best)):
        if row is None and which == "best":  # of an earlier version
            continue
        if not isinstance(row, dict) or not {"epoch", "val_acc", "val_loss"} <= row.keys():
            return which
        for name, value in row.items():  # a bound that does not exist is null
            needed = name.startswith("val_") or name == "epoch"
            if name == "val_loss" and value is None:
                continue  # it was not finite
            if not (is_number(value) or value is None) or (needed and value is None):
                return f"{which}.{name}"
    for name, low in (("epochs", 1), ("parameters", 0), ("held_out", 0)):
        value = getattr(read, name)
        if type(value) is not int or value < low:
            return name
    if not is_number(read.seconds) or read.seconds < 0:
        return "seconds"
    for name in ("model", "data", "device"):
        if not isinstance(getattr(read, name), str):
            return name
    if not isinstance(read.held_out_draw, str | None):
        return "held_out_draw"
    return None if all(isinstance(name, str) for name in read.skipped) else "skipped"
