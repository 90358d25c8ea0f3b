"""iMLP: the token mixing MLP that runs from output to input.

S: tokens, D_S: width of x, N_h: inner width. Axes before the last are batch.
"""

from collections.abc import Callable
from typing import Any, Dict, Optional

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from imixer.implicit import Contraction, SpectralLinear
from imixer.implicit.contraction import Norm


class IMLP(nn.Module):
    """H(x) with x = (1 - F)^-1 G(v), the inverse approximated by n fixed point iterations x <- G(v) + F(x).

    Args:
        in_features: Width of v, the number of tokens S.
        hidden_features: Width D_S of x = the paper's N_x. Default: in_features.
        out_features: Width of the output. Default: in_features.
        act_layer: Makes the activation (paper: GELU).
        drop: Dropout after the last activation and after the output, one probability or two.
        n_iter: Iterations n; 0 is the plain MLP. May be changed on a trained module.
        hidden_ratio: h_r = N_h / D_S.
        coeff: Ceiling c of the spectral norms inside F.
        n_power_iterations: Power iterations n_p per training forward.
        norm: How F is kept contractive: `spectral`, `none` or `batch`.
        legacy: Normalise once per iteration, as the published code does, instead of once per forward.

    Raises:
        ValueError: If n_iter is negative, hidden_ratio leaves no hidden neuron, or Contraction refuses its arguments.

    Source: paper (30), Algorithms 1 and 2.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Optional[int] = None,
        out_features: Optional[int] = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float | tuple[float, float] = 0.0,
        *,
        n_iter: int = 2,
        hidden_ratio: float = 2.0,
        coeff: float = 0.9,
        n_power_iterations: int = 8,
        norm: Norm = "spectral",
        legacy: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: Dict[str, Any] = {"device": device, "dtype": dtype}
        features = hidden_features or in_features
        inner = int(features * hidden_ratio)
        if n_iter < 0:
            raise ValueError(f"n_iter is {n_iter}; give 0 or more fixed point iterations")
        if inner < 1:
            raise ValueError(f"hidden_ratio is {hidden_ratio}, which leaves {inner} of {features} neurons; give more")
        drop1, drop2 = to_2tuple(drop)

        self.n_iter = n_iter
        self.legacy = legacy
        self.fc_in = nn.Linear(in_features, features, **dd)
        self.contraction = Contraction(
            features, inner, act_layer, norm=norm, coeff=coeff, n_power_iterations=n_power_iterations, **dd
        )
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop1)
        self.fc_out = nn.Linear(features, out_features or in_features, **dd)
        self.drop2 = nn.Dropout(drop2)

    def forward(self, v: Tensor) -> Tensor:
        """v (..., S) -> (..., S)."""
        F = self.contraction
        x0 = self.fc_in(v)  # G(v)
        weights = F.weights()
        x = x0
        for i in range(self.n_iter):
            if self.legacy and i > 0:
                weights = F.weights()
            x = x0 + F(x, weights)
        return self.drop2(self.fc_out(self.drop1(self.act(x))))  # H(x)

    def init_weights(self) -> None:
        """Called by timm once it has drawn new weights in place."""
        for layer in self.modules():
            if isinstance(layer, SpectralLinear):
                layer.warm_up()
