"""Regularisers of an inverse that is trained: what a forward pass adds to the loss."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imixer.implicit import fixed_point_correction, iterates, jacobian_penalty, trajectory_cost
from imixer.implicit.spectral import replaying
from imixer.inverse_options import PENALTIES, InverseOptions


class Penalties:
    """The penalties of one `IMLP`, weighted, from the last training forward until they are asked for.

    Choose them by the options of these names. Where all are 0, nothing is computed.

    Args:
        options: Their weights, and the number of iterations.

    Source: those of `imixer.implicit.regularizers`. The correction's target is the block's own solution, since an inner
    block has no labels; it is ours.
    """

    def __init__(self, options: InverseOptions) -> None:
        self.weights = {name: float(getattr(options, name)) for name in PENALTIES}
        self._last: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Penalties":
        """Copy the weights alone: what is left of a forward pass belongs to its graph."""
        copied = object.__new__(Penalties)
        copied.weights, copied._last = dict(self.weights), None
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"weights": self.weights, "_last": None}

    @property
    def wanted(self) -> bool:
        """Whether a weight is positive."""
        return any(self.weights.values())

    def record(self, F: Callable[..., Tensor], z: Tensor, x: Tensor, tensors: list[Tensor], steps: int) -> None:
        """Compute the penalties of one forward pass, and keep them unless it is the replay of a checkpointed one.

        A replay computes them for the backward of those that were kept.

        Args:
            F: The contraction, of x and the tensors.
            z: G(v), (B, ...).
            x: The solution, (B, ...).
            tensors: What F depends on.
            steps: Steps of the paths that are penalised.
        """
        if torch.is_grad_enabled():
            total = _total_eagerly(self.weights, F, z, x, tensors, max(steps, 1))
            if not replaying():
                self._last = total

    def take(self) -> Tensor | None:
        """Return the weighted sum of the last training forward, and forget it; None if there is none."""
        last, self._last = self._last, None
        return last


def take_penalty(model: nn.Module) -> Tensor | None:
    """Return what the last training forward of a model adds to its loss, a scalar, and forget it.

    Choose it for a model that may hold an iMixer anywhere inside, such as a `Segmenter`.

    Args:
        model: Any model.

    Returns:
        The sum over the `Penalties` of all its `IMLP`s; None if there are none, or nothing was computed since.
    """
    kept = (getattr(module, "penalties", None) for module in model.modules())
    given = [part for each in kept if isinstance(each, Penalties) and (part := each.take()) is not None]
    return torch.stack(given).sum() if given else None


def _total(
    weights: Mapping[str, float],
    F: Callable[..., Tensor],
    z: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    steps: int,
) -> Tensor:
    """Compute the weighted sum of the penalties, see `Penalties.record`."""
    jacobian, trajectory, correction = (weights[name] for name in PENALTIES)
    total = torch.zeros((), device=z.device)
    if jacobian:
        total = total + jacobian * jacobian_penalty(F, x, tensors).mean()
    if trajectory or correction:
        path = iterates(F, z, tensors, steps=steps)
        if trajectory:
            total = total + trajectory * trajectory_cost(path).mean()
        if correction:
            target = _further(F, z, x, tensors, steps)

            def distance(state: Tensor) -> Tensor:
                return (state - target).square().mean()

            # G is left alone: the solution moves with G(v), which would follow it without end.
            total = total + correction * fixed_point_correction(F, z.detach(), tensors, path[:-1], distance)
    return total


# Derivatives inside a forward pass are more than compilers follow.
_total_eagerly: Callable[..., Tensor] = torch.compiler.disable(_total)


@torch.no_grad()
def _further(F: Callable[..., Tensor], z: Tensor, x: Tensor, tensors: list[Tensor], steps: int) -> Tensor:
    """Take further steps from x, towards the solution that an iteration which is cut off does not reach."""
    for _ in range(steps):
        x = z + F(x, *tensors)
    return x
