"""What PEFT's LoRA adds to the weight of the layer that it wraps.

PEFT is not imported: its wrappers are known by the attributes that its documentation promises.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def wrapped_by_lora(layer: nn.Module) -> nn.Module | None:
    """Return the layer inside a LoRA of PEFT that only adds a matrix to its weight, or None for any other layer.

    A LoRA that does more, such as DoRA, or that adds a bias, is none of these.

    Args:
        layer: Any layer.
    """
    base = layer._modules.get("base_layer")
    if base is None or not {"lora_A", "lora_B"} <= layer._modules.keys() or not hasattr(layer, "get_delta_weight"):
        return None
    lora: Any = layer
    if getattr(lora, "lora_variant", None) or any(getattr(lora, "lora_bias", {}).values()):
        return None
    return base


def chosen_adapters(lora: nn.Module) -> tuple[str, ...]:
    """Name the adapters of a LoRA that are in effect, merged ones included. None are while it is disabled.

    Args:
        lora: A layer for which `wrapped_by_lora` is not None.
    """
    wrapper: Any = lora
    if wrapper.disable_adapters:
        return ()
    names: Sequence[str] = wrapper.merged_adapters if wrapper.merged else wrapper.active_adapters
    return tuple(sorted(name for name in names if name in wrapper.lora_A))


def added_weight(lora: nn.Module) -> Tensor | None:
    """Compute what a LoRA adds to the weight that its layer holds, (out_features, in_features), or None for nothing.

    Args:
        lora: A layer for which `wrapped_by_lora` is not None.

    Raises:
        ValueError: If it is called with an adapter for each sample, for which there is no one weight.
    """
    wrapper: Any = lora
    hooks = wrapper._forward_pre_hooks.values()
    if any("adapter_names" in getattr(hook, "keywords", {}) for hook in hooks):
        raise ValueError(
            "adapter_names gives each sample an adapter of its own, and a contraction has one weight for all; call the "
            "model once for each adapter, see PeftModel.set_adapter"
        )
    if wrapper.disable_adapters and wrapper.merged:  # as PEFT does where a disabled layer is called: here its base is
        wrapper.unmerge()
    if wrapper.merged:
        return None
    deltas = _deltas(lora)
    return sum(deltas[1:], start=deltas[0]) if deltas else None


def changes_weight(lora: nn.Module) -> bool:
    """Tell whether the adapters that are in effect, merged or not, are anything but zero.

    Args:
        lora: A layer for which `wrapped_by_lora` is not None.
    """
    return any(bool(delta.any()) for delta in _deltas(lora))


def _deltas(lora: Any) -> list[Tensor]:
    return [lora.get_delta_weight(name) for name in chosen_adapters(lora)]


def weight_with_lora(layer: nn.Module) -> Tensor:
    """Return the weight (out_features, in_features) that a linear layer, or one inside a LoRA, multiplies by.

    Args:
        layer: A layer with a weight, or a LoRA around one.
    """
    base: Any = wrapped_by_lora(layer)
    if base is None:
        plain: Any = layer
        weight: Tensor = plain.weight
        return weight
    added = added_weight(layer)
    return base.weight if added is None else base.weight + added.to(base.weight.dtype)
