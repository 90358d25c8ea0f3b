"""Predict the classes of images with the model of a finished run."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from imixer.data.sources.decoding import pixel_format
from imixer.data.sources.image_files import find_images, load_images
from imixer.errors import InputError
from imixer.plotting import drawn
from imixer.progress import announce, with_progress
from imixer.training.best_weights import WhichWeights
from imixer.training.figures import draw_predictions
from imixer.training.finished_run import FinishedRun, load_run
from imixer.training.finite_checks import checked_logits, unsolved_note
from imixer.writing import check_output_file, csv_text, write_text

_BATCH = 64
SHOWN = 16  # images in the picture
_HELD_OUT = 8
_MOST_ITERATIONS = 10_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Args:
        image: The file of the image, or its place in the held-out set.
        classes: The names of the classes, the most probable first.
        probabilities: The probability of each of them.
        truth: The true class, if it is known.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    truth: str | None = None


@dataclass(frozen=True)
class _Source:
    name: str
    truth: str | None
    image: Image.Image


def predict(
    path: str,
    images: Sequence[str] = (),
    *,
    top: int = 5,
    n_iter: int | None = None,
    data: str | None = None,
    device: str = "auto",
    checkpoint: WhichWeights = "last",
    csv_file: str | None = None,
) -> tuple[list[Prediction], Path]:
    """Predict the classes of images, and draw the first `SHOWN` as `prediction.png` in the run's outputs.

    The true class of a file is known where it lies in a class folder, that is, one of a class's name. Files that
    cannot be read are left out, of which a warning tells.

    Args:
        path: The run's directory.
        images: Files, or folders of files. Default: eight of the held-out images, evenly spread.
        top: The number of most probable classes for each image.
        n_iter: The number of fixed point iterations. Default: as in training.
        data: The place where the run's data lie now, if no images are given. Default: where they lay in training.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.
        checkpoint: Whose weights to take: those of the `last` epoch, or of the `best`.
        csv_file: A file to write too, with a row for each image and class; it must not exist. Default: none.

    Returns:
        The predictions, and the path of the picture.

    Raises:
        InputError: If the run or any image at all cannot be read, the run gives an image no class, `n_iter` is given
            for a model that does not iterate, or the weights or the logits are not finite.
    """
    if top < 1:
        raise InputError(f"top is {top}; give 1 or more classes")
    if csv_file:
        check_output_file(Path(csv_file), "csv")
    if images and data is not None:
        raise InputError(f"data is {data}, which is not looked at where images are given; leave one out")
    run = load_run(path, device, checkpoint)
    run.require_classes()
    if n_iter is not None:
        _set_n_iter(run.model, n_iter, run.name)
    files = [Path(file) for file in find_images(images)] if images else []
    held_out = [] if files else _held_out(run, data)
    picture = run.make_outputs().prediction
    total = len(files) or len(held_out)
    announce(f"predicting {total:,} images")
    predictions: list[Prediction] = []
    unsolved = 0
    shown: list[_Source] = []
    loaded = (
        _Source(str(file), class_of_folder(file, images, run.class_names), image)
        for file, image in load_images(files, run.input_size[0], pixel_format(run.config.data))
    )
    sources = with_progress(([source] for source in (loaded if files else held_out)), total, "predicting images")
    while batch := list(islice(sources, _BATCH)):
        predicted, lost = _predict(run, batch, top)
        predictions += predicted
        unsolved += lost
        shown += batch[: max(0, SHOWN - len(shown))]
    if csv_file:
        _write_csv(predictions, Path(csv_file))
    if unsolved:
        _log.warning(unsolved_note(unsolved, len(predictions), "images"))
    first = predictions[: len(shown)]
    drawn(
        picture,
        lambda file: draw_predictions(
            [source.image for source in shown],
            [p.probabilities for p in first],
            [p.classes for p in first],
            [Path(p.image).name for p in first],
            [p.truth for p in first],
            file,
        ),
    )
    return predictions, picture


def class_of_folder(file: Path, given: Sequence[str], class_names: Collection[str]) -> str | None:
    """Return the class that the folders of an image name: the innermost one that is called like a class.

    Args:
        file: The image.
        given: The files and folders that were given. Folders above these are not looked at, except that of a file.
        class_names: The names of the classes.

    Returns:
        The name of the class; None if no folder is called like one.
    """
    tops = {os.path.abspath(os.path.expanduser(path)) for path in given}
    path = os.path.abspath(file)
    for folder in Path(path).parents:
        if folder.name in class_names:
            return folder.name
        if not tops.isdisjoint((path, str(folder))):
            return None
    return None


def _set_n_iter(model: Any, n_iter: int, name: str) -> None:
    if not hasattr(model, "n_iter"):
        raise InputError(f"n_iter: the model of {name} is no iMixer and does not iterate; leave it out")
    if getattr(model, "solver", "fixed") != "fixed":
        raise InputError(f"n_iter: the model of {name} solves to a tolerance with {model.solver}; leave it out")
    if n_iter > _MOST_ITERATIONS:
        raise InputError(f"n_iter is {n_iter}; give at most {_MOST_ITERATIONS:,}")
    try:
        model.n_iter = n_iter
    except ValueError as error:
        raise InputError(str(error)) from error


def _held_out(run: FinishedRun, data_path: str | None) -> list[_Source]:
    data = run.data(data_path)
    total = len(data.val)
    places = sorted({i * total // _HELD_OUT for i in range(_HELD_OUT)})
    return [
        _Source(f"held-out {place}", data.class_names[label], image)
        for place in places
        for image, label in [data.val[place]]
    ]


@torch.inference_mode()
def _predict(run: FinishedRun, sources: Sequence[_Source], top: int) -> tuple[list[Prediction], int]:
    """Predict the classes of images; return them with the number of images that are unsolved."""
    names = run.class_names
    batch = torch.stack([run.transform(source.image) for source in sources]).to(run.device)
    logits, unsolved = checked_logits(run.model, batch, run.name)
    chances, classes = logits.float().softmax(1).topk(min(top, len(names)))
    return [
        Prediction(source.name, tuple(names[i] for i in best), tuple(chance), source.truth)
        for source, best, chance in zip(sources, classes.tolist(), chances.tolist(), strict=True)
    ], unsolved


def _write_csv(predictions: Sequence[Prediction], path: Path) -> None:
    rows = (
        [p.image, rank, name, f"{chance:.6f}", p.truth or ""]
        for p in predictions
        for rank, (name, chance) in enumerate(zip(p.classes, p.probabilities, strict=True), 1)
    )
    write_text(path, csv_text(["image", "rank", "class", "probability", "true_class"], rows))
