"""Soft spectral normalisation of a linear layer: W / max(1, sigma(W) / c).

Power iteration finds sigma from below: v <- normalise(W^T W v). Only `v` is kept. The estimate
sigma = ||W v|| / ||v|| does not depend on the length of v, so averaging or rounding the buffer (EMA, bf16) cannot
shrink sigma and thereby switch the normalisation off.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARM_UP_STEPS = 64


def exact_sigma(weight: Tensor) -> Tensor:
    """Largest singular value of a matrix, by SVD in at least float32. Differentiable."""
    return torch.linalg.matrix_norm(at_least_float32(weight), ord=2)


class SpectralLinear(nn.Linear):
    """Linear layer whose spectral norm is held at or below a ceiling, softly: smaller norms are left as they are.

    The parameter `weight` is the free matrix W; what multiplies the input is `normalized_weight()`,
    W / max(1, sigma / coeff). The gradient goes through sigma, so above the ceiling it has no radial component.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Add a bias.
        coeff: Ceiling c of the spectral norm (paper: 0.9). Must be positive.
        n_power_iterations: Power iterations n_p per training forward (paper: 8), starting from the last vector.
            None run in evaluation or while a checkpointed forward is replayed.

    Attributes:
        advances_itself: Whether a training forward runs the power iterations. An owner that calls `advance()` once per
            forward, outside whatever it checkpoints, sets it to False: the replay of a checkpointed region inside a
            compiled graph cannot be told from its forward.

    Raises:
        ValueError: If coeff is not positive or n_power_iterations is negative.

    Source: paper section 4.1; Behrmann et al., arXiv 1811.00995, section 2.1.
    """

    v: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        coeff: float = 0.9,
        n_power_iterations: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not coeff > 0:
            raise ValueError(f"coeff is {coeff}; the spectral norm ceiling must be above 0")
        if n_power_iterations < 0:
            raise ValueError(f"n_power_iterations is {n_power_iterations}; give 0 or more")
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.coeff = coeff
        self.n_power_iterations = n_power_iterations
        self.advances_itself = True
        # In float32 whatever the weights are, and from a generator of its own: building a model must neither
        # depend on nor advance the global one.
        start = torch.randn(in_features, device="cpu", generator=torch.Generator().manual_seed(0))
        self.register_buffer("v", F.normalize(start, dim=0).to(self.weight.device))
        self.warm_up()

    def warm_up(self) -> None:
        """Bring the power iteration to rest: call it whenever `weight` was changed other than by training."""
        self._iterate(WARM_UP_STEPS)

    def advance(self) -> None:
        """Run one training forward's power iterations."""
        self._iterate(self.n_power_iterations)

    def sigma(self, exact: bool = False) -> Tensor:
        """Spectral norm of `weight`: the running estimate, which never exceeds the truth, or exactly by SVD."""
        return exact_sigma(self.weight) if exact else _sigma(self.weight, self.v)

    def normalized_weight(self) -> Tensor:
        """W / max(1, sigma / c), in the dtype of W. In training it advances the power iteration first."""
        if self.training and self.advances_itself and not _replaying():
            self.advance()
        return _soft_normalise(self.weight, self.v, self.coeff)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the normalised layer to x (..., in_features)."""
        return F.linear(x, self.normalized_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, coeff={self.coeff}, n_power_iterations={self.n_power_iterations}"

    @torch.no_grad()
    def _iterate(self, steps: int) -> None:
        if self.weight.is_meta:  # has no numbers
            return
        W = at_least_float32(self.weight)
        v = self.v.to(W.dtype)
        with _full_precision(W.device):
            for _ in range(steps):
                v = F.normalize(torch.mv(W.t(), torch.mv(W, v)), dim=0)
        self.v.copy_(v)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Weights from elsewhere come without a vector. One that does come belongs to them: moving it would
        # make a resumed run differ from an uninterrupted one.
        foreign = state_dict.get(prefix + "weight") is not None and prefix + "v" not in state_dict
        if foreign:
            state_dict[prefix + "v"] = self.v
        super()._load_from_state_dict(state_dict, prefix, *args)
        if foreign:
            self.warm_up()


def advance(layers: Iterable[SpectralLinear]) -> None:
    """Run one training forward's power iterations of several layers.

    On an accelerator those of one shape are run at once, by few large kernels instead of many small ones; on a CPU that
    would be slower.
    """
    alike: dict[Any, list[SpectralLinear]] = {}
    for number, layer in enumerate(layers):
        key = number if layer.weight.device.type == "cpu" else (layer.weight.shape, layer.n_power_iterations)
        alike.setdefault(key, []).append(layer)
    for group in alike.values():
        group[0].advance() if len(group) == 1 else _advance_together(group)


@torch.no_grad()
def _advance_together(layers: Sequence[SpectralLinear]) -> None:
    """For layers of one shape. G: layers, O: out_features, I: in_features."""
    if layers[0].weight.is_meta:
        return
    W_GOI = torch.stack([at_least_float32(layer.weight) for layer in layers])
    v_GI = torch.stack([layer.v for layer in layers]).to(W_GOI.dtype)
    for _ in range(layers[0].n_power_iterations):
        # not as matrix products, which GPUs round to TF32
        u_GO = (W_GOI * v_GI[:, None, :]).sum(2)
        v_GI = F.normalize((W_GOI * u_GO[:, :, None]).sum(1), dim=1)
    for layer, v in zip(layers, v_GI.unbind(), strict=True):
        layer.v.copy_(v)


@torch.fx.wrap  # symbolic tracing must not look inside, where the dtype decides
def _soft_normalise(weight: Tensor, v: Tensor, coeff: float) -> Tensor:
    excess = torch.clamp(_sigma(weight, v) / coeff, min=1.0)
    return (at_least_float32(weight) * excess.reciprocal()).to(weight.dtype)


def _sigma(weight: Tensor, v: Tensor) -> Tensor:
    W = at_least_float32(weight)
    # A copy: the backward may come after the next forward has moved the buffer on.
    v = v.to(W.dtype, copy=True)
    with _full_precision(W.device):
        return torch.linalg.vector_norm(torch.mv(W, v)) / torch.linalg.vector_norm(v)


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _replaying() -> bool:
    """Whether a backward is running, hence this forward is the replay of a checkpointed one."""
    if torch.compiler.is_compiling():
        return False  # not visible while tracing, see `advances_itself`
    return torch._C._current_graph_task_id() != -1
