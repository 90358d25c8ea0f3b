"""What came out of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from imixer.errors import InputError
from imixer.escaping import one_line
from imixer.json_text import json_text
from imixer.reading import read_json
from imixer.training.atomic import write_text
from imixer.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Trained:
    """A finished run in numbers.

    Args:
        run: Its directory.
        last: The row of its last epoch, as in `metrics.csv`.
        seconds: From the first to the last step, validation included, over all sessions.
        epochs: Epochs run.
        parameters: Trainable numbers of the model.
        model: Name of the model.
        data: Name of the data.
        held_out: Number of held-out images.
        skipped: Names of unreadable images that were left out.
        device: Where it was trained.
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

    def write(self) -> None:
        """Write `result.json`, with null for what is not finite, such as a bound that does not exist."""
        written = {name: value for name, value in asdict(self).items() if name != "run"}
        write_text(self.run.result, json_text(written, non_finite="null"))


def read_result(run: RunDirectory) -> Trained:
    """Read what `Trained.write` wrote.

    Raises:
        InputError: If it is missing or damaged.
    """
    found = read_json(run.result)
    try:
        read = Trained(run, **found | {"skipped": tuple(found["skipped"])})
        fit = isinstance(read.last["val_acc"], (int, float)) and read.epochs >= 1 and read.seconds + read.held_out >= 0
    except (LookupError, TypeError) as error:
        raise InputError(f"{run.result} is damaged: it is not what training writes ({one_line(error)})") from error
    if not fit:
        raise InputError(f"{run.result} is damaged: its numbers cannot be")
    return read
