"""Copies to the device that do not wait, buffers that are used again, and chunks that fit a cache."""

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
    """Copy an array to a device. Towards a CUDA device the copy is queued, and the host goes on."""
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def chunks(count: int, floats: int, device: torch.device) -> Iterator[slice]:
    """Yield slices that cover a batch: all at once, but on a CPU as many images as its cache holds.

    Args:
        count: Images in the batch.
        floats: Values per image.
        device: The device of the images.
    """
    size = max(1, _CHUNK_FLOATS // floats if device.type == "cpu" else count)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class BufferPool:
    """Buffers for float tensors of one shape, each used again as soon as nothing refers to its tensor any more.

    torch does so on a GPU. On a CPU, large tensors are given back to the system and taken anew, and their first touch
    takes several times as long as filling them.

    Args:
        shape: Shape of the tensors.
        device: The device that they are wanted on.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._free: list[NDArray[np.float32]] = []

    def take(self) -> Tensor:
        """Return an uninitialised tensor that nobody else uses."""
        if self.device.type != "cpu":
            return torch.empty(self.shape, device=self.device)
        memory = self._free.pop() if self._free else np.empty(self.shape, dtype=np.float32)
        view = memory.view()
        # a tensor's storage, whoever shares it, refers to the array that it was made of
        weakref.finalize(view, self._free.append, memory)
        return torch.from_numpy(view)
