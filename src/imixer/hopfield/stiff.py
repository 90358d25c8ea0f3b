"""Integrating stiff flows with scipy: implicit methods, whose steps the fastest time constant does not limit."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from scipy import sparse
from scipy.integrate import BDF, Radau
from scipy.optimize import brentq
from torch import Tensor

Stiff = Literal["bdf", "radau"]

_SOLVERS = {"bdf": BDF, "radau": Radau}


@torch.no_grad()
def integrate_stiff(
    velocity: Callable[[Tensor], Tensor],
    x0: Tensor,
    times: Sequence[float],
    *,
    method: Stiff,
    rtol: float,
    atol: float,
    on_step: Callable[[float, Tensor], None],
    stop: Callable[[float, Tensor], float] | None = None,
) -> tuple[list[float], Tensor]:
    """Integrate dx/dt = velocity(x) from time 0 by an implicit method with the exact Jacobian.

    Samples do not act on each other, so that the Jacobian has a block for each.

    Args:
        velocity: From states (B, N) to their velocities.
        x0: State at time 0, (B, N).
        times: When to keep the state, increasing, 0 or more; the last is the end.
        method: `bdf`, of variable order, or `radau`, of order 5 and for high accuracy.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        on_step: Told of time and state after every step.
        stop: A number that is positive at time 0; the integration ends when it is 0. Default: at the last time.

    Returns:
        The times that were reached, with that of the stop as the last, and the states (T, B, N) at them.

    Raises:
        FloatingPointError: If a step becomes too small.

    Source: Shampine & Reichelt 1997 (BDF), Hairer & Wanner 1996 (Radau IIA), as scipy has them.
    """

    def tensor(y: object) -> Tensor:
        return torch.as_tensor(y).to(x0).view(x0.shape)

    def f(t: float, y: object) -> object:
        return velocity(tensor(y)).double().flatten().cpu().numpy()

    def jacobian(t: float, y: object) -> object:
        rows = torch.func.jacrev(lambda x: velocity(x).sum(0))(tensor(y))  # (N, B, N)
        blocks = rows.movedim(1, 0).double().cpu().numpy()
        return blocks[0] if len(blocks) == 1 else sparse.block_diag(list(blocks), format="csc")

    start = x0.double().flatten().cpu().numpy()
    solver = _SOLVERS[method](f, 0.0, start, times[-1], rtol=rtol, atol=atol, jac=jacobian)
    kept: list[tuple[float, Tensor]] = []
    due = list(times)
    while due and due[0] <= 0:
        kept.append((due.pop(0), x0))
    while solver.status == "running":
        failure = solver.step()
        if solver.status == "failed":
            raise FloatingPointError(failure)
        between, end, stopped = solver.dense_output(), float(solver.t), False
        on_step(end, tensor(solver.y))
        if stop is not None and stop(end, tensor(solver.y)) <= 0:
            ahead = partial(_along, stop, between, tensor)
            end = float(brentq(ahead, solver.t_old, solver.t, xtol=1e-15, rtol=1e-12))
            stopped = True
        while due and due[0] <= end:
            kept.append((due[0], tensor(between(due.pop(0)))))
        if stopped:
            if not kept or kept[-1][0] < end:
                kept.append((end, tensor(between(end))))
            break
    return [t for t, _ in kept], torch.stack([x for _, x in kept])


def _along(
    stop: Callable[[float, Tensor], float],
    between: Callable[[float], object],
    tensor: Callable[[object], Tensor],
    t: float,
) -> float:
    """Return the number that ends an integration, at a time within its last step."""
    return stop(t, tensor(between(t)))
