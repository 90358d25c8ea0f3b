"""Check what changes when a run is resumed: how and where it is computed may, what is computed may not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from imixer.errors import InputError
from imixer.escaping import shell_word
from imixer.training.run.config import TrainConfig
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import flatten

_FREE = {
    "out",
    "accelerator",
    "accumulate",
    "channels_last",
    "compile",
    "data.cache_dir",
    "data.check",
    "data.download",
    "data.name",  # the data may have moved; that they are the same is seen from themselves
    "data.root",
    "data.workers",
    "devices",
    "grad_checkpointing",
    "logger",
    "model.max_steps",  # the remedy for an inverse that is not found
    "model.on_failure",
    "non_finite",
    "num_nodes",
    "strategy",
}
_STARTS = ("model.checkpoint", "model.from_mixer")  # may have moved; the weights are those of the checkpoint by now


def check_changes(before: TrainConfig, now: TrainConfig, path: str) -> None:
    """Check that a resumed run computes the same as the run that was begun.

    Args:
        before: The configuration of the run.
        now: The configuration to resume it with.
        path: The directory of the run.

    Raises:
        InputError: If it would write elsewhere, or compute something else; the message names the first setting that
            differs.
    """
    if now.out not in (None, before.out) and Path(now.out).absolute() != Path(path).absolute():
        raise InputError(f"out is {now.out}, and resume writes into {path}; leave one of them out")
    old, new = flatten(asdict(before)), flatten(asdict(now))
    for name in {**new, **old}:  # an empty mapping has no names of its own
        value = new.get(name)
        free = name in _FREE or name.startswith("checkpoints.") or (name in _STARTS and value and old.get(name))
        if value != old.get(name) and not free:
            of_weights = f", from these weights with --model.checkpoint {shell_word(path)}"
            started = of_weights if before.task == "classify" and RunDirectory(Path(path)).finished else ""
            raise InputError(
                f"{name} is {value}, but {path} was begun with {old.get(name)}; leave it out to resume, or start a new "
                f"run{started}"
            )
    if before.task == "segment":
        check_parts(before, now, path, "the loss of a segmentation is that of each of these parts of a batch")
    if before.data.mixup or before.data.cutmix:
        check_parts(before, now, path, "the images of each of these parts of a batch are mixed with each other")


def check_parts(before: TrainConfig, now: TrainConfig, path: str, why: str) -> None:
    """Check that a resumed run cuts its batches into as many parts as the run that was begun.

    Args:
        before: The configuration of the run.
        now: The configuration to resume it with.
        path: The directory of the run.
        why: Why that matters, in words.

    Raises:
        InputError: If it does not.
    """
    if now.micro_batch != before.micro_batch:
        parts, begun = (each.data.batch_size // each.micro_batch for each in (now, before))
        raise InputError(
            f"devices x num_nodes x accumulate is {parts}, but {path} was begun with {begun}, and {why}; make the "
            f"product {begun} again"
        )
