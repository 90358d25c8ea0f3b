"""What came out of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Dict, Tuple

from imixer.json_text import json_text
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
    last: Dict[str, Any]
    seconds: float
    epochs: int
    parameters: int
    model: str
    data: str
    held_out: int
    skipped: Tuple[str, ...]
    device: str

    def write(self) -> None:
        """Write `result.json`, with null for what is not finite, such as a bound that does not exist."""
        written = {name: value for name, value in asdict(self).items() if name != "run"}
        write_text(self.run.result, json_text(written, non_finite="null"))


def read_result(run: RunDirectory) -> Trained:
    """What `Trained.write` wrote."""
    found = json.loads(run.result.read_text(encoding="utf-8"))
    return Trained(run, **found | {"skipped": tuple(found["skipped"])})
