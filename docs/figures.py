"""The figures of idea.md, theory.md and results/laptop.md: `python docs/figures.py` draws them, in seconds.

Those of the first two are drawn from the library's objects, the last from the tables beside its page.

Transparent, in grays and colours that stand out from white and from black, and that colour-blind eyes tell apart.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev

import timm
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from sklearn.datasets import load_digits
from torch import Tensor

from imixer.analysis.inverse_study import untrained
from imixer.hopfield import (
    AdiabaticUpdate,
    AssociativeMemory,
    HopfieldNetwork,
    chain,
    integrate,
    three_layer,
    two_layer,
)
from imixer.implicit import Contraction, FixedIterations, Solution, solve
from imixer.models import IMLP

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
    """A figure of that size in inches, written to images/NAME.svg."""
    with rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        drawn.savefig(IMAGES / f"{name}.svg", transparent=True, metadata={"Date": None})


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
    with figure("idea_memory", 6, 3.2) as drawn:
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
    with figure("idea_limit", 6, 3) as drawn, torch.no_grad():
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
    with figure("idea_blocks", 6, 2.1) as drawn:
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


def box(axes: Axes, x: float, y: float, width: float, label: str, color: str, height: float = 1.0) -> None:
    """A labelled box centred at (x, y)."""
    style = dict(boxstyle="round,pad=0,rounding_size=0.2", fc="none", ec=color, lw=1.5)
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    axes.text(x, y, label, ha="center", va="center", color=color)


def plus(axes: Axes, x: float, y: float) -> None:
    """A sum, at (x, y), of radius 0.25."""
    axes.add_patch(Circle((x, y), 0.25, fc="none", ec=INK, lw=1.5))
    axes.text(x, y, "+", ha="center", va="center_baseline", fontsize=11)


def sheet(drawn: Figure, width: float, height: float) -> Axes:
    """Axes that are not seen, of equal units, from (0, 0)."""
    axes = drawn.subplots()
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return axes


def skip(axes: Axes, start: float, end: float, y: float, top: float) -> None:
    """A skip connection from (start, y) over `top` into the sum at (end, y)."""
    axes.plot([start, start, end], [y, top, top], color=INK, lw=1.5, solid_joinstyle="round")
    arrow(axes, (end, top), (end, y + 0.25))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    """A straight arrow."""
    style = dict(arrowstyle="-|>", color=color, lw=1.5, shrinkA=0, shrinkB=0)
    axes.annotate("", end, start, arrowprops=style)


def draw_metaformer() -> None:
    """Figure 1a of the paper: norm, mixing and skip connection, for tokens and for channels, block after block."""
    model = timm.create_model("imixer_s16_224", device="meta")
    block = model.blocks[0]
    halves = (("token mixing", block.norm1, block.mlp_tokens), ("channel mixing", block.norm2, block.mlp_channels))
    with figure("paper_fig1a", 8.4, 1.9) as drawn:
        axes = sheet(drawn, 19.6, 4.4)
        y, x = 1.4, 1.2
        axes.text(0.6, y, "v", ha="center", va="center")
        for name, norm, mixing in halves:
            arrow(axes, (x - 0.3, y), (x + 0.9, y))
            skip(axes, x + 0.2, x + 8.05, y, 2.7)
            box(axes, x + 2.15, y, 2.5, type(norm).__name__, INK)
            arrow(axes, (x + 3.4, y), (x + 4.1, y))
            box(axes, x + 5.6, y, 3.0, f"{name}\n({type(mixing).__name__})", BLUE, 1.4)
            arrow(axes, (x + 7.1, y), (x + 7.8, y))
            plus(axes, x + 8.05, y)
            x += 8.6
        arrow(axes, (x - 0.3, y), (x + 0.9, y))
        style = dict(boxstyle="round,pad=0,rounding_size=0.3", fc="none", ec=INK, lw=1, ls=":")
        axes.add_patch(FancyBboxPatch((1.1, 0.3), x - 1.1, 2.9, **style))
        axes.text(x, 3.62, f"{len(model.blocks)} blocks", ha="right", va="center")


def draw_imlp() -> None:
    """Figures 1b and 1c of the paper: the inverse inside an iMLP, and the chain that stands in for it."""
    imlp = timm.create_model("imixer_s16_224", device="meta").blocks[0].mlp_tokens
    F = imlp.contraction
    (N_x, S), N_h = imlp.fc_in.weight.shape, F.fc1.weight.shape[0]
    with figure("paper_fig1b", 7.2, 2.1) as drawn:
        axes = sheet(drawn, 16.8, 4.8)
        y = 3.5
        axes.text(0.4, y, "v", ha="center", va="center")
        arrow(axes, (0.8, y), (1.8, y))
        box(axes, 3, y, 2.4, "G", BLUE)
        axes.text(3, y - 0.85, f"{S} → {N_x}", ha="center", va="center", fontsize=9)
        arrow(axes, (4.2, y), (5.9, y))
        axes.text(5.05, y + 0.4, "z", ha="center", va="center")
        box(axes, 8.4, y, 5.0, r"$(1-F)^{-1}$", ORANGE)
        arrow(axes, (10.9, y), (12.6, y))
        axes.text(11.75, y + 0.4, "x", ha="center", va="center")
        box(axes, 13.8, y, 2.4, "H", BLUE)
        axes.text(13.8, y - 0.85, f"{N_x} → {S}", ha="center", va="center", fontsize=9)
        arrow(axes, (15, y), (16, y))
        # What is known leads from x back to z.
        back = 1.2
        box(axes, 8.4, back, 2.2, "F", ORANGE)
        axes.text(8.4, back - 0.85, f"{N_x} → {N_h} → {N_x}", ha="center", va="center", fontsize=9)
        axes.plot([11.75, 11.75], [y, back], color=ORANGE, lw=1.5, ls=":")
        arrow(axes, (11.75, back), (9.5, back), ORANGE)
        axes.plot([7.3, 5.05], [back, back], color=ORANGE, lw=1.5)
        arrow(axes, (5.05, back), (5.05, y), ORANGE)
        axes.text(6.2, back + 0.38, "z = x − F(x)", ha="center", va="center", color=ORANGE, fontsize=9)
    draw_chain(imlp)


def draw_chain(imlp: IMLP) -> None:
    """Figure 1c of the paper: one F for each of the iterations, and z added after each."""
    n = imlp.n_iter
    with figure("paper_fig1c", 7.2, 1.5) as drawn:
        axes = sheet(drawn, 6.2 + 4.2 * n + 3.2, 3.4)
        y, x = 1.0, 4.1
        axes.text(0.4, y, "v", ha="center", va="center")
        arrow(axes, (0.8, y), (1.6, y))
        box(axes, 2.4, y, 1.6, "G", BLUE)
        top = 2.6
        axes.plot([x, x, x + 4.2 * n - 0.55], [y, top, top], color=INK, lw=1.5, solid_joinstyle="round")
        axes.text(x - 0.45, y + 0.45, "$x^0$", ha="center", va="center")
        axes.plot([3.2, x], [y, y], color=INK, lw=1.5)
        for a in range(n):
            arrow(axes, (x, y), (x + 1.0, y))
            box(axes, x + 1.8, y, 1.6, "F", ORANGE)
            arrow(axes, (x + 2.6, y), (x + 3.4, y))
            plus(axes, x + 3.65, y)
            arrow(axes, (x + 3.65, top), (x + 3.65, y + 0.25))
            axes.plot([x + 3.9, x + 4.2], [y, y], color=INK, lw=1.5)
            axes.text(x + 4.3, y + 0.45, f"$x^{a + 1}$", ha="center", va="center")
            x += 4.2
        arrow(axes, (x, y), (x + 1.0, y))
        box(axes, x + 1.8, y, 1.6, "H", BLUE)
        arrow(axes, (x + 2.6, y), (x + 3.5, y))


def draw_networks() -> None:
    """Figures 2a and 2b of the paper: the networks draw themselves."""
    two_layer(8, 20).draw().save(IMAGES / "paper_fig2a.svg")
    three_layer(8, 12, 20).draw().save(IMAGES / "paper_fig2b.svg")


def draw_update_rule() -> None:
    """Figure 2c of the paper: one step of the visible neurons, (26)-(28)."""
    visible, hidden, _ = AdiabaticUpdate(three_layer(8, 12, 20)).layers
    with figure("paper_fig2c", 7.2, 1.7) as drawn:
        axes = sheet(drawn, 17.4, 4.0)
        y = 1.2
        axes.text(0.6, y, f"{visible}(t)", ha="center", va="center")
        arrow(axes, (1.2, y), (2.9, y))
        skip(axes, 1.9, 14.35, y, 2.9)
        box(axes, 3.8, y, 1.8, "G", BLUE)
        arrow(axes, (4.7, y), (6.2, y))
        axes.text(5.4, y + 0.45, "z(t)", ha="center", va="center")
        box(axes, 7.9, y, 3.4, r"$(1-F)^{-1}$", ORANGE)
        arrow(axes, (9.6, y), (11.1, y))
        axes.text(10.3, y + 0.45, f"{hidden}(t)", ha="center", va="center")
        box(axes, 12.0, y, 1.8, "H", BLUE)
        arrow(axes, (12.9, y), (14.1, y))
        plus(axes, 14.35, y)
        arrow(axes, (14.6, y), (15.8, y))
        axes.text(16.6, y, f"{visible}(t+1)", ha="center", va="center")


def draw_nest() -> None:
    """Figure 4 of the paper: an inverse inside an inverse, as many as there are layers."""
    L = AdiabaticUpdate(chain([4] * 5, ["unit_layer_norm"] + ["gelu"] * 4)).depth
    rows = L - 1
    with figure("paper_fig4", 6.6, 1.15 * rows + 0.2) as drawn:
        axes = sheet(drawn, 15.4, 2.7 * rows + 0.2)
        for A in range(1, L):
            y = 2.7 * (rows - A) + 1.0
            axes.text(1.0, y, f"$F^{A}$  =", ha="center", va="center")
            arrow(axes, (2.1, y), (3.1, y))
            box(axes, 4.1, y, 2.0, f"$G^{A}$", BLUE)
            box(axes, 12.4, y, 2.0, f"$H^{A + 1}$", BLUE)
            arrow(axes, (13.4, y), (14.6, y))
            if A == L - 1:
                arrow(axes, (5.1, y), (11.4, y))
                continue
            arrow(axes, (5.1, y), (6.1, y))
            box(axes, 8.25, y, 4.3, f"$(1-F^{A + 1})^{{-1}}$", ORANGE)
            arrow(axes, (10.4, y), (11.4, y))
            for x, below in ((6.1, 3.1), (10.4, 13.4)):
                axes.plot([x, below], [y - 0.55, y - 2.1], color=ORANGE, lw=1, ls=":")


def draw_inverse() -> None:
    """A gentle F is inverted by iteration, a steep one is not; and how fast, by its ceiling."""
    with figure("idea_inverse", 6, 5.2) as drawn, torch.no_grad():
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


def draw_cost() -> None:
    """Accuracy on CIFAR-10 against the multiply-adds of training: what others report, and the laptop recipes."""
    with figure("laptop_cost", 6.6, 3.6) as drawn:
        axes = drawn.subplots()
        for kind, mark in (("token mixing", "o"), ("attention", "s"), ("convolutions", "^")):
            peers = [row for row in table("laptop_peers") if row["kind"] == kind]
            for row in peers:
                P = 3 * 5e4 * float(row["multiply-adds of an image in M"]) * float(row["epochs"]) / 1e9
                label = kind if row is peers[0] else None
                axes.plot(P, float(row["accuracy"]), mark, color=INK, mfc="none", label=label)
                below = -12 if row["model"] == "Mixer-nano" else -3  # beside it lies another
                at = dict(xytext=(6, below), textcoords="offset points", size=8)
                name = f"{row['model']}, {row['at test time']} at test time" if row["at test time"] else row["model"]
                axes.annotate(name, (P, float(row["accuracy"])), **at)
        for row, name, color, beside in (("imixer", "iMixer", ORANGE, 0.96), ("mixer", "Mixer", BLUE, 1.04)):
            runs = [run for run in table("laptop") if run["experiment"] == "laptop" and run["row"] == row]
            seeds = [float(run["accuracy"]) for run in runs]
            label = f"{name} here, 0.5 P, {len(seeds)} seeds"
            axes.errorbar(0.5 * beside, fmean(seeds), stdev(seeds), fmt="o", ms=5, color=color, label=label)
        (plain,) = (float(run["accuracy"]) for run in table("laptop") if run["row"] == "plain")
        axes.plot(0.5, plain, "D", ms=5, color=ORANGE, mfc="none", label="iMixer without convolutions, one seed")
        axes.set(xscale="log", xlim=(0.1, 1000), ylim=(88, 95))
        axes.set(xlabel="multiply-adds of the training / P", ylabel="accuracy on CIFAR-10 / %")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(loc="upper right")


def table(name: str) -> list[dict[str, str]]:
    """The rows of a table beside the results."""
    with (Path(__file__).parent / "results" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """All of them."""
    draw_memory()
    draw_limit()
    draw_blocks()
    draw_inverse()
    draw_metaformer()
    draw_imlp()
    draw_networks()
    draw_update_rule()
    draw_nest()
    draw_cost()


if __name__ == "__main__":
    main()
