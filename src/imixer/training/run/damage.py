"""Find files of a finished run that are missing or damaged, and that its checkpoints can give again."""

from __future__ import annotations

import logging
from itertools import count
from typing import Any

from imixer.data.config import LARGEST_SIDE, SMALLEST_CROP
from imixer.errors import InputError
from imixer.reading import is_number, read_json, read_rows
from imixer.training.run.config import ModelConfig
from imixer.training.run.directory import RunDirectory
from imixer.training.run.result import read_result
from imixer.training.run.safetensors_file import require_whole

_log = logging.getLogger(__name__)


def damage(run: RunDirectory) -> str | None:
    """Find the first file of a finished run that is not whole.

    Args:
        run: The directory of the run.

    Returns:
        The file and what is wrong with it, in words; None if model, result and metrics are whole.
    """
    if (problem := model_damage(run)) is not None:
        return problem
    try:
        epochs = read_result(run).epochs
    except InputError as error:
        return str(error)
    rows, damaged = read_rows(run.metrics, ("epoch", "val_acc", "val_loss", "seconds"))
    if damaged or len(rows) != epochs:
        return f"{run.metrics} has {len(rows)} of {epochs} epochs whole"
    return None


def model_damage(run: RunDirectory) -> str | None:
    """Find the first file of a run's model that is not whole.

    Args:
        run: The directory of the run.

    Returns:
        The file and what is wrong with it, in words; None if the model is whole.
    """
    file = run.model / "config.json"
    try:
        config = read_json(file, ["architecture", "num_classes", "label_names", "model_args", "pretrained_cfg"])
        if (wrong := _first_wrong(config)) is not None:
            return f"{file} is damaged: {wrong} is not what training writes"
        ModelConfig(kwargs=config["model_args"])  # refuses numbers that would never end
        require_whole(run.model / "model.safetensors")
    except (OSError, ValueError) as error:
        return str(error)
    return None


def set_aside_damaged_model(run: RunDirectory) -> None:
    """Rename the folder of a run's model that is not whole, so that the model can be written anew.

    Args:
        run: The directory of the run.
    """
    if run.model.exists() and model_damage(run) is not None:
        aside = next(path for n in count(1) if not (path := run.path / f"model.damaged-{n}").exists())
        run.model.rename(aside)
        _log.warning(f"{run.model} was damaged and is now {aside}")


def _first_wrong(config: dict[str, Any]) -> str | None:
    """Name the first entry of a model's configuration that is of another kind than training writes."""
    prepared, names = config["pretrained_cfg"], config["label_names"]
    if not isinstance(config["architecture"], str):
        return "architecture"
    if not isinstance(config["model_args"], dict):
        return "model_args"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        return "label_names"
    if type(config["num_classes"]) is not int or config["num_classes"] != len(names):
        return "num_classes"
    if not isinstance(prepared, dict):
        return "pretrained_cfg"
    size = prepared.get("input_size")
    if not isinstance(size, list) or len(size) != 3 or not all(type(n) is int and 1 <= n <= LARGEST_SIDE for n in size):
        return "pretrained_cfg.input_size"
    for name in ("mean", "std"):
        values = prepared.get(name)
        if not isinstance(values, list) or len(values) != size[0] or not all(map(is_number, values)):
            return f"pretrained_cfg.{name}"
    if not all(value > 0 for value in prepared["std"]):
        return "pretrained_cfg.std"
    crop = prepared.get("crop_pct")
    if crop is None or not is_number(crop) or not SMALLEST_CROP <= crop <= 1:
        return "pretrained_cfg.crop_pct"
    return None if prepared.get("interpolation") in ("bilinear", "bicubic") else "pretrained_cfg.interpolation"
