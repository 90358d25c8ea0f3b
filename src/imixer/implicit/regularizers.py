"""Regularisers that keep x = z + F(x) easy to solve while it is trained, to be added to a loss."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from imixer.errors import check_whole
from imixer.implicit.determinants import alike, linearized, ordinary, rademacher, with_graph
from imixer.implicit.func_transforms import differentiable
from imixer.implicit.states import as_tuple, per_sample


def jacobian_penalty(
    F: Callable[..., Tensor],
    x: Tensor,
    tensors: Tensor | Sequence[Tensor] = (),
    *,
    probes: int | Tensor = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate the squared Frobenius norm of dF/dx per sample, divided by the numbers in a sample.

    Choose it to make F flatter where solutions are. Unbiased, and differentiable.

    Args:
        F: The contraction.
        x: Solutions, (B, ...).
        tensors: What F depends on besides x. One alone needs no tuple.
        probes: Random vectors of signs, or these themselves, (P, B, ...).
        generator: Where they are drawn from, on the CPU. Default: torch's global one of the device of x.

    Returns:
        Penalties (B,).

    Raises:
        ValueError: If there is no probe, x is not real, or F does not lead back to its shape.

    Source: Bai, Koltun & Kolter, arXiv 2106.14342, section 4.
    """
    signs = rademacher(x, probes, generator)
    with with_graph():
        _, pull = linearized(F, x, tensors)
        total = x.new_zeros(len(x))
        for v in ordinary(signs):
            total = total + _mean_square(pull(v)) / len(signs)
    return total if differentiable() else total.detach()


def iterates(
    F: Callable[..., Tensor],
    z: Tensor,
    tensors: Tensor | Sequence[Tensor] = (),
    *,
    steps: int,
    start: Tensor | None = None,
) -> list[Tensor]:
    """Return x_0, ..., x_steps of x <- z + F(x), with a graph through all of them.

    Args:
        F: The contraction.
        z: (B, ...), real or complex.
        tensors: What F depends on besides x. One alone needs no tuple.
        steps: Steps, 1 or more.
        start: x_0. Default: z.

    Raises:
        ValueError: If there is no step, z or the start is no tensor, or the start has another shape or F leads to one.
    """
    check_whole(steps=steps)
    if steps < 1:
        raise ValueError(f"steps is {steps}; give 1 or more")
    _check_state("z", z, z)
    if start is not None:
        _check_state("start", start, z)
    path, given = [z if start is None else start], as_tuple(tensors)
    for _ in range(steps):
        path.append(z + alike(F(path[-1], *given), z))
    return path


def trajectory_cost(path: Sequence[Tensor]) -> Tensor:
    """Sum the squared lengths of the steps of a path, (B,), divided by the real numbers in a sample.

    Choose it to make the iteration short: it is the kinetic energy of a path in unit steps.

    Args:
        path: x_0, x_1, ..., each (B, ...), such as `iterates` gives. Complex numbers count as pairs of real ones.

    Returns:
        Costs (B,), real.

    Raises:
        ValueError: If there is no step, or the states are no tensors of one shape.

    Source: Finlay et al., arXiv 2002.02798, for ordinary differential equations; here of steps.
    """
    if len(path) < 2:
        raise ValueError(f"path has {len(path)} states; give two or more, such as iterates(F, z, tensors, steps=2)")
    for i, x in enumerate(path):
        _check_state(f"path[{i}]", x, path[0])
    return torch.stack([_mean_square(after - before) for before, after in pairwise(path)]).sum(0)


def fixed_point_correction(
    F: Callable[..., Tensor],
    z: Tensor,
    tensors: Tensor | Sequence[Tensor],
    path: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
    *,
    decay: float = 0.8,
) -> Tensor:
    """Sum the losses of intermediate iterates, later ones counting more.

    Choose it to make early iterates useful. Each gets the gradient of one step of its own, with no graph to those
    before.

    Args:
        F: The contraction.
        z: (B, ...), real or complex.
        tensors: What F depends on besides x. One alone needs no tuple.
        path: Intermediate iterates, the last one last.
        loss: The loss of a state, one number.
        decay: Weight of an iterate relative to the next, in (0, 1].

    Returns:
        The sum of decay^(K - k) loss(z + F(x_k)) over the K iterates.

    Raises:
        ValueError: If decay is not in (0, 1], the path is empty, z or an iterate is no tensor or has another shape, F
            leads to one, or the loss is not one number.

    Source: Bai et al., arXiv 2204.08442.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}; give a weight above 0 and at most 1")
    if not path:
        raise ValueError("path has no states; give one or more, such as iterates(F, z, tensors, steps=2)")
    given = as_tuple(tensors)
    for name, x in (("z", z), *((f"path[{i}]", x) for i, x in enumerate(path))):
        _check_state(name, x, z)
    losses = [decay ** (len(path) - k) * loss(z + alike(F(x.detach(), *given), z)) for k, x in enumerate(path, 1)]
    first: object = losses[0]
    if not isinstance(first, Tensor) or first.dim() > 0:
        what = f"has shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"is {type(first).__name__}"
        raise ValueError(f"the loss of a state {what}; give one number, a tensor such as its mean")
    return torch.stack(losses).sum()


def _check_state(name: str, x: object, like: object) -> None:
    """Refuse what is no state (B, ...), or none of the shape of another."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is {type(x).__name__}; give one tensor of states (B, ...)")
    if x.dim() == 0:
        raise ValueError(f"{name} has no axis of samples; give it one, {name}[None]")
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"{name} is of {x.dtype}; convert it, {name}.float()")
    if isinstance(like, Tensor) and x.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; give {tuple(like.shape)}, as the others have")


def _mean_square(x: Tensor) -> Tensor:
    return per_sample(torch.view_as_real(x) if x.is_complex() else x).square().mean(1)
