"""Keep a model's buffers from what is to leave no trace in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms, torch's and others'


class RunningStatistics:
    """The running statistics of a model's batch norms, which can be set back to what they were before a step.

    Choose it around a step that may be left out: its forward pass has moved them before anybody sees that it is not
    finite. Without batch norms it does nothing.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (module, name)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if name in _STATISTICS and buffer is not None
        ]
        self._before: list[tuple[Tensor, Tensor]] = []

    def remember(self) -> None:
        """Remember the statistics as they are now, of norms in training mode."""
        buffers = [module.get_buffer(name) for module, name in self._places if module.training]
        self._before = [(buffer, buffer.clone()) for buffer in buffers]

    @torch.no_grad()
    def restore(self, left_out: Tensor | None = None) -> None:
        """Set the statistics back to what was remembered.

        Args:
            left_out: Whether to, a scalar on the device of the statistics, for which nobody waits. Default: it is so.
        """
        for buffer, before in self._before:
            buffer.copy_(before if left_out is None else torch.where(left_out, before, buffer))


@contextmanager
def untouched_buffers(model: nn.Module) -> Iterator[None]:
    """Restore all buffers of a model at the end, and the mode of each of its modules.

    Args:
        model: The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, before in kept:
                module._buffers[name] = buffer.copy_(before)
