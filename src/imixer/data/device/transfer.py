"""From the host to the device without waiting; memory for batches; pieces that fit a cache."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK_FLOATS = 2**19  # floats: 2 MiB


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array; towards a CUDA device the copy is queued, and the host goes on."""
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def chunks(count: int, floats: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `count` images of `floats` values each: all at once, but on a CPU what its cache holds."""
    size = max(1, _CHUNK_FLOATS // floats if device.type == "cpu" else count)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class BufferPool:
    """Memory for float tensors of one shape: as soon as nothing refers to one any more, the next one takes its place.

    torch does so on a GPU. On a CPU, large tensors are given back to the system and taken anew, and their first touch
    takes several times as long as filling them.

    Args:
        shape: Of the tensors.
        device: Where they are wanted.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._free: list[NDArray[np.float32]] = []

    def take(self) -> Tensor:
        """An uninitialised tensor that nobody else uses."""
        if self.device.type != "cpu":
            return torch.empty(self.shape, device=self.device)
        memory = self._free.pop() if self._free else np.empty(self.shape, dtype=np.float32)
        view = memory.view()
        # a tensor's storage, whoever shares it, refers to the array that it was made of
        weakref.finalize(view, self._free.append, memory)
        return torch.from_numpy(view)
