"""Which files of a finished run are missing or damaged, of those that its checkpoints can give again."""

from __future__ import annotations

from imixer.errors import InputError
from imixer.reading import read_json, read_rows
from imixer.training.finite_file import require_whole
from imixer.training.result import read_result
from imixer.training.run_directory import RunDirectory


def damage(run: RunDirectory) -> str | None:
    """Look for the first file of a finished run that is not whole.

    Args:
        run: Its directory.

    Returns:
        Which it is and what is wrong with it, in words; None if model, result and metrics are whole.
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
    """Look for the first file of a run's model that is not whole.

    Args:
        run: Its directory.

    Returns:
        Which it is and what is wrong with it, in words; None if all is well.
    """
    try:
        read_json(run.model / "config.json", ["architecture", "num_classes", "model_args", "pretrained_cfg"])
        require_whole(run.model / "model.safetensors")
    except (OSError, ValueError) as error:
        return str(error)
    return None
