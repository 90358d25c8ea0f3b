"""iMLP: the token mixing MLP that runs from output to input.

S: tokens, D_S: width of x, N_h: inner width, L: layers, the visible one included. Axes before the last are batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, cast

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from imixer.implicit import Contraction, SpectralLinear, TransposedLinear, ceiling
from imixer.implicit.contraction import Norm, parametrizations_once
from imixer.implicit.folding import plain_transpose
from imixer.implicit.gradients import Gradient
from imixer.implicit.solution import Policy
from imixer.implicit.solvers import Solver
from imixer.implicit.spectral import Scaling, Sigma
from imixer.implicit.transposed import refuse_wrapped
from imixer.models.activations import ActLayers, activation, lipschitz_constant
from imixer.models.inversion import GradientName, Inversion, SolverName

Coeff = float | Literal["auto"]


class IMLP(nn.Module):
    """H(x) with x = (1 - F)^-1 G(v), the inverse approximated by n fixed point iterations x <- G(v) + F(x), or solved.

    With L layers F holds L - 3 further inverses, one inside the other: without F (L = 2) this is timm's `Mlp`, L = 3 is
    the paper's iMLP.

    Args:
        in_features: Width of v, the number of tokens S.
        hidden_features: Width D_S of x = the paper's N_x. Default: in_features.
        out_features: Width of the output. Default: in_features.
        act_layer: Activation (paper: GELU), a class or a name, see `imixer.models.activations`; or a sequence with one
            for each of the layers 2 to L.
        drop: Dropout after the last activation and after the output, one probability or two.
        num_layers: L. One evaluation of F costs n^(L-3) evaluations of the innermost map.
        n_iter: Iterations n of every inverse; 0 is the plain MLP. May be changed on a trained module. With another
            solver, those of the inverses inside F.
        hidden_ratio: h_r = N_h / D_S, one for all layers 3 to L or a sequence with one for each.
        tied: Symmetric couplings: the way back through each coupling is the transpose of the way there.
        coeff: Ceiling c of the spectral norms inside F; `auto`: the largest that guarantees a contraction at every
            level, whatever the weights and the dropout, see `imixer.implicit.ceiling`.
        n_power_iterations: Power iterations n_p per training forward.
        norm: How F is kept contractive: `spectral`, `orthogonal`, `none` or `batch`.
        sigma: How `spectral` finds the norm: `power`, `exact` or `row_norm`, see `imixer.implicit.SpectralLinear`.
        scaling: What it does with it: `soft` or `hard`.
        detach_sigma: Keep the gradient from going through the norm.
        inner_drop_rate: Dropout inside F, after both activations of every iteration, as Algorithm 2 has it and the
            published code has not. One mask is drawn per forward and shared by all iterations, so that they iterate
            one map. The dropout after the last activation and after the output is `drop`.
        legacy: Normalise once per iteration, as the published code does, instead of once per forward.
        solver, gradient, tolerance, max_steps, gradient_terms, on_failure: How the outermost inverse is found and
            differentiated, see `Inversion`.

    Attributes:
        contraction: F, or None if L = 2.
        inversion: The `Inversion`. May be replaced on a trained module.
        name: What messages call this module.

    Raises:
        ValueError: If num_layers is below 2, n_iter is negative, hidden_ratio leaves no hidden neuron, a sequence has
            not one entry per layer, an activation is unknown, tied couplings would need out_features to equal
            in_features, coeff is `auto` where no guarantee can be given, legacy is asked of a depth or a dropout that
            was never published, or Contraction or Inversion refuse their arguments.

    Source: paper (24)-(30) and Algorithm 1, without LayerNorm and skip connection, which the block has; the published
    code; for any depth (33)-(42). Here "G(v)" is fc_in alone: LayerNorm, part of the paper's G, is the block's norm1.
    """

    tied: Final[bool]
    __constants__ = ("by_steps",)  # by which TorchScript knows what not to look at
    __jit_unused_properties__ = ("inversion",)

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: ActLayers = nn.GELU,
        drop: float | tuple[float, float] = 0.0,
        *,
        num_layers: int = 3,
        n_iter: int = 2,
        hidden_ratio: float | Sequence[float] = 2.0,
        tied: bool = False,
        coeff: Coeff = 0.9,
        n_power_iterations: int = 8,
        norm: Norm = "spectral",
        sigma: Sigma = "power",
        scaling: Scaling = "soft",
        detach_sigma: bool = False,
        inner_drop_rate: float = 0.0,
        legacy: bool = False,
        solver: SolverName | Solver = "fixed",
        gradient: GradientName | Gradient = "unroll",
        tolerance: float = 1e-4,
        max_steps: int = 100,
        gradient_terms: int = 5,
        on_failure: Policy | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        features = hidden_features or in_features
        out_features = out_features or in_features
        if num_layers < 2:
            raise ValueError(f"num_layers is {num_layers}; give 2, which is the plain MLP, or more")
        if n_iter < 0:
            raise ValueError(f"n_iter is {n_iter}; give 0 or more fixed point iterations")
        if tied and out_features != in_features:
            raise ValueError(f"tied couplings lead back to {in_features} features, and out_features is {out_features}")
        if legacy and num_layers > 3:
            raise ValueError(f"legacy is the published code, which has 3 layers, and num_layers is {num_layers}")
        if legacy and inner_drop_rate:
            raise ValueError(
                f"legacy is the published code, without dropout inside F, and inner_drop_rate is {inner_drop_rate}"
            )
        if not 0 <= inner_drop_rate < 1:
            raise ValueError(f"inner_drop_rate is {inner_drop_rate}; give a probability from 0, below 1")
        acts = [activation(act) for act in _one_each("act_layer", act_layer, num_layers - 1)]
        drop1, drop2 = to_2tuple(drop)

        self.name = "iMLP"
        self.n_iter = n_iter
        self.legacy = legacy
        self.inversion = Inversion(
            solver, gradient, tolerance, max_steps, gradient_terms, on_failure, norm=norm, legacy=legacy
        )
        self.tied = tied
        self.fc_in = nn.Linear(in_features, features, **dd)
        widths = _widths(features, hidden_ratio, num_layers - 2)
        self.contraction: Contraction | None = None
        if widths:
            self.contraction = Contraction(
                features,
                widths,
                acts,
                norm=norm,
                tied=tied,
                coeff=_ceiling(coeff, norm, acts, inner_drop_rate),
                n_power_iterations=n_power_iterations,
                sigma=sigma,
                scaling=scaling,
                detach_sigma=detach_sigma,
                drop_rate=inner_drop_rate,
                **dd,
            )
        self.act = acts[0]()
        self.drop1 = nn.Dropout(drop1)
        self.fc_out = TransposedLinear(out_features, **dd) if tied else nn.Linear(features, out_features, **dd)
        self.drop2 = nn.Dropout(drop2)

    def forward(self, v: Tensor) -> Tensor:
        """v (..., S) -> (..., S)."""
        x0 = self.fc_in(v)  # G(v)
        x = x0
        if self.contraction is not None:
            if torch.jit.is_scripting():
                x = self._inverse(x0)
            else:
                with parametrizations_once(self.contraction):
                    x = self._inverse(x0)
        return self.H(x)

    def _inverse(self, x0: Tensor) -> Tensor:
        """x = (1 - F)^-1 x0, (..., D_S)."""
        F = self.contraction
        assert F is not None
        weights = F.weights()
        masks: list[Tensor] | None = None
        if not torch.jit.is_scripting():
            masks = F.masks(x0)
        x = x0
        if self.unrolled:
            for i in range(self.n_iter):
                if self.legacy and i > 0:
                    weights = F.weights()
                x = x0 + F(x, weights, self.n_iter, masks)
        else:
            x = self.inversion(F, x0, weights, self.n_iter, self.name, masks)
        return x

    def H(self, x: Tensor) -> Tensor:
        """What the inner state x (..., D_S) shows of itself, (..., S)."""
        g = self.drop1(self.act(x))
        if self.tied and not torch.jit.is_scripting():
            refuse_wrapped("fc_in", self.fc_in, "fc_out")
        return self.drop2(self.fc_out(g, self.fc_in.weight) if self.tied else self.fc_out(g))

    def untie(self) -> None:
        """Give the way out a plain layer with a copy of the transpose, for inference."""
        if self.tied:
            refuse_wrapped("fc_in", self.fc_in, "fc_out")
            plain = plain_transpose(cast(TransposedLinear, self.fc_out), self.fc_in.weight)
            self.fc_out = plain  # type: ignore[assignment]
            self.tied = False  # type: ignore[misc]  # constant to TorchScript, which sees the folded copy only

    @property
    def inversion(self) -> Inversion:
        return self._inversion

    @inversion.setter
    def inversion(self, value: Inversion) -> None:
        self._inversion, self.unrolled = value, value.unrolled

    def init_weights(self) -> None:
        """Called by timm once it has drawn new weights in place."""
        for layer in self.modules():
            if isinstance(layer, SpectralLinear):
                layer.warm_up()


def _widths(features: int, hidden_ratio: float | Sequence[float], count: int) -> list[int]:
    widths = [int(features * ratio) for ratio in _one_each("hidden_ratio", hidden_ratio, count)]
    if min(widths, default=1) < 1:
        raise ValueError(f"hidden_ratio is {hidden_ratio}, which leaves {min(widths)} of {features} neurons; give more")
    return widths


def _ceiling(coeff: Coeff, norm: Norm, acts: Sequence[Callable[[], nn.Module]], drop_rate: float) -> float:
    if not isinstance(coeff, str):
        return coeff
    if coeff != "auto":
        raise ValueError(f"coeff is {coeff!r}; give a number or auto")
    if norm not in ("spectral", "orthogonal"):
        raise ValueError(f"coeff is auto, a ceiling that only norm=spectral and orthogonal hold, and norm is {norm}")
    try:
        return ceiling([lipschitz_constant(act()) / (1 - drop_rate) for act in acts])
    except ValueError as error:
        raise ValueError(f"coeff is auto, but {error}; give coeff as a number") from error


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    """A sequence of `count` as it is, anything else repeated."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries; this depth takes {count}, or a single value for all")
    return list(value)
