"""The figures of idea.md: `python docs/figures.py` draws them anew, computed by the library, in a few seconds.

Transparent, in grays and colours that stand out from white and from black, and that colour-blind eyes tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from sklearn.datasets import load_digits
from torch import Tensor

from imixer.analysis.inverse_study import untrained
from imixer.hopfield import AdiabaticUpdate, AssociativeMemory, HopfieldNetwork, chain, integrate
from imixer.implicit import Contraction, FixedIterations, Solution, solve

IMAGES = Path(__file__).parent / "images"
INK, BLUE, ORANGE, GREEN = "#808088", "#2b87c8", "#d55e00", "#009e73"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "imixer",  # the same figure is the same file
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{name}": INK for name in ("edgecolor", "labelcolor", "titlecolor")},
}


@contextmanager
def figure(name: str, width: float, height: float) -> Iterator[Figure]:
    """A figure of that size in inches, written to images/idea_NAME.svg."""
    with rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        drawn.savefig(IMAGES / f"idea_{name}.svg", transparent=True, metadata={"Date": None})


def draw_memory() -> None:
    """A noisy digit flows to the stored one while the energy falls."""
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images[:20]).float() / 8 - 1
    memory = AssociativeMemory(digits, "modern", similarity="distance")
    with torch.no_grad():
        noisy = digits[3:4] + 0.8 * torch.randn(1, 8, 8)
        path = integrate(memory.network, memory.state(noisy), t_end=4.0)
        energies = memory.network.energy(path.states)[:, 0]
        frames = memory.read(path.states)[:, 0]
    shown = range(0, 101, 20)
    with figure("memory", 6, 3.2) as drawn:
        grid = drawn.subplot_mosaic([[str(i) for i in shown], ["energy"] * len(shown)], height_ratios=[1, 1.6])
        for i in shown:
            grid[str(i)].imshow(frames[i].numpy(), cmap="gray", vmin=-1, vmax=1)
            grid[str(i)].set_axis_off()
        axes = grid["energy"]
        axes.plot(path.times.numpy(), energies.numpy(), color=BLUE, marker="o", markevery=list(shown))
        axes.set(xlabel="time", ylabel="energy")


def draw_limit() -> None:
    """The path of visible neurons when hidden ones are slow, faster, and infinitely fast."""
    start = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(3))
    with figure("limit", 6, 3) as drawn, torch.no_grad():
        axes = drawn.subplots()
        for tau, ls in ((1.0, ":"), (0.3, "-."), (0.1, "--")):
            network = two_layers(tau)
            path = integrate(network, network.initial_state(x1=start), t_end=3.0)
            one = path.states["x1"][:, 0, 1, 0].numpy()
            axes.plot(path.times.numpy(), one, color=BLUE, ls=ls, label=f"hidden neurons, τ = {tau}")
        x, dt, limit = start, 0.01, AdiabaticUpdate(two_layers(1.0))
        reduced = [x]
        for _ in range(300):
            x = x + dt * limit.velocity(x)
            reduced.append(x)
        times = (dt * torch.arange(301)).numpy()
        axes.plot(times, torch.cat(reduced)[:, 1, 0].numpy(), color=ORANGE, label="hidden neurons at rest at once")
        axes.set(xlabel="time", ylabel="one visible neuron")
        axes.legend()


def two_layers(tau: float) -> HopfieldNetwork:
    """16 tokens of 8 channels, and 32 hidden neurons per channel with the time constant tau."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return chain([(16, 8), (32, 8)], ["layer_norm", "relu"], axis=-2, tau=[1.0, tau], decay=[0.0, 1.0])


def draw_blocks() -> None:
    """The token mixing of a mixer and that of an iMixer, one above the other."""
    with figure("blocks", 6, 2.1) as drawn:
        axes = drawn.subplots()
        axes.set(xlim=(-0.2, 12), ylim=(0.6, 4.8), aspect="equal")
        axes.set_axis_off()
        mixer, imixer = 4.2, 1.2
        for y, name in ((mixer, "MLP-Mixer"), (imixer, "iMixer")):
            axes.text(0, y, name, weight="bold", va="center")
            axes.text(2.55, y, "v", ha="center", va="center")
            arrow(axes, (2.8, y), (3.5, y))
            box(axes, 4.2, y, 1.4, "G", BLUE)
            box(axes, 10.3, y, 1.4, "H", BLUE)
            arrow(axes, (11, y), (11.9, y))
        arrow(axes, (4.9, mixer), (9.6, mixer))
        arrow(axes, (4.9, imixer), (5.5, imixer))
        box(axes, 7.25, imixer, 3.5, "x ← G(v) + F(x)", ORANGE)
        arrow(axes, (9, imixer), (9.6, imixer))
        axes.plot([8.5, 8.5, 6], [1.7, 2.3, 2.3], color=ORANGE)
        arrow(axes, (6, 2.32), (6, 1.7), ORANGE)
        axes.text(7.25, 2.75, "n times", ha="center", va="center", color=ORANGE)


def box(axes: Axes, x: float, y: float, width: float, label: str, color: str) -> None:
    """A labelled box centred at (x, y)."""
    style = dict(boxstyle="round,pad=0,rounding_size=0.2", fc="none", ec=color, lw=1.5)
    axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.5), width, 1, **style))
    axes.text(x, y, label, ha="center", va="center", color=color)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    """A straight arrow."""
    style = dict(arrowstyle="-|>", color=color, lw=1.5, shrinkA=0, shrinkB=0)
    axes.annotate("", end, start, arrowprops=style)


def draw_inverse() -> None:
    """A gentle F is inverted by iteration, a steep one is not; and how fast, by its ceiling."""
    with figure("inverse", 6, 5.2) as drawn, torch.no_grad():
        grid = drawn.subplot_mosaic([["gentle", "steep"], ["error", "error"]])
        draw_steps(grid["gentle"], 0.68, "F of slope below 1")
        draw_steps(grid["steep"], 1.4, "F of slope above 1")
        axes = grid["error"]
        z = torch.randn(16, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for coeff, color, ls in ((0.7, GREEN, "--"), (0.9, BLUE, "-"), (1.2, ORANGE, ":")):
            found = iterate(untrained(coeff, depth=3, seed=0), z)
            axes.semilogy(found.residuals.mean(1).numpy(), color=color, ls=ls, label=f"spectral norms {coeff}")
        axes.set(xlabel="iteration", ylabel="change of x, relative")
        axes.legend()


def iterate(F: Contraction, z: Tensor) -> Solution:
    """40 steps of x <- z + F(x)."""
    solver = FixedIterations(40, measure=True)
    return solve(lambda x, *weights: F(x, list(weights)), z, F.weights(), solver=solver)


def draw_steps(axes: Axes, gain: float, title: str) -> None:
    """x <- z + F(x) for a single neuron, as stairs between z + F(x) and the diagonal."""
    F = Contraction(1, 1, norm="none")
    weights = [torch.full((1, 1), gain**0.5), torch.full((1, 1), gain**0.5), torch.zeros(1), torch.zeros(1)]
    z, end = 0.6, 3.0

    def right(x: Tensor) -> Tensor:
        return z + F(x[:, None], weights)[:, 0]

    line = torch.linspace(0, end, 50)
    axes.plot(line.numpy(), line.numpy(), color=INK, lw=1)
    axes.plot(line.numpy(), right(line).numpy(), color=BLUE)
    x, stairs = torch.tensor([z]), []
    for _ in range(12):
        up = right(x)
        stairs += [(float(x), float(x)), (float(x), float(up))]
        x = up
    axes.plot(*zip(*stairs, strict=True), color=ORANGE, lw=1.2)
    axes.set(title=title, xlabel="x", ylabel="z + F(x)", xlim=(0, end), ylim=(0, end), aspect="equal")


def main() -> None:
    """All of them."""
    draw_memory()
    draw_limit()
    draw_blocks()
    draw_inverse()


if __name__ == "__main__":
    main()
