"""A finished run's model, written for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imixer.errors import InputError
from imixer.models.export import export_onnx, export_torch
from imixer.progress import announce
from imixer.training.finished_run import load_run

_FORMATS: dict[str, Any] = {"onnx": (export_onnx, ".onnx"), "torch": (export_torch, ".pt2")}


def export(
    path: str, format: str = "onnx", out: str | None = None, batch_size: int | None = None
) -> tuple[Path, dict[str, float]]:
    """Export the model of a run and compare its logits with the original's.

    Args:
        path: The run's directory.
        format: `onnx` or `torch`.
        out: File to write. Default: `model` in the run, with the format's suffix.
        batch_size: Batch size to fix. Default: any.

    Returns:
        The file and what was compared.

    Raises:
        InputError: If the run is not there, the file exists, or the export extra is missing.
    """
    write, suffix = _FORMATS[format]
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give 1 or more")
    finished = load_run(path, "cpu")
    file = Path(out) if out else finished.run.path / f"model{suffix}"
    if file.exists():
        raise InputError(f"out: {file} exists, and nothing is overwritten; give another name or remove it")
    if not file.absolute().parent.is_dir():
        raise InputError(f"out: {file} cannot be written, there is no folder {file.absolute().parent}")
    announce(f"exporting the model as {format}, and comparing what it computes")
    return file, write(finished.model, file, batch_size=batch_size)
