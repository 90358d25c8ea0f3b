"""Tell whether a resumed run has the data that it was begun with, and a finished one the images it held out."""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import Any

import numpy as np

from imixer.data.image_data import ImageSet, MaskedData
from imixer.data.kept import sample_numbers
from imixer.data.sources.rows import ShardImages
from imixer.errors import InputError
from imixer.training.run.checkpoints import Checkpoints, State
from imixer.training.run.directory import RunDirectory

_LOOKED_AT = "images that were looked at"
_FEW = 8  # of each part
_DECODERS = (0, 0, 2.0, 1e-3)  # two of them need not agree on every pixel of a JPEG file, of 255


def data_fingerprint(data: ImageSet) -> dict[str, Any]:
    """Describe the data, in what must not change between a run's sessions.

    Args:
        data: The data.
    """
    told = (
        {"origin": list(data.origin), "stored images": data.fingerprint}
        if data.fingerprint
        else {_LOOKED_AT: _look_at_some(data)}
    )
    return told | {
        "training images": len(data.train),
        "held-out images": len(data.val),
        "classes": list(data.class_names),
    }


def check_same_data(state: State, data: ImageSet, run: RunDirectory) -> None:
    """Check that the data are those of a checkpoint.

    Args:
        state: The checkpoint.
        data: The data.
        run: The run that it belongs to.

    Raises:
        InputError: If they are not, or the checkpoint does not say.
    """
    fingerprint, now = state.get("data_fingerprint"), data_fingerprint(data)
    if isinstance(fingerprint, dict) and _LOOKED_AT not in fingerprint:
        now.pop(_LOOKED_AT, None)  # checkpoints of before do not say
    if not isinstance(fingerprint, dict) or any(
        type(fingerprint.get(name)) is not type(here) for name, here in now.items()
    ):
        raise InputError(
            f"{Checkpoints(run.checkpoints).file(state['step'])} says nothing of the data that it was trained on; move "
            "it away to go on from the one before"
        )
    remedy = "give the data it was trained on with --data.name or --data.root"
    for name, here in sorted(now.items(), key=lambda item: item[0] == _LOOKED_AT):
        before = fingerprint[name]
        if name == "origin":  # elsewhere the same images are other objects
            if before[:1] == here[:1] and before != here:
                raise InputError(
                    f"the objects at {here[0]} were replaced since {run.path} was trained on them; put those back, or "
                    "start a new run"
                )
        elif name == _LOOKED_AT:
            if not _alike(before, here):
                raise InputError(f"{run.path} was trained on as many other images, or in another order; {remedy}")
        elif before != here:
            shown = (len(before), len(here)) if isinstance(here, list) else (before, here)
            raise InputError(
                f"{run.path} was trained on {data.name} with other {name} ({shown[0]}; now {shown[1]}); {remedy}"
            )


def check_same_start(state: State, identity: str, start: str, run: RunDirectory) -> None:
    """Check that weights that lie elsewhere by now bring the model and the preparation of images that a run has.

    Args:
        state: The checkpoint that the run goes on from.
        identity: What `BuiltModel.identity` says of the model that was built for them.
        start: The place of the weights.
        run: The run.

    Raises:
        InputError: If they do not, or the checkpoint is of an earlier version and does not say.
    """
    if "built" not in state:
        raise InputError(
            f"the checkpoints of {run.path} do not say which weights it was begun with, and {start} may be others; put "
            "those back where its config.yaml says that they lay"
        )
    if state["built"] != identity:
        raise InputError(
            f"the weights of {start} are of another model, or for images prepared otherwise, than those that "
            f"{run.path} was begun with; give these, wherever they lie now"
        )


def held_out_draw(data: ImageSet) -> str:
    """Return a checksum of which images are held out of those of training, by their names, wherever they lie.

    Args:
        data: The data.

    Returns:
        The checksum; empty if the data have a part of their own for it.
    """
    if data.split is not None:
        return ""
    told = [str(len(data.train)), str(len(data.val)), *sorted(_names_anywhere(data))]
    return hashlib.sha256("\0".join(told).encode(errors="surrogateescape")).hexdigest()


def _names_anywhere(data: ImageSet) -> list[str]:
    """Name held-out images by what is the same wherever the data lie: rows by number, files by folder and name.

    Of masked pairs the name is all that is sure: the folder of a shard is that of the data.
    """
    if isinstance(data.val, ShardImages):
        return [str(row) for row in data.val.chosen]
    kept = 1 if isinstance(data, MaskedData) else 2
    return ["/".join(PurePath(path).parts[-kept:]) for path in getattr(data.val, "paths", ())]


def check_held_out(before: str | None, data: ImageSet, run: str) -> None:
    """Check that the held-out images are those of training, for the others may have been trained on.

    Args:
        before: What `held_out_draw` said in training. None: nothing is known.
        data: The data.
        run: The name of the run.

    Raises:
        InputError: If images were held out of those of training, then or now, and they are others.
    """
    if before is not None and held_out_draw(data) != before:
        raise InputError(
            f"{data.name} has changed since {run} was trained, and images that it would hold out now may have been "
            "trained on; put it back as it was, or measure on other images with `imixer evaluate RUN --test FOLDER`"
        )


def _look_at_some(data: ImageSet) -> list[list[float]]:
    """Return width, height, mean pixel and mean target of a few images of each part, always the same."""
    seen = []
    for part in (data.train, data.val):
        for number in sample_numbers(len(part), _FEW):
            image, target = part[number]
            seen.append([*map(float, image.size), float(np.asarray(image).mean()), float(np.asarray(target).mean())])
    return seen


def _alike(before: list[list[float]], here: list[list[float]]) -> bool:
    try:
        differences = np.abs(np.array(before, dtype=float) - np.array(here))
    except (TypeError, ValueError):  # of another form
        return False
    return bool((differences <= _DECODERS).all())
