"""The way back through a symmetric coupling."""

import torch
import torch.nn.functional as fn
from torch import Tensor, nn


class TransposedLinear(nn.Module):
    """Linear layer that applies the transpose of another layer's weight, given at each call. It has only a bias.

    So a symmetric coupling is one parameter, found once in a state dict.

    Args:
        out_features: Width of the output, the other layer's input.
    """

    def __init__(
        self, out_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (..., in_features) and the other layer's weight (in_features, out_features) -> (..., out_features)."""
        return fn.linear(x, weight.t(), self.bias)

    def extra_repr(self) -> str:
        return f"out_features={len(self.bias)}"
