"""The contraction F of x = z + F(x): two linear layers with an activation before each, and room for another inside."""

from collections.abc import Callable, Sequence
from typing import Any, Dict, List, Literal, Optional

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from imixer.implicit.spectral import SpectralLinear
from imixer.implicit.transposed import TransposedLinear

Norm = Literal["spectral", "none", "batch"]


class Contraction(nn.Module):
    """F(x) = W2 g'((1 - F')^-1 (W1 g(x) + b1)) + b2, its Lipschitz constant bounded by what `norm` does to W1 and W2.

    F' is `inner`, one more contraction, for the layer above; without it the inverse is 1. The paper's F^A is F, and
    F^(A+1) is F'.

    `F(x, weights)` takes all that F depends on besides x from `F.weights()`: the effective matrices, so that the caller
    decides how often they are computed (once per forward, however often F and all inside it are applied), and the
    biases, so that `solve(lambda x, *w: F(x, list(w)), z, F.weights())` has a gradient for everything. Not so with
    norm=batch.

    Args:
        features: Width of x, D_S in a token mixing MLP.
        hidden_features: Inner width N_h, or those of a chain of layers, outermost first: each beyond the first nests
            one more contraction.
        act_layer: Makes the activations, or a sequence: g of x, then one per inner width.
        norm: `spectral` bounds the norms of W1 and W2, softly, by coeff; `none` leaves them free; `batch` follows each
            linear layer with BatchNorm over its features (paper, Table 3).
        tied: W2 is the transpose of W1, normalised alike: a symmetric coupling. `fc2` then has only a bias.
        coeff: Ceiling c of the spectral norms.
        n_power_iterations: Power iterations n_p per training forward.

    Raises:
        ValueError: If norm is none of the three, the activations are not one more than the inner widths, or
            SpectralLinear refuses its arguments.

    Source: paper (24); F^2 = H^3 . G^2 by (40); for any depth the nest (38)-(41).
    """

    def __init__(
        self,
        features: int,
        hidden_features: int | Sequence[int],
        act_layer: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]] = nn.GELU,
        *,
        norm: Norm = "spectral",
        tied: bool = False,
        coeff: float = 0.9,
        n_power_iterations: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: Dict[str, Any] = {"device": device, "dtype": dtype}
        if norm not in ("spectral", "none", "batch"):
            raise ValueError(f"norm is {norm!r}; choose spectral, none or batch")
        hidden, *deeper = [hidden_features] if isinstance(hidden_features, int) else hidden_features
        acts = list(act_layer) if isinstance(act_layer, Sequence) else [act_layer] * (len(deeper) + 2)
        if len(acts) != len(deeper) + 2:
            raise ValueError(f"act_layer has {len(acts)} entries; {len(deeper) + 1} inner widths take one more")

        def linear(d_in: int, d_out: int) -> nn.Linear:
            if norm == "spectral":
                return SpectralLinear(d_in, d_out, coeff=coeff, n_power_iterations=n_power_iterations, **dd)
            return nn.Linear(d_in, d_out, **dd)

        def normalise(d: int) -> nn.Module:
            return FeatureBatchNorm(d, **dd) if norm == "batch" else nn.Identity()

        self.act = acts[0]()
        self.fc1 = linear(features, hidden)
        self.bn1 = normalise(hidden)
        self.inner: Optional[Contraction] = None
        if deeper:
            options: Dict[str, Any] = dict(norm=norm, tied=tied, coeff=coeff, n_power_iterations=n_power_iterations)
            self.inner = Contraction(hidden, deeper, acts[1:], **options, **dd)
        self.act_hidden = acts[1]()
        self.fc2 = TransposedLinear(features, **dd) if tied else linear(hidden, features)
        self.bn2 = normalise(features)

    def weights(self) -> List[Tensor]:
        """W1, W2, b1 and b2, the matrices as they multiply, after normalisation; then those of `inner`."""
        if torch.jit.is_scripting():  # of a folded model only
            weights: List[Tensor] = [self.fc1.weight, self.fc2.weight]  # type: ignore[list-item]
        else:
            weights = _effective_weights(self.fc1, self.fc2)
        weights += [self.fc1.bias, self.fc2.bias]
        if self.inner is not None:
            weights += self.inner.weights()
        return weights

    def forward(self, x: Tensor, weights: List[Tensor], n_iter: Optional[int] = None) -> Tensor:
        """F(x) for x (..., features).

        Args:
            x: The point.
            weights: What `weights()` gave.
            n_iter: Fixed point iterations n of each inner inverse. Needed if there is one.

        Raises:
            ValueError: If n_iter is missing.
        """
        h = self.bn1(fn.linear(self.act(x), weights[0], weights[2]))
        if self.inner is not None:
            if n_iter is None:
                raise ValueError("n_iter is missing, and this contraction has another inside: F(x, weights, n_iter)")
            z = h
            for _ in range(n_iter):
                h = z + self.inner(h, weights[4:], n_iter)
        return self.bn2(fn.linear(self.act_hidden(h), weights[1], weights[3]))


class FeatureBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis, statistics taken over all others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


def _effective_weights(fc1: nn.Linear, fc2: nn.Linear | TransposedLinear) -> List[Tensor]:
    W1 = _effective_weight(fc1)
    return [W1, W1.t() if isinstance(fc2, TransposedLinear) else _effective_weight(fc2)]


def _effective_weight(layer: nn.Linear) -> Tensor:
    return layer.normalized_weight() if isinstance(layer, SpectralLinear) else layer.weight
