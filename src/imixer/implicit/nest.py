"""The inverses inside a contraction, all solved as one system, and the steepness of each level.

A nest of contractions F^2, ..., F^(L-1) stands for neurons x^2, ..., x^L: each level leads up from its x by W1 and back
down to it by W2. R: points, each a vector; D: width of x^2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from imixer.errors import check_whole
from imixer.implicit.contraction import Contraction, over_features
from imixer.implicit.folding import fold
from imixer.implicit.solution import Solution, choose, finite_samples
from imixer.implicit.solvers import Anderson, Map, Picard, Solver

CONVERGED = Picard(rtol=1e-13, atol=0.0, max_steps=1000)
# Where plain steps approach, but too slowly: near a slope of 1.
_HURRIED = Anderson(rtol=1e-13, atol=0.0, max_steps=500)
_LINEAR = Picard(rtol=1e-6, atol=1e-30, max_steps=500)  # below the tolerance of power iteration


@dataclass(frozen=True)
class FixedPoint:
    """Neurons of all levels at rest.

    Attributes:
        states: x^2, ..., x^(L-1), each (R, width): the point at which F^2, F^3, ... are applied.
        converged: Whether the tolerance is met, and all is finite, (R,).
        approaching: Whether the residual was still falling at the last step, (R,). Where neither holds, iterating leads
            nowhere.
        n_evaluations: Sweeps over all levels.
    """

    states: tuple[Tensor, ...]
    converged: Tensor
    approaching: Tensor
    n_evaluations: int


def levels(F: Contraction) -> list[Contraction]:
    """List F^2, F^3, ..., F^(L-1): F, what is inside it, and so on."""
    nest = [F]
    while nest[-1].inner is not None:
        nest.append(nest[-1].inner)
    return nest


@torch.no_grad()
def fixed_point(F: Contraction, z: Tensor, solver: Solver = CONVERGED) -> FixedPoint:
    """Solve x^2 = z + F(x^2) and all inverses inside F at once, in evaluation mode.

    x^A = up(x^(A-1)) + down(x^(A+1)), by sweeps from the top level down, is n (L - 2) evaluations where nesting one
    iteration in another takes n^(L-2). It converges wherever the bounds of `nested_bounds` are below 1, and for L = 3
    its steps are those of x <- z + F(x).

    Args:
        F: The contraction.
        z: (R, D), in the dtype to compute in.
        solver: Solver. Default, for float64: Picard to a relative residual of 1e-13 in at most 1000 sweeps. Where that
            gives up while still approaching, Anderson's mixing goes on.

    Returns:
        The fixed point.
    """
    nest = levels(_frozen(F, z))
    widths = [z.shape[1], *(level.hidden_features for level in nest[:-1])]

    ups, downs = [partial(_up, level) for level in nest], [partial(_down, level) for level in nest]

    start = [z]
    for level in nest[:-1]:
        start.append(_up(level, start[-1]))
    sweep = _sweep(z, widths, ups, downs)
    x, converged, approaching, evaluations = settle(sweep, torch.cat(start, 1), solver)
    return FixedPoint(tuple(x.split(widths, 1)), converged, approaching, evaluations)


def settle(f: Map, start: Tensor, solver: Solver = CONVERGED) -> tuple[Tensor, Tensor, Tensor, int]:
    """Solve x = f(x) from a start (R, ...), in the way of `fixed_point`.

    Returns:
        x, whether it is found and whether it was being approached, (R,), and the evaluations.
    """
    solution = solver(f, start)
    x, evaluations, converged = solution.value, solution.n_evaluations, ~solution.failed()
    approaching = _approaching(solution)
    if solver is CONVERGED and bool((approaching & ~converged).any()):
        hurried = _HURRIED(f, x)
        better = ~converged & ~hurried.failed()
        x, converged = choose(better, hurried.value, x), converged | better
        evaluations += hurried.n_evaluations
    return x, converged, approaching, evaluations


def _approaching(solution: Solution) -> Tensor:
    """Tell which residuals fell over the second half of the steps, (R,)."""
    if solution.residuals is None:
        return finite_samples(solution.value)
    last, middle = solution.residuals[-1], solution.residuals[len(solution.residuals) // 2]
    return (last < middle) & finite_samples(solution.value)


def _sweep(z: Tensor, widths: list[int], ups: Sequence[Map], downs: Sequence[Map]) -> Map:
    """Make the sweep x^A <- up(x^(A-1)) + down(x^(A+1)) from the top down, states side by side; z is below all."""

    def sweep(x: Tensor) -> Tensor:
        states = list(x.split(widths, 1))
        above = ups[-1](states[-1])
        for A in reversed(range(len(states))):
            below = z if A == 0 else ups[A - 1](states[A - 1])
            above = states[A] = below + downs[A](above)
        return torch.cat(states, 1)

    return sweep


@torch.no_grad()
def apply(F: Contraction, x: Tensor, solver: Solver = CONVERGED) -> Tensor:
    """Apply F to x (R, D), in evaluation mode and with the inverses inside it solved by `solver`."""
    F = _frozen(F, x)
    above = _up(F, x)
    if F.inner is not None:
        above = fixed_point(F.inner, above, solver).states[0]
    return _down(F, above)


def jacobian_norms(
    F: Contraction, states: tuple[Tensor, ...], *, tol: float = 1e-3, max_steps: int = 1000
) -> tuple[Tensor, Tensor]:
    """Measure the norm of dF^A/dx at x^A for every level A, inverses inside being exact: power iteration on J^T J.

    Args:
        F: The contraction, used in evaluation mode.
        states: x^2, ..., x^(L-1), each (R, width), such as those of a fixed point.
        tol: Power iteration on a point has settled when ||J^T J u - s^2 u|| <= tol s^2 for its unit vector u and its
            estimate s; s^2 is then that close to the square of a singular value.
        max_steps: Steps after which to stop. An estimate is never above the truth.

    Returns:
        Largest singular values (L - 2, R), and whether they have settled, (L - 2, R). Where a level is no contraction,
        those of the levels outside are infinite: the inverse that they hold is not what iterating finds.

    Raises:
        ValueError: If tol is not positive or max_steps below 1.
    """
    _check(tol, max_steps)
    nest = levels(_frozen(F, states[0]))
    norms = torch.full((len(nest), len(states[0])), torch.inf, dtype=states[0].dtype, device=states[0].device)
    settled = torch.ones_like(norms, dtype=torch.bool)
    defined = settled[0].clone()
    for A in reversed(range(len(nest))):
        if bool(defined.any()):
            there = tuple(state[defined] for state in states[A:])
            norms[A, defined], settled[A, defined] = _power_iteration(
                partial(_Linearised, nest[A:]), there, tol, max_steps
            )
        defined &= norms[A] < 1
    return norms, settled


def map_norms(F: Map, x: Tensor, *, tol: float = 1e-3, max_steps: int = 1000) -> tuple[Tensor, Tensor]:
    """Measure the norm of dF/dx at points x (R, ...) as `jacobian_norms` does, F being any map that treats them apart.

    Returns:
        Largest singular values (R,), and whether they have settled, (R,).

    Raises:
        ValueError: If tol is not positive or max_steps below 1.
    """
    _check(tol, max_steps)
    shape = x.shape[1:]

    def flat(rows: Tensor) -> Tensor:
        return F(rows.reshape(-1, *shape)).reshape(len(rows), -1)

    def linearised(states: tuple[Tensor, ...]) -> "_Derivative":
        return _Derivative(flat, states[0])

    # F may hold inputs per sample, so that all points stay together.
    return _power_iteration(linearised, (x.reshape(len(x), -1),), tol, max_steps, narrow=False)


def _check(tol: float, max_steps: int) -> None:
    check_whole(max_steps=max_steps)
    if not tol > 0 or max_steps < 1:
        raise ValueError(f"tol and max_steps are {tol} and {max_steps}; give a positive tolerance and 1 or more steps")


def _power_iteration(
    linearised: Callable[[tuple[Tensor, ...]], "_Linearised | _Derivative"],
    states: tuple[Tensor, ...],
    tol: float,
    max_steps: int,
    narrow: bool = True,
) -> tuple[Tensor, Tensor]:
    x = states[0]
    u = _unit(torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x))
    best = x.new_zeros(len(x))
    settled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    J, going = linearised(states), torch.arange(len(x), device=x.device)
    for _ in range(max_steps):
        w = J.apply(u)
        s = torch.linalg.vector_norm(w, dim=1)
        g = J.apply_transposed(w)
        # ||J u|| and ||J^T J u|| / ||J u|| are both at most sigma; the second is nearer.
        best[going] = torch.linalg.vector_norm(g, dim=1) / s.clamp_min(torch.finfo(s.dtype).tiny)
        settled[going] |= (torch.linalg.vector_norm(g - s[:, None] ** 2 * u, dim=1) <= tol * s**2) & J.solved
        u = _unit(g)
        ends = settled[going] | ~s.isfinite()
        if bool(ends.all()):
            break
        if narrow and ends.sum() > len(ends) // 2:  # go on with the others only
            u, going = u[~ends], going[~ends]
            J = linearised(tuple(state[going] for state in states))
    return best, settled


class _Linearised:
    """J u = down' (1 - J')^-1 up' u of the outermost level, J' being that of the levels inside; and its transpose.

    Attributes:
        solved: Whether every inverse applied so far was found, (R,).
    """

    def __init__(self, nest: list[Contraction], states: tuple[Tensor, ...]) -> None:
        above = [*states[1:], _up(nest[-1], states[-1])]
        self._ups = [_Derivative(partial(_up, F), x) for F, x in zip(nest, states, strict=True)]
        self._downs = [_Derivative(partial(_down, F), x) for F, x in zip(nest, above, strict=True)]
        self._widths = [x.shape[1] for x in states[1:]]
        self.solved = torch.ones(len(states[0]), dtype=torch.bool, device=states[0].device)

    def apply(self, u: Tensor) -> Tensor:
        return self._through([up.apply for up in self._ups], [down.apply for down in self._downs], u)

    def apply_transposed(self, u: Tensor) -> Tensor:
        # The same chain with its ways there and back exchanged.
        ups = [down.apply_transposed for down in self._downs]
        return self._through(ups, [up.apply_transposed for up in self._ups], u)

    def _through(self, ups: Sequence[Map], downs: Sequence[Map], u: Tensor) -> Tensor:
        t = ups[0](u)
        if self._widths:  # all levels inside at once, as for the fixed point
            start = torch.cat([t, *(t.new_zeros(len(t), width) for width in self._widths[1:])], 1)
            inverse = _LINEAR(_sweep(t, self._widths, ups[1:], downs[1:]), start)
            self.solved &= ~inverse.failed()
            t = inverse.value[:, : self._widths[0]]
        return downs[0](t)


class _Derivative:
    """Of f at x, applied to a vector or, transposed, to a covector."""

    solved = True  # there is no inverse in it

    def __init__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._f, self._x = f, x
        self._pull: Callable[[Tensor], tuple[Tensor, ...]] = torch.func.vjp(f, x)[1]

    def apply(self, u: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(self._f, (self._x,), (u,))[1]
        return product.detach()

    def apply_transposed(self, u: Tensor) -> Tensor:
        return self._pull(u)[0].detach()


def _up(F: Contraction, x: Tensor) -> Tensor:
    return over_features(F.bn1, F.fc1(F.act(x)))


def _down(F: Contraction, h: Tensor) -> Tensor:
    return over_features(F.bn2, F.fc2(F.act_hidden(h)))


def _frozen(F: Contraction, x: Tensor) -> Contraction:
    """Copy a contraction with plain matrices where they can be had, in the dtype and on the device of x."""
    return fold(F).to(x)


def _unit(u: Tensor) -> Tensor:
    return torch.nn.functional.normalize(u, dim=1)
