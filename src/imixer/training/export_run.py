"""Export a finished run: its model for use without imixer, or a package of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imixer.errors import InputError
from imixer.models.export import export_onnx, export_torch
from imixer.progress import announce
from imixer.training.finished_run import load_run
from imixer.training.package_run import default_folder, package
from imixer.writing import moved_into_place

_PROGRAMS: dict[str, tuple[Callable[..., dict[str, float]], str]] = {
    "onnx": (export_onnx, ".onnx"),
    "torch": (export_torch, ".pt2"),
}


def export(
    path: str,
    format: str = "onnx",
    out: str | None = None,
    batch_size: int | None = None,
    data: str | None = None,
) -> tuple[Path, dict[str, float]]:
    """Export the model of a finished run, and compare what it computes with the original.

    Args:
        path: The run's directory.
        format: `onnx`; `torch` for a program of `torch.export`; or `package` for a small run in float16 with a card,
            see `imixer.training.package_run`.
        out: The file to write, or the folder for `package`. Default: `model` with the suffix of the format, or
            `ARCHITECTURE.DATA`, in the run's outputs.
        batch_size: A batch size to fix. Default: any batch size will do. Not for `package`.
        data: The place where the run's data lie now, to score a package. Default: where they lay in training.

    Returns:
        The file or folder; and by name, how far the exported logits are from the original ones, and for a package what
        else was measured.

    Raises:
        InputError: If the run or its data are not there, the file exists, an option does not go with the format, or the
            extra `export` is not installed.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give 1 or more")
    unused = ("batch_size", batch_size) if format == "package" else ("data", data)
    if unused[1] is not None:
        raise InputError(f"{unused[0]} is {unused[1]}, of which format {format} has no use; leave it out")
    run = load_run(path, "cpu")
    if out:
        file = Path(out)
    elif format == "package":
        file = default_folder(run)
    else:
        file = run.make_outputs().path / f"model{_PROGRAMS[format][1]}"
    if file.exists():
        raise InputError(f"out: {file} exists, and nothing is overwritten; give another name or remove it")
    if not file.absolute().parent.is_dir():
        raise InputError(f"out: {file} cannot be written, there is no folder {file.absolute().parent}")
    if format == "package":
        return file, package(run, file, data)
    announce(f"exporting the model as {format}, and comparing what it computes")
    write, _ = _PROGRAMS[format]
    with moved_into_place(file) as temporary:
        differences = write(run.model, temporary, batch_size=batch_size)
    return file, differences
