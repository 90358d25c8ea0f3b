"""Save and load a trained model as a directory that timm reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from torch import Tensor, nn

import imixer.models  # noqa: F401  (registers our models with timm)
from imixer.errors import InputError, in_short
from imixer.reading import read_json
from imixer.training.model import BuiltModel, require_memory
from imixer.writing import json_text, make_folder

_WEIGHTS = "model.safetensors"


def save_model(
    built: BuiltModel,
    weights: dict[str, Tensor],
    path: Path,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float,
    interpolation: str,
) -> None:
    """Write `config.json` and `model.safetensors` in timm's layout.

    `timm.create_model("local-dir:PATH", pretrained=True)` restores the model; its `pretrained_cfg` carries the
    names of the classes and how images were prepared.

    Args:
        built: The model.
        weights: The state dict of the model.
        path: The directory to make. It appears whole, or not at all.
        class_names: The names of the classes, in the order of the logits.
        mean: The mean of each channel that images are normalised by.
        std: The standard deviation of each channel that images are normalised by.
        crop_pct: The share of the resized image that validation keeps.
        interpolation: The resampling filter of validation.
    """
    model: Any = built.model
    cfg = model.pretrained_cfg
    prepared = {
        "input_size": list(built.input_size),
        "fixed_input_size": bool(cfg.get("fixed_input_size")),
        "mean": list(mean),
        "std": list(std),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "num_classes": len(class_names),
        "first_conv": cfg.get("first_conv"),
        "classifier": cfg.get("classifier"),
        "pool_size": cfg.get("pool_size"),
        "tag": "imixer",
    }
    config = {
        "architecture": built.name.partition(".")[0],
        "num_classes": len(class_names),
        "num_features": model.num_features,
        "label_names": list(class_names),
        "model_args": {k: v for k, v in built.args.items() if k != "num_classes"},
        "pretrained_cfg": prepared,
    }
    make_folder(path, lambda folder: write_model(folder, config, weights))


def write_model(folder: Path, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors` into a folder that is there.

    Args:
        folder: The folder.
        config: The content of `config.json`, in timm's layout.
        weights: The state dict of the model.
    """
    # cloned, as safetensors refuses tensors that share memory
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    (folder / "config.json").write_text(json_text(config), encoding="utf-8")
    (folder / _WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))  # `save_file` hides what the system says


def read_model_config(path: Path) -> dict[str, Any]:
    """Read the `config.json` that `write_model` wrote.

    Args:
        path: The directory.

    Raises:
        InputError: If it is missing or damaged.
    """
    return read_json(path / "config.json", ["architecture", "model_args", "num_classes", "pretrained_cfg"])


def load_model(path: Path, *, trained: bool = True) -> nn.Module:
    """Load the model in a directory that `save_model` wrote, in evaluation mode.

    Args:
        path: The directory.
        trained: Whether to load the weights; otherwise they are drawn anew.

    Raises:
        InputError: If the files are damaged or do not belong together.
    """
    config = read_model_config(path)
    require_memory(config["architecture"], config["model_args"] | {"num_classes": config["num_classes"]})
    try:
        # As a file, since timm 1.0.23 takes the safetensors of a directory for a pickle.
        weights = {"source": "", "file": str(path / _WEIGHTS)}
        overlay = weights if trained else None
        model = timm.create_model(f"local-dir:{path}", pretrained=trained, pretrained_cfg_overlay=overlay)
    except Exception as error:  # json, safetensors, torch and timm each raise their own
        raise InputError(f"{path} holds no model that can be read: {in_short(error)}") from error
    return model.eval()
