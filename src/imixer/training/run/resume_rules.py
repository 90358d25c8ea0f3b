"""What may change when a run is resumed: how and where it is computed, never what."""

from __future__ import annotations

from dataclasses import asdict

from imixer.errors import InputError
from imixer.training.run.config import TrainConfig
from imixer.training.run.parsing import flatten

_FREE = {
    "out",
    "accelerator",
    "accumulate",
    "channels_last",
    "compile",
    "data.check",
    "data.download",
    "data.name",  # the data may have moved; that they are the same is seen from themselves
    "data.root",
    "data.workers",
    "devices",
    "grad_checkpointing",
    "logger",
    "non_finite",
    "num_nodes",
    "strategy",
}


def check_changes(before: TrainConfig, now: TrainConfig, path: str) -> None:
    """See that a resumed run computes what it was begun for.

    Args:
        before: The run's configuration.
        now: That to resume with.
        path: The run's directory.

    Raises:
        InputError: If not; it names the first setting that differs.
    """
    old, new = flatten(asdict(before)), flatten(asdict(now))
    for name, value in new.items():
        if value != old.get(name) and name not in _FREE and not name.startswith("checkpoints."):
            raise InputError(
                f"{name} is {value}, but {path} was begun with {old.get(name)}; leave it out to resume, or start a new "
                f"run, from these weights with --model.checkpoint {path}/model/model.safetensors"
            )
