"""Is F a contraction? Whatever the input, by its matrices; and at given inputs, by its Jacobian."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imixer.errors import in_short
from imixer.implicit.contraction import Contraction
from imixer.implicit.lipschitz import lipschitz_bound, stated_bound
from imixer.implicit.nest import fixed_point, jacobian_norms, levels, map_norms, settle
from imixer.implicit.states import as_tuple
from imixer.implicit.worst_case import WorstCase, worst_case
from imixer.verdict import Verdict

ROUNDING = 1e-4  # of a bound that a module computes in its own precision

__all__ = ["Certificate", "OnData", "WorstCase", "certify", "iterations_needed", "on_data", "worst_case"]


@dataclass(frozen=True)
class OnData:
    """What F^2, ..., F^(L-1) do at the fixed points of given inputs z (..., D).

    Attributes:
        x: The fixed point x^2 = z + F(x^2) with all inverses inside exact, (..., D).
        converged: Whether it was found, (...).
        approaching: Whether the search still came nearer at its last step, (...).
        norms: Largest singular value of each level's Jacobian there, (L - 2, ...).
        settled: Whether the power iteration met its tolerance, (L - 2, ...). If not, the norm is a lower bound.
    """

    x: Tensor
    converged: Tensor
    approaching: Tensor
    norms: Tensor
    settled: Tensor

    @property
    def holds(self) -> bool:
        """Whether all fixed points were found, and all norms have settled below 1."""
        return bool(self.converged.all() and self.settled.all() and (self.norms < 1).all())

    @property
    def refutes(self) -> bool:
        """Whether some norm is not below 1, or iterating leads nowhere at some input.

        A search that ran out of steps while it still came nearer refutes nothing.
        """
        return not bool((self.converged | self.approaching).all() and (self.norms < 1).all())


@dataclass(frozen=True)
class Certificate:
    """What is known of a contraction: `worst` speaks about any input, `data` about the given ones."""

    worst: WorstCase
    data: OnData

    @property
    def verdict(self) -> Verdict:
        """`guaranteed` by the bound, `observed` at all given inputs, `violated` at some, or `undecided`.

        A proof outranks whatever a search found or did not find. Undecided are inputs whose fixed points were not
        found, without a sign that there are none, and those whose norms have not settled, which are lower bounds.
        """
        if self.worst.proves:
            return "guaranteed"
        if self.data.refutes:
            return "violated"
        return "observed" if self.data.holds else "undecided"


def certify(
    F: nn.Module,
    lipschitz: Sequence[float] | None = None,
    z: Tensor | None = None,
    *,
    tensors: Tensor | Sequence[Tensor] = (),
    tol: float = 1e-3,
    max_steps: int = 1000,
) -> Certificate:
    """Examine one contraction by its matrices, or by the bound that it states, and at given inputs.

    Choose it for an F of your own: `certify(F, z=z)`. What a module that is no `Contraction` states, in a method
    `lipschitz_bound()`, is taken at its word unless a Jacobian contradicts it; see `imixer.implicit.lipschitz_bound`
    for what is known besides.

    Args:
        F: A `Contraction`, or any module from x to its like, in evaluation mode. It is left as it is.
        lipschitz: Lipschitz constants l_2, ..., l_L of a `Contraction`'s activations; infinity where unknown. Default:
            those of torch's activations, and what others state.
        z: Inputs: (..., D) of a `Contraction`; samples along the first axis of other modules.
        tensors: What another module takes besides x.
        tol: Tolerance of the power iteration, see `jacobian_norms`.
        max_steps: Its largest number of steps.

    Returns:
        The certificate, whose `verdict` is the summary. Of another module than a `Contraction` it has one level.

    Raises:
        ValueError: If z is missing or not finite or F does not take it, a tensor has NaN, lipschitz has not one entry
            per activation or is given for another module, a matrix or a slope is not finite, F does not lead from z to
            its like, a Jacobian is steeper than the bound that F states, tol is not positive or max_steps below 1.
    """
    if not isinstance(F, nn.Module):
        raise ValueError(f"F is {type(F).__name__}; give a module that states its bound by a method lipschitz_bound()")
    if not isinstance(z, Tensor) or isinstance(lipschitz, Tensor):
        what = "missing" if z is None else type(z).__name__
        raise ValueError(f"z is {what}; give inputs as certify(F, z=z), or certify(F, lipschitz, z)")
    if not z.is_floating_point() or z.dim() < 1 or z.numel() == 0:
        raise ValueError(
            f"z is {z.dtype} of shape {tuple(z.shape)}; give one or more real inputs (B, ...), such as z.float()"
        )
    given = as_tuple(tensors)
    if not z.isfinite().all():
        raise ValueError(
            f"z has {int((~z.isfinite()).sum())} of {z.numel()} numbers that are not finite; give inputs that are"
        )
    for i, x in enumerate(given):
        if x.isnan().any():  # not infinity, which masks of attention are made of
            raise ValueError(
                f"tensors[{i}] has {int(x.isnan().sum())} of {x.numel()} numbers that are NaN; give others"
            )
    if isinstance(F, Contraction):
        if lipschitz is None:
            acts = [F.act, *(level.act_hidden for level in levels(F))]
            lipschitz = [lipschitz_bound(act) for act in acts]
        return Certificate(worst_case(F, lipschitz), on_data(F, z, tol=tol, max_steps=max_steps))
    if lipschitz is not None:
        raise ValueError(
            f"lipschitz is given, and {type(F).__name__} is no Contraction; let its lipschitz_bound() state a bound"
        )
    bound, rounded, unstated = stated_bound(F, z)
    worst = WorstCase((), None, None, (), (bound,), (rounded,), unstated)
    data = _module_on_data(F, z, given, tol, max_steps)
    steepest = float(data.norms.nan_to_num(nan=0.0).max())
    if steepest > bound * (1 + ROUNDING):
        raise ValueError(
            f"{type(F).__name__} is bounded by {bound:.4g} by what it or its parts state, and the norm of its Jacobian "
            f"is {steepest:.4g} at one of the solutions; let lipschitz_bound() return a bound that holds"
        )
    return Certificate(worst, data)


def _module_on_data(F: nn.Module, z: Tensor, tensors: tuple[Tensor, ...], tol: float, max_steps: int) -> OnData:
    """Solve x = z + F(x, *tensors) and measure the Jacobians there, in float64."""
    exact, points = copy.deepcopy(F).double().eval(), z.detach().double()
    others = [t.detach().double() if t.is_floating_point() else t for t in tensors]

    def f(x: Tensor) -> Tensor:
        try:
            fx: Tensor = exact(x, *others)
        except (RuntimeError, TypeError, IndexError) as error:
            said = in_short(error)
            raise ValueError(f"{type(F).__name__} fails on z of shape {tuple(x.shape)}: {said}") from error
        if not isinstance(fx, Tensor) or fx.shape != x.shape:
            what = tuple(fx.shape) if isinstance(fx, Tensor) else type(fx).__name__
            raise ValueError(f"F leads from {tuple(x.shape)} to {what}; let it give back what z is")
        return fx

    with torch.no_grad():
        x, converged, approaching, _ = settle(lambda x: points + f(x), points)
    norms, settled = map_norms(f, x, tol=tol, max_steps=max_steps)
    return OnData(x, converged, approaching, norms[None], settled[None])


def on_data(F: Contraction, z: Tensor, *, tol: float = 1e-3, max_steps: int = 1000) -> OnData:
    """Solve x = z + F(x) and measure the Jacobians there, in float64.

    F acts on the last axis; the Jacobian of a whole image, all its channels at once, is block diagonal and its norm the
    largest of theirs.

    Args:
        F: The contraction, in evaluation mode. It is left as it is.
        z: (..., D).
        tol: Tolerance of the power iteration, see `jacobian_norms`.
        max_steps: Its largest number of steps.

    Raises:
        ValueError: If z is not (..., D), tol is not positive or max_steps below 1.
    """
    if z.dim() < 1 or z.shape[-1] != F.features:
        raise ValueError(f"z has shape {tuple(z.shape)}; this contraction takes (..., {F.features})")
    points = z.detach().double().reshape(-1, F.features)
    solved = fixed_point(F, points)
    norms, settled = jacobian_norms(F, solved.states, tol=tol, max_steps=max_steps)
    axes = z.shape[:-1]
    return OnData(
        x=solved.states[0].view(z.shape),
        converged=solved.converged.view(axes),
        approaching=solved.approaching.view(axes),
        norms=norms.view(len(norms), *axes),
        settled=settled.view(len(norms), *axes),
    )


def iterations_needed(rate: float, error: float) -> float:
    """Count the iterations n after which rate^n <= error.

    x <- z + F(x) shrinks ||x - x*||, x* being the fixed point, by the Lipschitz constant of F per iteration, or more.

    Args:
        rate: Lipschitz constant of F, or a bound of it; or, for an estimate instead of a promise, its Jacobian's norm.
        error: ||x_n - x*|| wanted, relative to ||x_0 - x*|| = ||z - x*||.

    Returns:
        n; infinity if rate is 1 or more.

    Raises:
        ValueError: If rate is negative, or error not between 0 and 1.
    """
    if not rate >= 0 or not 0 < error < 1:
        raise ValueError(
            f"rate and error are {rate} and {error}; give a rate of 0 or more and an error between 0 and 1"
        )
    if rate >= 1:
        return math.inf
    if rate == 0:
        return 1
    # Without the slack, rounding would ask for one iteration more where rate^n is error exactly.
    return math.ceil(math.log(error) / math.log(rate) * (1 - 1e-12))
