"""The contraction F of x = z + F(x): two linear layers with an activation before each."""

from collections.abc import Callable
from typing import List, Literal

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from imixer.implicit.spectral import SpectralLinear

Norm = Literal["spectral", "none", "batch"]


class Contraction(nn.Module):
    """F(x) = W2 act(W1 act(x) + b1) + b2, its Lipschitz constant bounded by what `norm` does to W1 and W2.

    `F(x, weights)` takes the effective weights from `F.weights()`, so that the caller decides how often they are
    computed: once per forward, however often F is applied.

    Args:
        features: Width of x, D_S in a token mixing MLP.
        hidden_features: Inner width N_h.
        act_layer: Makes the activation.
        norm: `spectral` bounds the norms of W1 and W2, softly, by coeff; `none` leaves them free; `batch` follows each
            linear layer with BatchNorm over its features (paper, Table 3).
        coeff: Ceiling c of the two spectral norms.
        n_power_iterations: Power iterations n_p per training forward.

    Raises:
        ValueError: If norm is none of the three, or SpectralLinear refuses its arguments.

    Source: paper (30), H^2 . G^2; Algorithm 1.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        *,
        norm: Norm = "spectral",
        coeff: float = 0.9,
        n_power_iterations: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("spectral", "none", "batch"):
            raise ValueError(f"norm is {norm!r}; choose spectral, none or batch")

        def linear(d_in: int, d_out: int) -> nn.Linear:
            if norm == "spectral":
                return SpectralLinear(
                    d_in, d_out, coeff=coeff, n_power_iterations=n_power_iterations, device=device, dtype=dtype
                )
            return nn.Linear(d_in, d_out, device=device, dtype=dtype)

        def normalise(d: int) -> nn.Module:
            return FeatureBatchNorm(d, device=device, dtype=dtype) if norm == "batch" else nn.Identity()

        self.act = act_layer()
        self.fc1 = linear(features, hidden_features)
        self.bn1 = normalise(hidden_features)
        self.fc2 = linear(hidden_features, features)
        self.bn2 = normalise(features)

    def weights(self) -> List[Tensor]:
        """The two matrices as they multiply, after normalisation."""
        if torch.jit.is_scripting():  # of a folded model only
            return [self.fc1.weight, self.fc2.weight]
        return [_effective_weight(self.fc1), _effective_weight(self.fc2)]

    def forward(self, x: Tensor, weights: List[Tensor]) -> Tensor:
        """F(x) for x (..., features), with the matrices that `weights()` gave."""
        h = self.bn1(fn.linear(self.act(x), weights[0], self.fc1.bias))
        return self.bn2(fn.linear(self.act(h), weights[1], self.fc2.bias))


class FeatureBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis, statistics taken over all others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


@torch.jit.unused
def _effective_weight(layer: nn.Linear) -> Tensor:
    return layer.normalized_weight() if isinstance(layer, SpectralLinear) else layer.weight
