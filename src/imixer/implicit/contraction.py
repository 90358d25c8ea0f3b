"""The contraction F of x = z + F(x): two linear layers with an activation before each, and room for another inside."""

from collections.abc import Callable, Sequence
from typing import Any, Dict, List, Literal, Optional, get_args

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from imixer.implicit.spectral import NormalizedLinear, OrthogonalLinear, Scaling, Sigma, SpectralLinear
from imixer.implicit.transposed import TransposedLinear

Norm = Literal["spectral", "orthogonal", "none", "batch"]


class Contraction(nn.Module):
    """F(x) = W2 g'((1 - F')^-1 (W1 g(x) + b1)) + b2, its Lipschitz constant bounded by what `norm` does to W1 and W2.

    F' is `inner`, one more contraction, for the layer above; without it the inverse is 1. The paper's F^A is F, and
    F^(A+1) is F'.

    `F(x, weights)` takes all that F depends on besides x from `F.weights()`: the effective matrices, so that the caller
    decides how often they are computed (once per forward, however often F and all inside it are applied), and the
    biases, so that `solve(lambda x, *w: F(x, list(w)), z, F.weights())` has a gradient for everything. Not so with
    norm=batch. Its dropout is drawn by the caller too, see `masks`.

    Args:
        features: Width of x, D_S in a token mixing MLP.
        hidden_features: Inner width N_h, or those of a chain of layers, outermost first: each beyond the first nests
            one more contraction.
        act_layer: Makes the activations, or a sequence: g of x, then one per inner width.
        norm: `spectral` bounds the norms of W1 and W2 by coeff, see `SpectralLinear`; `orthogonal` makes all their
            singular values coeff, see `OrthogonalLinear`; `none` leaves them free; `batch` follows each linear layer
            with BatchNorm over its features (paper, Table 3).
        tied: W2 is the transpose of W1, normalised alike: a symmetric coupling. `fc2` then has only a bias.
        coeff: Ceiling c of the spectral norms.
        n_power_iterations: Power iterations n_p per training forward.
        sigma, scaling, detach_sigma: How `spectral` finds the norm and what it does with it, see `SpectralLinear`.
        drop_rate: Probability that a neuron is dropped in training, after each activation inside F: that of
            Algorithm 2, but drawn once per forward. Dropout makes F steeper by 1 / (1 - p) per activation.

    Raises:
        ValueError: If norm is none of the four, sigma, scaling or detach_sigma is asked of another norm than
            `spectral`, drop_rate is not from 0, below 1, the activations are not one more than the inner widths, or
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
        sigma: Sigma = "power",
        scaling: Scaling = "soft",
        detach_sigma: bool = False,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: Dict[str, Any] = {"device": device, "dtype": dtype}
        if norm not in get_args(Norm):
            raise ValueError(f"norm is {norm!r}; choose spectral, orthogonal, none or batch")
        spectral: Dict[str, Any] = dict(sigma=sigma, scaling=scaling, detach_sigma=detach_sigma)
        for option, default in (("sigma", "power"), ("scaling", "soft"), ("detach_sigma", False)):
            if norm != "spectral" and spectral[option] != default:
                raise ValueError(
                    f"{option} is {spectral[option]}, an option of norm=spectral, and norm is {norm}; leave one out"
                )
        if not 0 <= drop_rate < 1:
            raise ValueError(f"the dropout inside F is {drop_rate}; give a probability from 0, below 1")
        hidden, *deeper = [hidden_features] if isinstance(hidden_features, int) else hidden_features
        acts = list(act_layer) if isinstance(act_layer, Sequence) else [act_layer] * (len(deeper) + 2)
        if len(acts) != len(deeper) + 2:
            raise ValueError(f"act_layer has {len(acts)} entries; {len(deeper) + 1} inner widths take one more")

        def linear(d_in: int, d_out: int) -> nn.Linear:
            if norm == "spectral":
                options = spectral | dict(coeff=coeff, n_power_iterations=n_power_iterations)
                return SpectralLinear(d_in, d_out, **options, **dd)
            if norm == "orthogonal":
                return OrthogonalLinear(d_in, d_out, coeff=coeff, **dd)
            return nn.Linear(d_in, d_out, **dd)

        def normalise(d: int) -> nn.Module:
            return FeatureBatchNorm(d, **dd) if norm == "batch" else nn.Identity()

        self.drop_rate = drop_rate
        self.act = acts[0]()
        self.fc1 = linear(features, hidden)
        self.bn1 = normalise(hidden)
        self.inner: Optional[Contraction] = None
        if deeper:
            options: Dict[str, Any] = dict(norm=norm, tied=tied, coeff=coeff, n_power_iterations=n_power_iterations)
            self.inner = Contraction(hidden, deeper, acts[1:], **options, **spectral, drop_rate=drop_rate, **dd)
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

    def masks(self, x: Tensor) -> Optional[List[Tensor]]:
        """Draw one forward's dropout, so that all iterations apply the same map.

        Args:
            x: Any point (..., features) of the shape and dtype that F will be given.

        Returns:
            A factor for each activation of each level, 0 or 1 / (1 - p); None where nothing is dropped.
        """
        if not self.training or self.drop_rate == 0:
            return None
        widths = [len(self.fc2.bias), len(self.fc1.bias)]
        inner = self.inner.masks(x) if self.inner is not None else None
        return [_dropout_mask(x, width, self.drop_rate) for width in widths] + (inner or [])

    def forward(
        self, x: Tensor, weights: List[Tensor], n_iter: Optional[int] = None, masks: Optional[List[Tensor]] = None
    ) -> Tensor:
        """F(x) for x (..., features).

        Args:
            x: The point.
            weights: What `weights()` gave.
            n_iter: Fixed point iterations n of each inner inverse. Needed if there is one.
            masks: What `masks(x)` gave. Without them nothing is dropped.

        Raises:
            ValueError: If n_iter is missing.
        """
        g = self.act(x)
        if masks is not None:
            g = g * masks[0]
        h = self.bn1(fn.linear(g, weights[0], weights[2]))
        if self.inner is not None:
            if n_iter is None:
                raise ValueError("n_iter is missing, and this contraction has another inside: F(x, weights, n_iter)")
            inner_masks: Optional[List[Tensor]] = None
            if masks is not None:
                inner_masks = masks[2:]
            z = h
            for _ in range(n_iter):
                h = z + self.inner(h, weights[4:], n_iter, inner_masks)
        g = self.act_hidden(h)
        if masks is not None:
            g = g * masks[1]
        return self.bn2(fn.linear(g, weights[1], weights[3]))


class FeatureBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis, statistics taken over all others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


def _effective_weights(fc1: nn.Linear, fc2: nn.Linear | TransposedLinear) -> List[Tensor]:
    W1 = _effective_weight(fc1)
    return [W1, W1.t() if isinstance(fc2, TransposedLinear) else _effective_weight(fc2)]


def _effective_weight(layer: nn.Linear) -> Tensor:
    return layer.normalized_weight() if isinstance(layer, NormalizedLinear) else layer.weight


@torch.fx.wrap  # shapes are not known while tracing
def _dropout_mask(x: Tensor, width: int, rate: float) -> Tensor:
    return fn.dropout(x.new_ones((*x.shape[:-1], width)), rate)
