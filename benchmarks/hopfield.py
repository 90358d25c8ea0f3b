"""What the Hopfield networks cost: evaluations, hand-written against automatic gradients, two ways to the same rest.

    python benchmarks/hopfield.py [--quick] [--repeats 7] [--markdown FILE]

Everything runs in one process. What is compared is measured in turn, so that a drift of the machine's speed falls on
all. Figures are medians over the repeats after a warm-up, with the lowest and the highest in brackets; a ratio is the
median of the ratios of neighbouring measurements.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from step import cpu_name
from torch import Tensor

from imixer.hopfield import (
    AdiabaticUpdate,
    AttentionSynapse,
    ConvSynapse,
    EnergySynapse,
    HopfieldNetwork,
    Lagrangian,
    LinearSynapse,
    Synapse,
    chain,
    integrate,
    lagrangian,
)
from imixer.hopfield.lagrangians import Elementwise

BATCH = 64
SPAN = 0.06  # seconds that each measurement lasts
Row = Sequence[str]


def seconds(calls: Sequence[Callable[[], object]], repeats: int, span: float = SPAN) -> list[list[float]]:
    """Of one call, for every repeat, in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, found in zip(calls, times, strict=True):
            count, start = 0, time.perf_counter()
            while count == 0 or time.perf_counter() - start < span:
                call()
                count += 1
            if repeat > 0:  # the first is a warm-up
                found.append((time.perf_counter() - start) / count)
    return times


def spread(values: Sequence[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    return spread([a / b for a, b in zip(above, below, strict=True)], 2)


def evaluations(quick: bool, repeats: int) -> Iterator[Row]:
    """Chains of equal layers, LayerNorm and GELU, float32."""
    for width in (64, 1024) if quick else (64, 256, 1024):
        for depth in (2, 6) if quick else (2, 3, 4, 5, 6):
            torch.manual_seed(0)
            network = chain([width] * depth, ["layer_norm"] + ["gelu"] * (depth - 1))
            state = {name: torch.randn(BATCH, width) for name in network.neurons}
            g, matrices = torch.randn(BATCH, width), [network.synapse(name).weight for name in network.synapses]

            def bare(g: Tensor = g, matrices: list[Tensor] = matrices) -> None:
                for W in matrices:
                    torch.nn.functional.linear(g, W)
                    torch.nn.functional.linear(g, W.T)

            calls = [lambda n=network, s=state: n.velocity(s), lambda n=network, s=state: n.energy(s), bare]
            velocity, energy, products = seconds(calls, repeats)
            yield [
                str(width),
                str(depth),
                spread([1 / t for t in velocity]),
                spread([1 / t for t in energy]),
                f"{2 * (depth - 1) * BATCH * width**2 / 1e6:,.1f}",
                ratio(velocity, products),
                ratio(energy, velocity),
            ]


def gradients(quick: bool, repeats: int) -> Iterator[Row]:
    """Inputs and activations, each written out and as the gradient of the same energy."""
    torch.manual_seed(0)
    linear, tokens, conv = LinearSynapse(256, 512), LinearSynapse(64, 128, axis=-2), ConvSynapse(8, 16, 4, 2)
    attention = AttentionSynapse(64, num_heads=4)
    cases: list[tuple[str, Synapse, list[tuple[int, ...]]]] = [
        ("linear, 256 to 512", linear, [(256,), (512,)]),
        ("linear along tokens, 64 to 128, 64 channels", tokens, [(64, 64), (128, 64)]),
        ("convolution 4x4, stride 2, (8, 32, 32) to (16, 15, 15)", conv, [(8, 32, 32), (16, 15, 15)]),
        ("attention, 64 tokens, 64 channels, 4 heads", attention, [(64, 64)]),
    ]
    for name, synapse, shapes in cases:
        synapse.connect(*shapes)
        g = [torch.randn(BATCH, *shape) for shape in shapes]
        given = EnergySynapse(synapse.energy)
        calls = [lambda s=synapse, g=g: s.inputs(*g), lambda s=given, g=g: s.inputs(*g)]
        yield [f"synapse: {name}", *_pair(*seconds(calls, repeats))]
    for name in ("tanh", "gelu") if quick else ("relu", "tanh", "sigmoid", "softplus", "gelu", "silu"):
        made, x = lagrangian(name), torch.randn(BATCH, 1024)
        given = Elementwise(made.density, convex=made.convex, lipschitz=made.lipschitz * (1 + 1e-9))
        yield [f"activation: {name}, 1024", *_pair(*seconds(_activations(made, given, x), repeats))]
    for name in ("softmax", "layer_norm"):
        made, x = lagrangian(name), torch.randn(BATCH, 1024)
        gradient = torch.func.grad(lambda x, made=made: made.density(x).sum())
        calls = [lambda made=made, x=x: made.activation(x), lambda f=gradient, x=x: f(x)]
        yield [f"activation: {name}, 1024", *_pair(*seconds(calls, repeats))]


def _activations(made: Lagrangian, given: Lagrangian, x: Tensor) -> list[Callable[[], object]]:
    return [lambda: made.activation(x), lambda: given.activation(x)]


def _pair(written: list[float], automatic: list[float]) -> Row:
    micro = [[1e6 * t for t in times] for times in (written, automatic)]
    return [spread(micro[0]), spread(micro[1]), ratio(automatic, written)]


def contracting(depth: int, width: int, norm: float, tau: Sequence[float] | float = 1.0) -> HopfieldNetwork:
    """LayerNorm and GELU, couplings of the given spectral norm, fields of size 1, float64."""
    torch.manual_seed(0)
    network = chain([width] * depth, ["layer_norm"] + ["gelu"] * (depth - 1), tau=tau, field=True).double()
    for name in network.synapses:
        W = network.synapse(name).weight
        W.mul_(norm / torch.linalg.matrix_norm(W, 2))
    for name in network.neurons:
        network.layer(name).field.normal_()
    return network


def solves(quick: bool, repeats: int) -> Iterator[Row]:
    """Hidden layers at rest to 1e-6, by nested inverses and by sweeps."""
    for norm in (0.4,) if quick else (0.4, 0.6):
        for depth in (3, 4) if quick else (3, 4, 5):
            network = contracting(depth, 64, norm)
            x1 = torch.randn(BATCH, 64, dtype=torch.float64)
            updates = [_converged(network, x1, solve) for solve in ("nested", "joint")]
            counts = [_applications(update, x1) for update in updates]
            nested, joint = seconds([lambda u=u, x1=x1: u.F1(x1) for u in updates], repeats)
            yield [
                f"{norm:g}",
                str(depth),
                *(str(update.n_iter) for update in updates),
                *(f"{count:,}" for count in counts),
                *(spread([1e3 * t for t in times], 2) for times in (nested, joint)),
                ratio(nested, joint),
            ]


def _converged(network: HopfieldNetwork, x1: Tensor, solve: str) -> AdiabaticUpdate:
    """With the fewest iterations that leave a residual of 1e-6."""
    update = AdiabaticUpdate(network, n_iter=1, solve=solve)  # type: ignore[arg-type]
    while update.residual(x1, update.hidden(x1)).max() > 1e-6:
        update.n_iter += 1
    return update


def _applications(update: AdiabaticUpdate, x1: Tensor) -> int:
    """Of couplings, up or down, in one F1."""
    count = 0

    def counted(apply: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(g: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return apply(g)

        return call

    synapses = [update.network.synapse(name) for name in update.network.synapses]
    for synapse in synapses:
        synapse.up, synapse.down = counted(synapse.up), counted(synapse.down)
    update.F1(x1)
    for synapse in synapses:
        del synapse.up, synapse.down
    return count


def limits(quick: bool, repeats: int) -> Iterator[Row]:
    """Error of the full dynamics with time constants 1, e, e^2, ... against the reduced flow, at time 1."""
    cases = {2: (0.1, 0.03, 0.01), 3: (0.1, 0.03, 0.01), 4: (0.1, 0.05, 0.03)}
    for depth, ratios in cases.items():
        before = None
        for e in ratios[:2] if quick else ratios:
            network = contracting(depth, 16, 0.6, tau=[e**A for A in range(depth)])
            network.layer("x1").lagrangian.eps = 1.0  # so that the reduced flow is not stiff itself
            x1 = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            reduced = AdiabaticUpdate(network, n_iter=60, solve="joint")
            slow = _runge_kutta(reduced.velocity, x1, 100)
            start = dict(zip(network.neurons, [x1, *reduced.hidden(x1)], strict=True))
            way = integrate(network, start, 1.0, frames=2, method="rk4", step_size=min(0.05, 2 * e ** (depth - 1)))
            error = float((way.final["x1"] - slow).abs().max())
            order = "" if before is None else f"{math.log(before[1] / error) / math.log(before[0] / e):.2f}"
            yield [str(depth), f"{e:g}", f"{error:.2e}", order, f"{way.n_evaluations:,}"]
            before = (e, error)


def _runge_kutta(f: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """From time 0 to 1."""
    h = 1 / steps
    for _ in range(steps):
        k1 = f(x)
        k2 = f(x + h / 2 * k1)
        k3 = f(x + h / 2 * k2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3))
    return x


TABLES: list[tuple[str, str, Callable[[bool, int], Iterator[Row]]]] = [
    (
        f"Evaluations of chains of equal layers, LayerNorm and GELU, batch {BATCH}, float32",
        "width | L | velocity, 1/s | energy, 1/s | velocity, M multiply-adds | velocity / its bare products "
        "| energy / velocity",
        evaluations,
    ),
    (
        f"Hand-written against the gradient of the energy by autograd, batch {BATCH}, float32",
        "what | written, us | autograd, us | autograd / written",
        gradients,
    ),
    (
        f"Hidden layers at rest to a residual of 1e-6, width 64, batch {BATCH}, float64",
        "norm of couplings | L | n nested | n joint | couplings applied, nested | couplings applied, joint "
        "| nested, ms | joint, ms | nested / joint",
        solves,
    ),
    (
        "Full dynamics with time constants 1, e, e^2, ... against the reduced flow: error of x1 at time 1, float64",
        "L | e | largest error | order in e | evaluations of the velocity",
        limits,
    ),
]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats, for a look")
    parser.add_argument("--repeats", type=int, help="default: 7, quick: 3")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    args = parser.parse_args()
    repeats = args.repeats or (3 if args.quick else 7)

    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)

    start = time.perf_counter()
    say(f"{cpu_name()}, {torch.get_num_threads()} threads; torch {torch.__version__}. {repeats} repeats.")
    with Console(stderr=True).status("") as status:
        for title, header, rows in TABLES:
            say(f"\n{title}\n\n| {header} |\n|{'---|' * len(header.split(' | '))}")
            status.update(title)
            for row in rows(args.quick, repeats):
                say(f"| {' | '.join(row)} |")
    print(f"\n{time.perf_counter() - start:.0f} s", flush=True)
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
