"""Export the model of a finished run for use without imixer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from imixer.errors import InputError
from imixer.models.export import example_images, export_onnx, export_torch, quantize_onnx
from imixer.progress import announce
from imixer.training.finished_run import FinishedRun, load_run
from imixer.writing import moved_into_place

_FORMATS: dict[str, tuple[Callable[..., dict[str, float]], str]] = {
    "onnx": (export_onnx, ".onnx"),
    "torch": (export_torch, ".pt2"),
}


_COMPARED = 200  # images, of a quantised model with the original


def export(
    path: str,
    format: str = "onnx",
    out: str | None = None,
    batch_size: int | None = None,
    quantize: Literal["int8"] | None = None,
) -> tuple[Path, dict[str, float]]:
    """Export the model of a finished run, and compare its logits with the original's.

    Args:
        path: The run's directory.
        format: `onnx`, or `torch` for a program of `torch.export`.
        out: The file to write. Default: `model` in the run, with the suffix of the format; `model.int8` if quantised.
        batch_size: A batch size to fix. Default: any batch size will do.
        quantize: `int8` for matrices of 8 bits, in an ONNX file only. Default: those of the model.

    Returns:
        The file; and by name, how far the exported logits are from the original ones. Those of a quantised model are
        compared on held-out images, or on random ones where the data are not there any more.

    Raises:
        InputError: If the run is not there, the file exists, another format than ONNX is to be quantised, or the extra
            `export` is not installed.
    """
    write, suffix = _FORMATS[format]
    if quantize is not None and format != "onnx":
        raise InputError(f"quantize is {quantize}, which is for the format onnx, and format is {format}; leave it out")
    if quantize is not None:
        suffix = f".{quantize}{suffix}"
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give 1 or more")
    if quantize is not None and batch_size not in (None, 1):
        raise InputError(
            f"batch_size is {batch_size}, and a quantised model is compared image by image; give 1 or none"
        )
    run = load_run(path, "cpu")
    file = Path(out) if out else run.directory.path / f"model{suffix}"
    if file.exists():
        raise InputError(f"out: {file} exists, and nothing is overwritten; give another name or remove it")
    if not file.absolute().parent.is_dir():
        raise InputError(f"out: {file} cannot be written, there is no folder {file.absolute().parent}")
    announce(f"exporting the model as {format}, and comparing what it computes")
    with moved_into_place(file) as temporary:
        differences = write(run.model, temporary, batch_size=batch_size)
        if quantize is not None:
            differences = quantize_onnx(temporary, _images(run))
    return file, differences


def _images(run: FinishedRun) -> Tensor:
    """Take images to compare a quantised model by (B, in_chans, H, W): held-out ones if they are there."""
    try:
        val = run.data().val
    except InputError as error:
        warnings.warn(f"compared on random images, as the run's are not to be had: {error}", stacklevel=2)
        return example_images(run.model, _COMPARED)
    count = min(_COMPARED, len(val))
    return torch.stack([run.transform(val[i * len(val) // count][0]) for i in range(count)])
