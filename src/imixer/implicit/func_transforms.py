"""Decisions of the host inside `torch.func` transforms, where a tensor stands for those of all that is mapped over.

What stops a loop is asked of all of them at once: a sample that has converged stays as it is while others go on, so a
step more changes none.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed() -> bool:
    """Tell whether a transform of `torch.func` is running."""
    return not torch.compiler.is_compiling() and bool(torch._C._are_functorch_transforms_active())


def duals_in_use() -> bool:
    """Tell whether derivatives are taken by dual numbers, by `torch.func` or without it."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def has_tangent(x: Tensor) -> bool:
    """Tell whether x is a dual number."""
    return duals_in_use() and forward_ad.unpack_dual(x).tangent is not None


def differentiable() -> bool:
    """Tell whether derivatives may be taken: by a graph, a transform, or dual numbers, which no `no_grad` stops."""
    return torch.is_grad_enabled() or transformed() or duals_in_use()


def physical(x: Tensor) -> Tensor:
    """Return the numbers of x below all transforms, what is mapped over along further axes at the end."""
    if not transformed():
        return x
    F = torch._C._functorch
    while F.is_functorch_wrapped_tensor(x):
        axis = F.maybe_get_bdim(x) if F.is_batchedtensor(x) else None
        x = F.get_unwrapped(x)
        x = x if axis is None else x.movedim(axis, -1)
    return x.detach()


def drawn_by_the_host(generator: torch.Generator | None) -> float:
    """Draw a number from 0 to 1, on the CPU or where a generator is, one for all that is mapped over."""
    device = "cpu" if generator is None else generator.device
    with torch._C._DisableFuncTorch():
        return float(torch.rand((), generator=generator, device=device))


def every(mask: Tensor) -> bool:
    """Tell whether a mask holds throughout, in all that is mapped over."""
    return bool(physical(mask).all())
