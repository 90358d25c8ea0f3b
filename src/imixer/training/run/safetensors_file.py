"""Check a safetensors file of weights: whether it is whole, and finite. Free of torch, and so quick to import."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

# Of each floating type in safetensors: the integer of its size, and the bits that are all set where it is not finite.
_EXPONENTS = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


def first_non_finite_in(path: Path) -> str | None:
    """Find the first tensor in a safetensors file, in the order of the model, that is not finite.

    Args:
        path: The file.

    Returns:
        In words, the block and the name of the tensor; None if all tensors are finite.

    Raises:
        ValueError: If it is no safetensors file.
    """
    content, start, tensors = _open(path)
    bad = []
    for name, tensor in tensors.items():
        if tensor["dtype"] not in _EXPONENTS:
            continue
        kind, mask = _EXPONENTS[tensor["dtype"]]
        first, last = (start + offset for offset in tensor["data_offsets"])
        numbers = np.frombuffer(content[first:last].tobytes(), kind)
        if ((numbers & kind(mask)) == kind(mask)).any():
            bad.append(name)
    # The file's own order is that of sizes or names.
    return f"{place_of(min(bad, key=_order))} on: {min(bad, key=_order)}" if bad else None


def require_whole(path: Path) -> None:
    """Check that a safetensors file holds all that its header lists.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no safetensors file, or not whole.
    """
    _open(path)


def _open(path: Path) -> tuple[Any, int, dict[str, Any]]:
    """Open a safetensors file: its bytes, where its numbers begin, and what its header says of each tensor."""
    try:
        content = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = start + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        fitting = bool(tensors) and end == len(content) and all("dtype" in tensor for tensor in tensors.values())
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file") from error
    if not fitting:
        raise ValueError(f"{path} is damaged: its header does not fit its {len(content):,} bytes")
    return content, start, tensors


def place_of(name: str) -> str:
    """Name the block that a parameter, buffer or module belongs to, or else its part of the model, such as the stem."""
    block = re.search(r"\bblocks\.(\d+)", name)
    return f"block {block[1]}" if block else f"the {name.partition('.')[0]}"


def _order(name: str) -> tuple[int, int]:
    block = re.search(r"\bblocks\.(\d+)", name)
    return (1, int(block[1])) if block else (0 if name.startswith("stem") else 2, 0)
