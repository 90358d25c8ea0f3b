"""Weights from elsewhere through Hugging Face's Transformers, which sets tensors one by one and asks no module.

Importing this needs Transformers. `import imixer` has it imported as soon as Transformers' wrapper of timm models is.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel

from imixer.models.imixer import IMixer

_PREFIX = "timm_model."
_STEP = "_load_pretrained_model"  # of Transformers, that is adapted


def adapt_loading() -> None:
    """Have `from_pretrained` adapt published names and other image sizes for an iMixer, and leave other models alone.

    Where Transformers has no such step any more, nothing is changed: it then names the tensors that do not fit.
    """
    original = getattr(TimmWrapperPreTrainedModel, _STEP, None)
    if (
        original is None
        or not {"model", "state_dict", "checkpoint_files"} <= inspect.signature(original).parameters.keys()
    ):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        given = call.arguments
        inner = getattr(given["model"], "timm_model", None)
        if isinstance(inner, IMixer):
            adapted = _adapted(inner, given["state_dict"], given["checkpoint_files"], given["model"].config)
            given["state_dict"] = given["state_dict"] if adapted is None else adapted
        return original(*call.args, **call.kwargs)

    setattr(TimmWrapperPreTrainedModel, _STEP, staticmethod(load))


def _adapted(
    model: IMixer, state: dict[str, Tensor] | None, files: Sequence[str] | None, config: Any
) -> dict[str, Tensor] | None:
    """Return the weights as the model has them, or None if they are already."""
    if state is None and not files:
        return None
    before: dict[str, Tensor] = dict(state) if state is not None else {}
    for file in files or () if state is None else ():
        safe = str(file).endswith(".safetensors")
        before.update(load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True))
    after = dict(before)
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in after) else ""
    size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size")
    model.adapt_weights(after, prefix, size[-2:] if size else None)
    same = after.keys() == before.keys() and all(after[name] is before[name] for name in after)
    return None if same else after


adapt_loading()
