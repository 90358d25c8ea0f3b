"""Start from a file of weights."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Dict, List

import torch
from torch import Tensor, nn

from imixer.errors import InputError

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("model.", "module.", "_orig_mod.")


def load_weights(model: nn.Module, path: str) -> bool:
    """Load the weights in a file, and nothing else of it, into the model.

    A classifier for another number of classes is left out: the model's own stays.

    Args:
        model: A timm model.
        path: safetensors, or a pickle of plain tensors, such as one of a run's `checkpoints`.

    Returns:
        Whether the classifier was loaded too.

    Raises:
        InputError: If the file is unreadable, holds more than plain tensors, or belongs to another architecture.
    """
    state = _tensors(_read(Path(path)), path)
    heads = _drop_other_classifier(model, state)
    try:
        result = model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"model.checkpoint: {path} does not fit the model: {_first_mismatch(str(error))}") from error
    missing = [key for key in result.missing_keys if key not in heads]
    for keys, problem in ((missing, "it has no"), (result.unexpected_keys, "the model has no")):
        if keys:
            raise InputError(
                f"model.checkpoint: {path} does not fit the model: {problem} {keys[0]}{_shape(state, keys[0])}"
            )
    return not heads


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"model.checkpoint: no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"model.checkpoint: {path} is not a file of plain tensors and was not executed; "
            "save the state dict alone, best as safetensors"
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds on a damaged file
        raise InputError(f"model.checkpoint: {path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _tensors(content: Any, path: str) -> Dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"model.checkpoint: {path} holds no state dict, a mapping of names to tensors")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return dict(content)


def _drop_other_classifier(model: Any, state: Dict[str, Tensor]) -> List[str]:
    """Remove classifiers of another number of classes, as timm does for pretrained weights."""
    names = model.pretrained_cfg.get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    own, dropped = model.state_dict(), []
    for key in (f"{name}.{part}" for name in names for part in ("weight", "bias")):
        if key in state and key in own and len(state[key]) != len(own[key]):
            del state[key]
            dropped.append(key)
    return dropped


def _first_mismatch(message: str) -> str:
    """The first parameter that torch names, with both shapes."""
    found = re.search(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", message, re.DOTALL)
    return f"{found[1]} is {found[2]} there and {found[3]} here" if found else " ".join(message.split())[:200]


def _shape(state: Dict[str, Tensor], key: str) -> str:
    return f" {list(state[key].shape)}" if key in state else ""
