"""Export the model of a finished run for use without imixer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imixer.errors import InputError
from imixer.models.export import export_onnx, export_torch
from imixer.progress import announce
from imixer.training.best_weights import WhichWeights
from imixer.training.finished_run import load_run
from imixer.writing import moved_into_place

_FORMATS: dict[str, tuple[Callable[..., dict[str, float]], str]] = {
    "onnx": (export_onnx, ".onnx"),
    "torch": (export_torch, ".pt2"),
}


def export(
    path: str,
    format: str = "onnx",
    out: str | None = None,
    batch_size: int | None = None,
    checkpoint: WhichWeights = "last",
) -> tuple[Path, dict[str, float]]:
    """Export the model of a finished run, and compare its logits with the original's.

    Args:
        path: The run's directory.
        format: `onnx`, or `torch` for a program of `torch.export`.
        out: The file to write. Default: `model` in the run, with the suffix of the format.
        batch_size: A batch size to fix. Default: any batch size will do.
        checkpoint: Whose weights to export: those of the `last` epoch, or of the `best`.

    Returns:
        The file; and by name, how far the exported logits are from the original ones.

    Raises:
        InputError: If the run is not there, the file exists, or the extra `export` is not installed.
    """
    write, suffix = _FORMATS[format]
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give 1 or more")
    run = load_run(path, "cpu", checkpoint)
    file = Path(out) if out else run.results.path / f"model{suffix}"
    if file.exists():
        raise InputError(f"out: {file} exists, and nothing is overwritten; give another name or remove it")
    if not out:
        file.parent.mkdir(exist_ok=True)
    if not file.absolute().parent.is_dir():
        raise InputError(f"out: {file} cannot be written, there is no folder {file.absolute().parent}")
    announce(f"exporting the model as {format}, and comparing what it computes")
    with moved_into_place(file) as temporary:
        differences = write(run.model, temporary, batch_size=batch_size)
    return file, differences
