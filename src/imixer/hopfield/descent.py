"""Does the energy fall along a trajectory, does anything stop it, and was that to be expected?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from imixer.hopfield.boundedness import boundedness_violations
from imixer.hopfield.dynamics import Trajectory
from imixer.hopfield.network import HopfieldNetwork
from imixer.hopfield.pictures import plot_energy
from imixer.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bounded = Literal["known", "unknown", "runaway"]

RUNAWAY = 1e3  # states that grow by as much while the energy falls ever faster are on their way to infinity


@dataclass(frozen=True)
class Descent:
    """The energy along a trajectory, and the two conditions after paper (7): that it falls, and not forever.

    Attributes:
        verdict: `guaranteed` to fall by theory and seen to, `observed` though theory does not promise it, or
            `violated`.
        bounded: Whether the energy is bounded from below: `known` by theory, `unknown`, or unknown and seen to run away
            (`runaway`), the states having grown a thousandfold with the energy still falling at its fastest.
        energy: Energy (T, ...).
        rate: dE/dt (T, ...), from the quadratic form of `HopfieldNetwork.energy_rate` and not from differences.
        violated_conditions: What keeps theory from promising that the energy falls; empty if it does.
        boundedness_violations: What keeps theory from promising a lower bound; empty if it does.
        rises: Where the energy rose by more than the tolerance: frame, sample (of the flattened batch), by how much.
        tolerance: Rise that the integration's own error explains. Each step of each sample has its own, by the energies
            that it joins, and this is the largest.
        times: When, (T,).
    """

    verdict: Verdict
    bounded: Bounded
    energy: Tensor
    rate: Tensor
    violated_conditions: list[str]
    boundedness_violations: list[str]
    rises: list[tuple[int, int, float]]
    tolerance: float
    times: Tensor

    def plot(self) -> Figure:
        """Draw the energy in time, a line per sample, under the verdict; rises are marked."""
        return plot_energy(self.times, self.energy, self.rises, str(self))

    def __str__(self) -> str:
        return f"{self._fall()}; {self._floor()}"

    def _fall(self) -> str:
        if self.verdict == "guaranteed":
            return "descent guaranteed: all Lagrangians convex, all couplings symmetric"
        if self.verdict == "observed":
            return f"descent observed, not guaranteed: {'; '.join(self.violated_conditions)}"
        frame, sample, rise = self.rises[0]
        why = "; ".join(self.violated_conditions) or "the integration is too coarse"
        return f"descent violated at frame {frame}, sample {sample}, by {rise:.3g}: {why}"

    def _floor(self) -> str:
        if self.bounded == "known":
            return "bounded from below"
        why = "; ".join(self.boundedness_violations)
        if self.bounded == "unknown":
            return f"not known to be bounded from below: {why}"
        return f"but it runs away, to {float(self.energy[-1].min()):.3g} and falling ever faster: {why}"


@torch.no_grad()
def descent(network: HopfieldNetwork, trajectory: Trajectory) -> Descent:
    """Follow the energy along a trajectory, and say whether it must fall and whether it must stop.

    Args:
        network: The network that moved.
        trajectory: Its way, from `integrate`.

    Returns:
        The energy and its rate, what theory promises and what was seen.

    Raises:
        ValueError: If a coupling is not symmetric, so that there is no energy; with its name.
        FloatingPointError: If the energy or its rate is not finite: states have outgrown their type.

    Source: paper (6)-(7) and the two conditions stated there. How boundedness is decided is ours.
    """
    network.require_energy()
    components = torch.stack(list(network.energies(trajectory.states).values()))
    energy = components.sum(0)
    rate = network.energy_rate(trajectory.states, trajectory.held)
    sizes = components.abs().sum(0)  # of the parts, which are far larger than their sum
    _require_finite(sizes + rate.abs(), trajectory.times)
    sizes, steps = sizes.reshape(len(sizes), -1), energy.reshape(len(energy), -1).diff(dim=0)
    # Rounding of the parts, and what the solver allows itself.
    scales = torch.maximum(sizes[1:], sizes[:-1])
    tolerances = 10 * (torch.finfo(energy.dtype).eps * scales + trajectory.rtol * scales + trajectory.atol)
    rises = [(int(i) + 1, int(j), float(steps[i, j])) for i, j in (steps > tolerances).nonzero()]
    tolerance = float(tolerances.max()) if len(tolerances) else 0.0
    violated_conditions = network.violated_conditions(trajectory.held)
    verdict: Verdict = "violated" if rises else "observed" if violated_conditions else "guaranteed"
    unbounded = boundedness_violations(network)
    runs = bool(unbounded) and bool(_runs_away(network, trajectory, energy, rate).any())
    bounded: Bounded = "runaway" if runs else "unknown" if unbounded else "known"
    return Descent(verdict, bounded, energy, rate, violated_conditions, unbounded, rises, tolerance, trajectory.times)


def _require_finite(sizes: Tensor, times: Tensor) -> None:
    """Refuse sizes (T, ...) of energies of which neither a rise nor a runaway can be told."""
    finite = sizes.isfinite().reshape(len(times), -1).all(1)
    if not finite.all():
        first = float(times[int((~finite).int().argmax())])
        wider = "in float64 or " if sizes.dtype != torch.float64 else ""
        raise FloatingPointError(
            f"the energy or its rate is not finite from time {first:.4g} on; integrate {wider}to an earlier t_end"
        )


def _runs_away(network: HopfieldNetwork, trajectory: Trajectory, energy: Tensor, rate: Tensor) -> Tensor:
    """Tell which samples (...) run away."""
    sizes = [x.abs().flatten(-len(network.layer(name).shape)).amax(-1) for name, x in trajectory.states.items()]
    size = torch.stack(sizes).amax(0)
    fastest = (rate[-1] < 0) & (rate[-1] <= rate.amin(0))
    return (size[-1] > RUNAWAY * (1 + size[0])) & fastest & (energy[-1] < energy[0])
