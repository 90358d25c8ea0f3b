"""Tell whether a resumed run has the data that it was begun with."""

from __future__ import annotations

from typing import Any

import numpy as np

from imixer.data.image_data import ImageSet
from imixer.data.kept import sample_numbers
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
