"""Export a finished run: its model for use without imixer, a package of it, or a folder for the hub."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from imixer.data.sources.decoding import pixel_format
from imixer.errors import InputError
from imixer.models.export import example_images, export_onnx, export_torch, quantize_onnx
from imixer.progress import announce
from imixer.training.best_weights import WhichWeights
from imixer.training.finished_run import FinishedRun, load_run
from imixer.training.hub import write_hub_folder
from imixer.training.package_run import package, package_name
from imixer.writing import check_output_file, moved_into_place

_PROGRAMS: dict[str, tuple[Callable[..., dict[str, float]], str]] = {
    "onnx": (export_onnx, ".onnx"),
    "torch": (export_torch, ".pt2"),
}


_COMPARED = 200  # images, of a quantised model with the original


def export(
    path: str,
    format: str = "onnx",
    out: str | None = None,
    batch_size: int | None = None,
    data: str | None = None,
    quantize: Literal["int8"] | None = None,
    checkpoint: WhichWeights = "last",
) -> tuple[Path, dict[str, float]]:
    """Export the model of a finished run, and compare what it computes with the original.

    Args:
        path: The run's directory.
        format: `onnx`; `torch` for a program of `torch.export`; `package` for a small run in float16 with a card, see
            `imixer.training.package_run`; or `hub` for a folder as the Hugging Face Hub takes it, see
            `imixer.training.hub`.
        out: The file to write, or the folder for `package` and `hub`. Default: `model` with the suffix of the format,
            `model.int8` if quantised, `ARCHITECTURE.DATA`, or `hub`, in the run's outputs.
        batch_size: A batch size to fix, for `onnx` and `torch`. Default: any batch size will do.
        data: The place where the run's data lie now, to score a package or to compare a quantised model. Default: where
            they lay in training.
        quantize: `int8` for matrices of 8 bits, in an ONNX file only. Default: those of the model.
        checkpoint: Whose weights to export: those of the `last` epoch, or of the `best`.

    Returns:
        The file or folder; and by name, how far the exported logits are from the original ones, for a package what else
        was measured, and nothing for `hub`, whose weights are the original ones. The logits of a quantised model are
        compared on held-out images, or on random ones where the data are not there any more.

    Raises:
        InputError: If the run or its data are not there, the file exists, an option does not go with the format, or the
            extra `export` is not installed.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give 1 or more")
    if quantize is not None and format != "onnx":
        raise InputError(f"quantize is {quantize}, which is for the format onnx, and format is {format}; leave it out")
    if quantize is not None and batch_size not in (None, 1):
        raise InputError(
            f"batch_size is {batch_size}, and a quantised model is compared image by image; give 1 or none"
        )
    if format not in _PROGRAMS and batch_size is not None:
        raise InputError(f"batch_size is {batch_size}, of which format {format} has no use; leave it out")
    if format != "package" and quantize is None and data is not None:
        raise InputError(f"data is {data}, of which format {format} has no use; leave it out")
    if out:
        _check_new(Path(out))
    run = load_run(path, "cpu", checkpoint)
    run.require_known_to_others()
    name = _default_name(run, format, quantize)  # refuses what cannot be made, before there is a folder
    file = Path(out) if out else run.make_outputs().path / name
    _check_new(file)
    if format == "package":
        return file, package(run, file, data)
    if format == "hub":
        write_hub_folder(run, file)
        return file, {}
    announce(f"exporting the model as {format}, and comparing what it computes")
    write, _ = _PROGRAMS[format]
    with moved_into_place(file) as temporary:
        pixels = pixel_format(run.config.data)
        told = {"value_range": pixels.value_range, "background": pixels.background} if format == "onnx" else {}
        differences = write(run.model, temporary, batch_size=batch_size, **told)
        if quantize is not None:
            differences = quantize_onnx(temporary, _images(run, data))
    return file, differences


def _check_new(path: Path) -> None:
    if path.is_dir():  # which stands in the way of a file and of another folder
        raise InputError(f"out: {path} exists, and nothing is overwritten; give another name or remove it")
    check_output_file(path, "out")


def _default_name(run: FinishedRun, format: str, quantize: str | None) -> str:
    if format in _PROGRAMS:
        return f"model{f'.{quantize}' if quantize else ''}{_PROGRAMS[format][1]}"
    return package_name(run) if format == "package" else "hub"


def _images(run: FinishedRun, data: str | None) -> Tensor:
    """Take images to compare a quantised model by (B, in_chans, H, W): held-out ones if they are there."""
    try:
        val = run.image_set(data).val
    except InputError as error:
        if data is not None:
            raise
        warnings.warn(f"compared on random images, as the run's are not to be had: {error}", stacklevel=2)
        return example_images(run.model, _COMPARED)
    count = min(_COMPARED, len(val))
    return torch.stack([run.transform(val[i * len(val) // count][0]) for i in range(count)])
