"""The type that numbers are computed in where half precision would not do."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float64 if it is so, else in float32."""
    return x if x.dtype == torch.float64 else x.float()
