"""iMLP: the token mixing MLP that runs from output to input.

S: tokens, D_S: width of x, N_h: inner width, L: layers, the visible one included. Axes before the last are batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from imixer.implicit import Contraction, OrthogonalLinear, SpectralLinear, TransposedLinear, ceiling
from imixer.implicit.contraction import parametrizations_once
from imixer.implicit.folding import plain_transpose
from imixer.implicit.func_transforms import transformed
from imixer.implicit.fused import may_fuse, token_mixing
from imixer.implicit.low_rank import weight_with_lora
from imixer.implicit.transposed import refuse_wrapped
from imixer.inverse_options import InverseOptions, shows_options
from imixer.models.activations import ActLayers, activation, lipschitz_constant
from imixer.models.inversion import Inversion
from imixer.models.penalties import Penalties

T = TypeVar("T")


class IMLP(nn.Module):
    """H(x) with x = (1 - F)^-1 G(v), the inverse approximated by n fixed point iterations x <- G(v) + F(x), or solved.

    Choose it in the place of timm's `Mlp`, whose first arguments it takes. With L layers F holds L - 3 further
    inverses, one inside the other: without F (L = 2) this is `Mlp`, L = 3 is the paper's iMLP.

    Args:
        in_features: Width of v, the number of tokens S.
        hidden_features: Width D_S of x = the paper's N_x. Default: in_features.
        out_features: Width of the output. Default: in_features.
        act_layer: Activation (paper: GELU), a class or a name, see `imixer.models.activations`; or a sequence with one
            for each of the layers 2 to L.
        drop: Dropout after the last activation and after the output, one probability or two.
        device: Where to make the parameters.
        dtype: In which type.
        options: Those of `imixer.inverse_options.InverseOptions`, which has their defaults.

    Attributes:
        n_iter: Iterations n of every inverse. May be changed on a trained module.
        contraction: F, or None if L = 2.
        inversion: The `Inversion`, how the outermost inverse is found. May be replaced on a trained module.
        name: What messages call this module.
        penalties: The `imixer.models.penalties.Penalties` of the options `jacobian_penalty`, `trajectory_penalty` and
            `correction_penalty`.

    Raises:
        TypeError: If there is no such option.
        ValueError: If an option is impossible, a sequence has not one entry per layer, hidden_ratio leaves no hidden
            neuron, an activation is unknown, tied couplings would need out_features to equal in_features, coeff is
            `auto` where no guarantee can be given, or Contraction or Inversion refuse their arguments.

    Source: paper (24)-(30) and Algorithm 1, without LayerNorm and skip connection, which the block has; the published
    code; for any depth (33)-(42). Here "G(v)" is fc_in alone: LayerNorm, part of the paper's G, is the block's norm1.
    """

    @shows_options
    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: ActLayers = nn.GELU,
        drop: float | tuple[float, float] = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        chosen = InverseOptions(**options)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        features = hidden_features or in_features
        out_features = out_features or in_features
        if chosen.tied and out_features != in_features:
            raise ValueError(f"tied couplings lead back to {in_features} features, and out_features is {out_features}")
        acts = [activation(act) for act in _one_each("act_layer", act_layer, chosen.num_layers - 1)]
        drop1, drop2 = to_2tuple(drop)

        self.name = "iMLP"
        self.n_iter = chosen.n_iter
        self.legacy = chosen.legacy
        self.tied = chosen.tied
        self.inversion = Inversion.of(chosen)
        self.penalties = Penalties(chosen)
        self.fc_in = nn.Linear(in_features, features, **dd)
        self.contraction = _contraction(features, acts, chosen, dd)
        self.act = acts[0]()
        self.drop1 = nn.Dropout(drop1)
        way_out = TransposedLinear(out_features, **dd) if self.tied else nn.Linear(features, out_features, **dd)
        self.fc_out: nn.Module = way_out
        self.drop2 = nn.Dropout(drop2)

    def forward(self, v: Tensor) -> Tensor:
        """Mix v (..., S) -> (..., S)."""
        weights = None
        if may_fuse(v) and self._is_fusible():
            weights = cast(Contraction, self.contraction).weights()
            mixed = self._fused(v, weights)
            if mixed is not None:
                return mixed
        z = self.fc_in(v)  # G(v)
        x = z
        if self.contraction is not None:
            with parametrizations_once(self.contraction):
                x = self._inverse(self.contraction, z, weights)
        return self.H(x)

    def _is_fusible(self) -> bool:
        """Tell whether the kernel computes what this module does."""
        F = self.contraction
        if F is None or F.inner is not None or self.legacy or not self.inversion.unrolled or transformed():
            return False
        if self.training and self.penalties.wanted:  # which need F and the iterates
            return False
        layers = (self.fc_in, F.fc1, F.fc2, self.fc_out)
        if any(type(each) not in (nn.Linear, SpectralLinear, OrthogonalLinear) or each.bias is None for each in layers):
            return False  # tied couplings and parametrized weights too
        if any(type(act) is not nn.GELU or act.approximate != "none" for act in (self.act, F.act, F.act_hidden)):
            return False
        if self.training and max(self.drop1.p, self.drop2.p, F.drop_rate) > 0:
            return False
        return isinstance(F.bn1, nn.Identity) and not any(_is_watched(module) for module in self.modules())

    def _fused(self, v: Tensor, weights_of_F: list[Tensor]) -> Tensor | None:
        """Mix v in one kernel; None where that is no faster, or the kernel takes no such v."""
        W1, W2, b1, b2 = weights_of_F
        way_in, way_out = self.fc_in, cast(nn.Linear, self.fc_out)
        weights = [way_in.weight, way_in.bias, W1, b1, W2, b2, way_out.weight, way_out.bias]
        return token_mixing(v, weights, self.n_iter)

    def _inverse(self, F: Contraction, z: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Compute x = (1 - F)^-1 z, (..., D_S): Algorithm 1 without its first and last line."""
        weights = F.weights() if weights is None else weights  # normalised once, whatever n
        masks = F.masks(z)  # dropout, one map for all iterations
        x = self._solved(F, z, weights, masks)
        if self.training and self.penalties.wanted and not isinstance(z, torch.fx.Proxy):
            self.penalties.record(lambda x, *w: F(x, list(w), self.n_iter, masks), z, x, weights, self.n_iter)
        return x

    def _solved(self, F: Contraction, z: Tensor, weights: list[Tensor], masks: list[Tensor] | None) -> Tensor:
        if not self.inversion.unrolled:
            return self.inversion(F, z, weights, self.n_iter, self.name, masks)
        x = z
        for i in range(self.n_iter):
            if self.legacy and i > 0:
                weights = F.weights()
            x = z + F(x, weights, self.n_iter, masks)
        return x

    def H(self, x: Tensor) -> Tensor:
        """Lead the inner state x (..., D_S) back to the tokens, (..., S)."""
        g = self.drop1(self.act(x))
        if self.tied:
            refuse_wrapped("fc_in", self.fc_in, "fc_out")
        return self.drop2(self.fc_out(g, weight_with_lora(self.fc_in)) if self.tied else self.fc_out(g))

    def untie(self) -> None:
        """Give the way out a plain layer with a copy of the transpose, for inference."""
        if self.tied:
            refuse_wrapped("fc_in", self.fc_in, "fc_out")
            plain = plain_transpose(cast(TransposedLinear, self.fc_out), weight_with_lora(self.fc_in))
            self.fc_out = plain
            self.tied = False

    def init_weights(self) -> None:
        """Bring the power iterations to rest: timm calls this once it has drawn new weights in place."""
        for layer in self.modules():
            if isinstance(layer, SpectralLinear):
                layer.warm_up()


def _is_watched(module: nn.Module) -> bool:
    """Tell whether hooks wait for calls of a module, which a kernel does not make."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _contraction(
    features: int, acts: Sequence[Callable[[], nn.Module]], options: InverseOptions, dd: dict[str, Any]
) -> Contraction | None:
    """Build F of x (..., features), or None for two layers."""
    widths = _widths(features, options.hidden_ratio, options.num_layers - 2)
    if not widths:
        return None
    return Contraction(
        features,
        widths,
        acts,
        norm=options.norm,
        tied=options.tied,
        coeff=_ceiling(options, acts),
        n_power_iterations=options.n_power_iterations,
        sigma=options.sigma,
        scaling=options.scaling,
        detach_sigma=options.detach_sigma,
        drop_rate=options.inner_drop_rate,
        **dd,
    )


def _widths(features: int, hidden_ratio: float | list[float], count: int) -> list[int]:
    widths = [int(features * ratio) for ratio in _one_each("hidden_ratio", hidden_ratio, count)]
    if min(widths, default=1) < 1:
        raise ValueError(f"hidden_ratio is {hidden_ratio}, which leaves {min(widths)} of {features} neurons; give more")
    return widths


def _ceiling(options: InverseOptions, acts: Sequence[Callable[[], nn.Module]]) -> float:
    coeff, norm = options.coeff, options.norm
    if not isinstance(coeff, str):
        return coeff
    if coeff != "auto":
        raise ValueError(f"coeff is {coeff!r}; give a number or auto")
    if norm not in ("spectral", "orthogonal"):
        raise ValueError(f"coeff is auto, a ceiling that only norm=spectral and orthogonal hold, and norm is {norm}")
    try:
        return ceiling([_lasting_slope(act()) / (1 - options.inner_drop_rate) for act in acts])
    except ValueError as error:
        raise ValueError(f"coeff is auto, but {error}; give coeff as a number") from error


def _lasting_slope(act: nn.Module) -> float:
    """Return the largest slope of an activation that training leaves as it is, or that it states itself."""
    stated = callable(getattr(act, "lipschitz_bound", None))
    if any(parameter.requires_grad for parameter in act.parameters()) and not stated:
        raise ValueError(f"{type(act).__name__} has parameters, and its slope changes as they are learned")
    return lipschitz_constant(act)


def _one_each(name: str, value: T | list[T] | tuple[T, ...], count: int) -> list[T]:
    """Return a sequence of `count` as it is, and anything else repeated."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries; this depth takes {count}, or a single value for all")
    return list(value)
