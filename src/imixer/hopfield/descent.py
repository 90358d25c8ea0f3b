"""Does the energy fall along a trajectory, and was that to be expected?"""

from dataclasses import dataclass
from typing import List, Literal, Tuple

import torch
from torch import Tensor

from imixer.hopfield.dynamics import Trajectory
from imixer.hopfield.network import HopfieldNetwork

Verdict = Literal["guaranteed", "observed", "violated"]


@dataclass(frozen=True)
class Descent:
    """How the energy went.

    Attributes:
        verdict: `guaranteed` by theory and seen, `observed` though theory does not promise it, or `violated`.
        energy: Energy (T, ...).
        rate: dE/dt (T, ...), from the quadratic form (7) and not from differences.
        obstacles: What stands against a guarantee; empty if there is one.
        rises: Where the energy rose by more than the tolerance: frame, sample (of the flattened batch), by how much.
        tolerance: Rise that the integration's own error explains.
    """

    verdict: Verdict
    energy: Tensor
    rate: Tensor
    obstacles: List[str]
    rises: List[Tuple[int, int, float]]
    tolerance: float

    def __str__(self) -> str:
        if self.verdict == "guaranteed":
            return "descent guaranteed: all Lagrangians convex, all couplings symmetric"
        if self.verdict == "observed":
            return f"descent observed, not guaranteed: {'; '.join(self.obstacles)}"
        frame, sample, rise = self.rises[0]
        why = "; ".join(self.obstacles) or "the integration is too coarse"
        return f"descent violated at frame {frame}, sample {sample}, by {rise:.3g}: {why}"


@torch.no_grad()
def descent(network: HopfieldNetwork, trajectory: Trajectory) -> Descent:
    """Follow the energy along a trajectory.

    Raises:
        ValueError: If a coupling is not symmetric, so that there is no energy; with its name.

    Source: paper (6)-(7).
    """
    network.require_energy()
    components = torch.stack(list(network.energies(trajectory.states).values()))
    energy = components.sum(0)
    rate = network.energy_rate(trajectory.states, trajectory.held)
    # Rounding of the parts, which are far larger than their sum, and what the solver allows itself.
    scale = float(components.abs().sum(0).max())
    tolerance = 10 * (torch.finfo(energy.dtype).eps * scale + trajectory.rtol * scale + trajectory.atol)
    steps = energy.diff(dim=0).flatten(1)
    rises = [(int(i) + 1, int(j), float(steps[i, j])) for i, j in (steps > tolerance).nonzero()]
    obstacles = network.obstacles(trajectory.held)
    verdict: Verdict = "violated" if rises else "observed" if obstacles else "guaranteed"
    return Descent(verdict, energy, rate, obstacles, rises, tolerance)
