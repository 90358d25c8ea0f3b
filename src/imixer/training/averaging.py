"""A running average of the weights."""

from __future__ import annotations

from typing import Any

from timm.utils import ModelEmaV3
from torch import nn

from imixer.implicit import SpectralLinear


class Average:
    """Exponential moving average of a model's weights and buffers, with a decay that starts small (timm).

    The power iterations' vectors of the averaged weights are found anew before the average is used: an average of
    vectors belongs to no matrix.

    Args:
        model: The model that is trained.
        decay: Share of the old average that stays at each step, at its highest.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._ema = ModelEmaV3(model, decay=decay, use_warmup=True)

    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after an optimizer step, the number of which counts from 1."""
        self._ema.update(model, step)

    def model(self) -> nn.Module:
        """The model with averaged weights, in evaluation mode."""
        for layer in self._ema.module.modules():
            if isinstance(layer, SpectralLinear):
                layer.warm_up()
        return self._ema.module

    def state_dict(self) -> dict[str, Any]:
        return self._ema.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ema.module.load_state_dict(state)
