"""log|det(1 - dF/dx)|, by which densities change under x = (1 - F)^-1 z and back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from imixer.dtypes import at_least_float32
from imixer.errors import check_whole
from imixer.implicit.func_transforms import differentiable, drawn_by_the_host, duals_in_use, transformed
from imixer.implicit.states import as_tuple, per_sample


def residual_log_det(
    F: Callable[..., Tensor],
    x: Tensor,
    tensors: Tensor | Sequence[Tensor] = (),
    *,
    terms: int = 10,
    roulette: float = 0.5,
    probes: int | Tensor = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate log|det(1 - dF/dx)| per sample, by the series -sum over k of tr((dF/dx)^k) / k.

    Traces are Hutchinson's, of random signs. With `roulette` the series goes on after `terms` for as long as a coin
    falls that way, and each further term counts for more the less likely it was: the estimate is unbiased, and so is
    its gradient. Differentiable in x and in what F depends on; memory grows with the number of terms.

    Args:
        F: A contraction that treats samples apart.
        x: Points (B, ...).
        tensors: What F depends on besides x. One alone needs no tuple.
        terms: Terms that are always taken.
        roulette: Probability p that one more is taken, each time, from 0, below 1. 0 cuts the series off, off by up to
            N Lip^(terms + 1) / ((terms + 1) (1 - Lip)) for N numbers a sample. Its variance is finite above Lip^2.
        probes: Random vectors, or these themselves, (P, B, ...).
        generator: Where signs and coins are drawn from, on the CPU. Default: torch's global ones, for signs that of the
            device of x.

    Returns:
        Estimates (B,).

    Raises:
        ValueError: If terms or probes are below 1, roulette is not from 0, below 1, x is not real, or F does not lead
            back to its shape.

    Source: Behrmann et al., arXiv 1811.00995, section 3; Chen et al., arXiv 1906.02735, theorem 1.
    """
    check_whole(terms=terms)
    if terms < 1 or not 0 <= roulette < 1:
        raise ValueError(f"terms and roulette are {terms} and {roulette}; give 1 or more and a probability below 1")
    signs = rademacher(x, probes, generator)
    more = 0
    while roulette and drawn_by_the_host(generator) < roulette:
        more += 1
    with with_graph():
        _, pull = linearized(F, x, tensors)
        total = x.new_zeros(len(x))
        for v in ordinary(signs):
            product = v
            for k in range(1, terms + more + 1):
                product = pull(product)
                weight = roulette ** -(k - terms) if k > terms else 1.0
                total = total - weight / (k * len(signs)) * per_sample(product * v).sum(1)
    return total if differentiable() else total.detach()


def exact_log_det(F: Callable[..., Tensor], x: Tensor, tensors: Tensor | Sequence[Tensor] = ()) -> Tensor:
    """Compute log|det(1 - dF/dx)| per sample, from the whole Jacobian. Differentiable.

    Choose it for few numbers a sample, N: it takes N products with the Jacobian and N^3 operations.

    Args:
        F: A map that treats samples apart.
        x: Points (B, ...).
        tensors: What F depends on besides x. One alone needs no tuple.

    Returns:
        Log-determinants (B,); minus infinity where 1 - dF/dx is singular.

    Raises:
        ValueError: If x is not real, or F does not lead back to its shape.
    """
    check_points(x)
    with with_graph():
        fx, pull = linearized(F, x, tensors)
        one = torch.eye(per_sample(fx).shape[1], dtype=x.dtype, device=x.device)
        rows = [per_sample(pull(unit.expand(len(x), -1).reshape(x.shape))) for unit in one]
        total: Tensor = torch.linalg.slogdet(at_least_float32(one - torch.stack(rows, 1))).logabsdet.to(x.dtype)
    return total if differentiable() else total.detach()


def inverse_log_det(
    F: Callable[..., Tensor],
    x: Tensor,
    tensors: Tensor | Sequence[Tensor] = (),
    *,
    terms: int = 10,
    roulette: float = 0.5,
    probes: int | Tensor = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate log|det(dx/dz)| of x = (1 - F)^-1 z per sample, at its value x: minus `residual_log_det`.

    With the density of z that of x is log p(z) minus this.

    Args:
        F: A contraction that treats samples apart.
        x: Solutions of x = z + F(x), (B, ...).
        tensors: What F depends on besides x. One alone needs no tuple.
        terms: Terms that are always taken.
        roulette: Probability that one more is taken.
        probes: Random vectors, or these themselves, (P, B, ...).
        generator: Where signs and coins are drawn from.

    Returns:
        Estimates (B,).

    Raises:
        ValueError: If terms or probes are below 1, or roulette is not from 0, below 1.
    """
    return -residual_log_det(F, x, tensors, terms=terms, roulette=roulette, probes=probes, generator=generator)


def check_points(x: Tensor) -> None:
    """Refuse what is no points (B, ...).

    Raises:
        ValueError: If x is not real or has no samples.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"x is {type(x).__name__}; give one tensor of points (B, ...)")
    if not x.is_floating_point() or x.dim() == 0:
        what = x.dtype if x.dim() else "no tensor with an axis of samples"
        raise ValueError(f"x is {what}; give real points (B, ...), such as x.float()")


@contextmanager
def with_graph() -> Iterator[None]:
    """Record a graph, whatever mode the caller is in."""
    inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    with torch.inference_mode(False) if inference else nullcontext(), torch.enable_grad():
        yield


def ordinary(x: Tensor) -> Tensor:
    """Return x, or a copy that a graph may hold where inference mode has made it."""
    return x.clone() if not torch.compiler.is_compiling() and x.is_inference() else x


def linearized(
    F: Callable[..., Tensor], x: Tensor, tensors: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return F(x), and the function from g (B, ...) to g^T dF/dx, which can be differentiated.

    Raises:
        ValueError: If F does not lead from x to a tensor of its shape, or what it depends on is no tensor.
    """
    x, given = ordinary(x), tuple(ordinary(t) for t in as_tuple(tensors))
    if transformed() or duals_in_use():
        both: Any = torch.func.vjp(lambda x: F(x, *given), x)
        return alike(both[0], x), lambda g: both[1](g)[0]
    at = x if x.requires_grad else x.detach().requires_grad_()
    fx = alike(F(at, *given), x)
    fx = fx if fx.requires_grad else fx + 0 * at  # constant
    return fx, lambda g: torch.autograd.grad(fx, at, g, create_graph=True, materialize_grads=True)[0]


def alike(fx: object, x: Tensor) -> Tensor:
    """Return F(x), if it is a tensor of the shape of x.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(fx, Tensor) or fx.shape != x.shape:
        what = tuple(fx.shape) if isinstance(fx, Tensor) else type(fx).__name__
        raise ValueError(f"F leads from {tuple(x.shape)} to {what}; let it give back what x is")
    return fx


def rademacher(x: Tensor, probes: int | Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw random signs (P, B, ...) for points x (B, ...), or return those that are given.

    Raises:
        ValueError: If there is none, those given do not fit x, or x is not real or has no samples.
    """
    check_points(x)
    if isinstance(probes, Tensor):
        if probes.shape[1:] != x.shape or len(probes) < 1:
            raise ValueError(f"probes are {tuple(probes.shape)} and x {tuple(x.shape)}; give 1 or more of its shape")
        return probes
    check_whole(probes=probes)
    if probes < 1:
        raise ValueError(f"probes is {probes}; give 1 or more random vectors")
    device = x.device if generator is None else "cpu"  # a copy to the device of x would make the host wait
    return torch.randint(0, 2, (probes, *x.shape), generator=generator, device=device).to(x) * 2 - 1
