"""Inference models outside Python: ONNX and `torch.export`, each checked against the model it came from."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import imixer
from imixer.errors import InputError
from imixer.extras import require_extra
from imixer.implicit import fold
from imixer.implicit.solvers import FixedIterations, Solver, ToTolerance
from imixer.models.imixer import IMixer
from imixer.writing import json_text

TOLERANCE = 1e-4  # of the largest logit, float32
SOLVED = 1e-6  # relative residual to compare inverses at: that of training leaves more in the logits than TOLERANCE


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    batch_size: int | None = None,
    value_range: tuple[float, float] | None = None,
    background: int = 255,
) -> dict[str, float]:
    """Write an image model as ONNX, normalisation folded, and compare its logits with onnxruntime's.

    Choose it for programs outside Python. The file has what a program needs to prepare images and to name classes as
    its metadata, see `onnx_metadata`.

    A program cannot stop when its data say so. Inverses that are solved to a tolerance become fixed iterations: twice
    as many as random images need until float32 has no more digits to offer. The logits are compared with those of the
    inverses solved that far.

    Args:
        model: A timm model; its `pretrained_cfg` tells the input size.
        path: File to write.
        batch_size: Batch size to fix. Default: any.
        value_range: Stored pixel values that are black and white. Default: 0 and 255.
        background: Gray value, 0 to 255, under transparent pixels.

    Returns:
        `max_abs_diff`: largest difference of a logit over the batches tried; `largest_logit`: for scale.

    Raises:
        MissingExtraError: If the extra `export` is not installed.
        InputError: If no number of iterations gives what the solver gives.
        RuntimeError: If the written file computes something else. It is removed.
    """
    require_extra("export", "ONNX export")
    folded = _for_export(model)
    example = example_images(folded, batch_size or 2)
    shapes = None if batch_size else ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        folded,
        (example,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(onnx_metadata(model, value_range, background))
    program.save(str(path))
    return _compare(model, path, _run_onnx(path), _batches(folded, batch_size))


def onnx_metadata(
    model: nn.Module, value_range: tuple[float, float] | None = None, background: int = 255
) -> dict[str, str]:
    """Return what an exported file says about a model, each value as JSON.

    `input_size` is (in_chans, height, width). `mean` and `std` are those of pixels in [0, 1], for which `value_range`
    says which stored values are 0 and 1. `background` is the gray value under transparent pixels. `crop_pct` and
    `interpolation` say how validation resizes an image, and `class_names` are in the order of the logits.

    Args:
        model: A timm model; its `pretrained_cfg` tells how images are prepared.
        value_range: Stored pixel values that are black and white. Default: 0 and 255.
        background: Gray value, 0 to 255, under transparent pixels.
    """
    cfg: Any = model.pretrained_cfg
    facts = {
        "imixer_version": imixer.__version__,
        "architecture": cfg.get("architecture"),
        "class_names": list(cfg.get("label_names") or ()),
        "input_size": list(example_images(model, 1).shape[1:]),
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        "value_range": list(value_range or (0, 255)),
        "background": background,
        "crop_pct": cfg.get("crop_pct"),
        "interpolation": cfg.get("interpolation"),
    }
    return {name: json_text(value, indent=None) for name, value in facts.items()}


def quantize_onnx(path: Path, images: Tensor) -> dict[str, float]:
    """Give an ONNX file matrices of 8 bits in the place of its own, and compare its logits with those it gave.

    The matrices are quantised once, and activations as they come. Choose it for small files and processors that are
    fast with integers.

    Args:
        path: The file, which is overwritten.
        images: Images (B, in_chans, H, W) to compare with, normalised as the model expects.

    Returns:
        `max_abs_diff` and `largest_logit`, as `export_onnx` does; `same_class`: share of the images that both put into
        the same class.

    Raises:
        MissingExtraError: If the extra `export` is not installed.
    """
    require_extra("export", "an ONNX file of 8 bits")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = _run_onnx(path)
    quantised = path.with_name(f"{path.name}.int8")
    program = onnx.load(str(path))
    del program.graph.value_info[:]  # shapes that its matrices had before the exporter transposed them
    logging.getLogger().addFilter(_no_advice)  # to call a tool that is not needed here
    try:
        quantize_dynamic(program, str(quantised), weight_type=QuantType.QInt8)
    finally:
        logging.getLogger().removeFilter(_no_advice)
    quantised.replace(path)
    after = _run_onnx(path)
    pairs = ((before(image[None]), after(image[None])) for image in images)  # those of masks are large
    each = [
        torch.stack(
            [(got - logits).abs().max(), logits.abs().max(), (got.argmax(1) == logits.argmax(1)).float().mean()]
        )
        for logits, got in pairs
    ]
    moved, largest, same = torch.stack(each).unbind(1)
    return {
        "max_abs_diff": moved.max().item(),
        "largest_logit": largest.max().item(),
        "same_class": same.mean().item(),
    }


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    require_extra("export", "an ONNX file")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def export_torch(model: nn.Module, path: Path, *, batch_size: int | None = None) -> dict[str, float]:
    """Write an image model as a `torch.export` program (.pt2), normalisation folded, and compare its logits.

    Choose it where torch is at hand: it needs no extra packages.

    Args:
        model: A timm model; its `pretrained_cfg` tells the input size.
        path: File to write.
        batch_size: Batch size to fix. Default: any.

    Returns:
        `max_abs_diff`: largest difference of a logit over the batches tried; `largest_logit`: for scale.

    Raises:
        InputError: If no number of iterations gives what the solver gives.
        RuntimeError: If the written program computes something else. It is removed.
    """
    folded = _for_export(model)
    shapes = None if batch_size else ({0: torch.export.Dim("batch")},)
    program = torch.export.export(folded, (example_images(folded, batch_size or 2),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return _compare(model, path, loaded, _batches(folded, batch_size))


def _for_export(model: nn.Module) -> nn.Module:
    """Copy the model, folded, with fixed iterations for inverses."""
    if not isinstance(model, IMixer) and not _is_fixed(getattr(model, "solver", "fixed")):
        raise InputError("the inverses of a segmentation are solved to a tolerance; train it with model.solver fixed")
    folded: Any = fold(model)
    if not isinstance(folded, IMixer) or _is_fixed(folded.solver):
        return folded
    x = example_images(folded, 5)
    with torch.no_grad():
        expected = _solved(folded)(x)
        folded.gradient = "unroll"
        for n_iter in [2**k for k in range(9)]:
            folded.solver = FixedIterations(n_iter)
            if (folded(x) - expected).abs().max() <= TOLERANCE / 4 * max(1.0, expected.abs().max()):
                folded.solver = FixedIterations(2 * n_iter)
                return folded
    raise InputError("no number of iterations up to 256 gives what the model's solver gives; raise its max_steps")


def _solved(model: nn.Module) -> nn.Module:
    """Return the model, or a copy that solves its inverses as far as float32 goes."""
    if not isinstance(model, IMixer) or _is_fixed(model.solver):
        return model
    solved, solver = copy.deepcopy(model), model.solver
    if isinstance(solver, ToTolerance):
        solved.solver = replace(solver, rtol=SOLVED, atol=0.0, max_steps=max(1000, solver.max_steps))
    else:
        solved.tolerance, solved.max_steps = SOLVED, max(1000, model.max_steps)
    return solved


def _is_fixed(solver: Solver | str) -> bool:
    """Tell whether a solver, by name or as an object, takes a fixed number of steps."""
    return solver == "fixed" or isinstance(solver, FixedIterations)


def example_images(model: nn.Module, batch_size: int) -> Tensor:
    """Draw images (batch_size, in_chans, H, W) of the size the model takes, from a fixed seed."""
    cfg: Any = model.pretrained_cfg
    channels = cfg["input_size"][0]
    if cfg["first_conv"]:  # which a model with a backbone leaves to that
        name = cfg["first_conv"] if isinstance(cfg["first_conv"], str) else cfg["first_conv"][0]
        channels = getattr(model.get_submodule(name), "in_channels", channels)
    size = getattr(getattr(model, "stem", None), "img_size", None) or cfg["input_size"][-2:]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, channels, *size, generator=generator)


def _batches(model: nn.Module, batch_size: int | None) -> list[Tensor]:
    return [example_images(model, n) for n in ([batch_size] if batch_size else [1, 2, 5])]


@torch.no_grad()
def _compare(
    model: nn.Module, path: Path, exported: Callable[[Tensor], Tensor], batches: list[Tensor]
) -> dict[str, float]:
    modes = {module: module.training for module in model.modules()}  # a frozen backbone is in evaluation by itself
    model.eval()
    try:
        expected = torch.cat([_solved(model)(x) for x in batches])
    finally:
        for module, training in modes.items():
            module.training = training
    got = torch.cat([exported(x) for x in batches])
    result = {"max_abs_diff": (got - expected).abs().max().item(), "largest_logit": expected.abs().max().item()}
    if not result["max_abs_diff"] <= TOLERANCE * max(1.0, result["largest_logit"]):
        path.unlink()
        raise RuntimeError(
            f"the exported model differs from the original by {result['max_abs_diff']:.1e}; {path} removed"
        )
    return result
