"""Time, evaluations and memory of imixer.implicit.solve against torchdeq 0.1.0.

    python benchmarks/implicit.py [--quick] [--threads N] [--markdown FILE]

Both solve x = z + F(x) with the same F (the contraction of iMLP at c = 0.9 and about its slowest, GELU), start,
tolerance (relative, forward and adjoint) and step limit, in one process, in turn, so that a drift of the machine's
speed falls on both. torchdeq goes back through the steps of plain fixed iterations only.

Times are medians over the repeats after a warm-up; the ratio is the median of the ratios of neighbouring measurements.
Evaluations are of F in one forward, and in one forward and backward; of the adjoint, products with its Jacobian.
Peak memory is of tensors: with CUDA the allocator's, on the CPU what torch's profiler sees allocated and freed, summed
up in order; both above what was there before the step. "One graph": torch.compile takes forward and backward without a
break.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from imixer.implicit import Contraction
from imixer.implicit.gradients import CheckpointedUnroll, Gradient, Implicit, Unroll
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard, Solver

REMEDY = "this benchmark compares with torchdeq, which is not installed: pip install torchdeq==0.1.0"
TOLERANCE, MAX_STEPS = 1e-5, 60
THEIRS = {Picard: "fixed_point_iter", Anderson: "anderson", Broyden: "broyden"}


@dataclass
class Block:
    """F and its inputs, counting its evaluations and the products with its Jacobian."""

    z: Tensor
    weights: list[Tensor]
    F: Contraction
    counted: bool = True
    evaluations: int = 0
    products: int = 0

    def __call__(self, x: Tensor, *weights: Tensor) -> Tensor:
        fx = self.F(x, list(weights))
        if self.counted:
            self.evaluations += 1
            if fx.requires_grad:
                fx.register_hook(self.product)
        return fx

    def product(self, g: Tensor) -> None:
        self.products += 1


def block(batch: int, rows: int, features: int, hidden: int, device: str) -> Block:
    """All singular values at the ceiling, W2 the transpose of W1: about as slow as this contraction gets."""
    torch.manual_seed(0)
    F = Contraction(features, hidden, device=device).eval()
    with torch.no_grad():
        nn.init.orthogonal_(F.fc1.weight)
        F.fc2.weight.copy_(F.fc1.weight.T)
    F.fc1.warm_up()
    F.fc2.warm_up()
    weights = [w.detach().requires_grad_() for w in F.weights()]
    return Block(torch.randn(batch, rows, features, device=device).requires_grad_(), weights, F)


def ours(b: Block, solver: Solver, gradient: Gradient) -> Callable[[], Tensor]:
    return lambda: solve(b, b.z, b.weights, solver=solver, gradient=gradient).value


def theirs(b: Block, solver: Solver, gradient: Gradient) -> Callable[[], Tensor]:
    from torchdeq import get_deq

    if isinstance(solver, FixedIterations):
        options = dict(f_solver="simple_fixed_point_iter", f_max_iter=solver.n_iter)
        if isinstance(gradient, Unroll):  # "phantom" gradient through every step from z
            options = dict(f_solver="fixed_point_iter", f_max_iter=0, grad=solver.n_iter)
    else:
        options = dict(f_solver=THEIRS[type(solver)], f_max_iter=MAX_STEPS)
    if isinstance(gradient, Implicit):
        adjoint = gradient.adjoint
        if isinstance(adjoint, FixedIterations):
            options |= dict(b_solver="simple_fixed_point_iter", b_max_iter=adjoint.n_iter)
        else:
            options |= dict(b_solver=THEIRS[type(adjoint)], b_max_iter=MAX_STEPS)
        options |= dict(ift=True)
    deq = get_deq(f_tol=TOLERANCE, b_tol=TOLERANCE, f_stop_mode="rel", b_stop_mode="rel", **options)
    deq.train()

    def f(x: Tensor, tau: float = 1.0) -> Tensor:
        return b.z + b(x, *b.weights)

    return lambda: deq(f, b.z)[0][-1]


@dataclass
class Case:
    name: str
    solver: Solver
    gradient: Gradient


def cases(n_iter: int) -> list[Case]:
    options = dict(rtol=TOLERANCE, atol=0.0, max_steps=MAX_STEPS)
    made: list[Case] = []
    for kind in (Picard, Anderson, Broyden):
        made.append(Case(f"{kind.__name__.lower()}, implicit", kind(**options), Implicit(kind(**options))))
    made.append(Case(f"fixed n = {n_iter}, unroll", FixedIterations(n_iter), Unroll()))
    made.append(Case(f"fixed n = {n_iter}, implicit", FixedIterations(n_iter), Implicit(Picard(**options))))
    return made


def step(forward: Callable[[], Tensor], b: Block) -> None:
    forward().square().sum().backward()
    for t in (b.z, *b.weights):
        t.grad = None


def milliseconds(run: Callable[[], None], cuda: bool, least: float) -> float:
    """Of one call, long enough repeated for the clock."""
    synchronise = torch.cuda.synchronize if cuda else (lambda: None)
    synchronise()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < least:
        run()
        calls += 1
        synchronise()
    return (time.perf_counter() - start) / calls * 1e3


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The profiler writes to the standard error from below Python."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def peak_memory(run: Callable[[], None], cuda: bool) -> float:
    """MiB."""
    run()
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    held = most = 0
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def one_graph(forward: Callable[[], Tensor]) -> str:
    """Whether a training forward compiles without a graph break."""
    torch._dynamo.reset()
    try:
        torch.compile(forward, backend="aot_eager", fullgraph=True)().sum().backward()
        return "yes"
    except torch._dynamo.exc.Unsupported:
        return "no"
    finally:
        torch._dynamo.reset()


class Model(nn.Module):
    """Blocks of token and channel mixing with F of the token mixing solved in n steps, as in iMixer."""

    def __init__(self, blocks: list[Block], channels: int, n_iter: int, gradient: Gradient) -> None:
        super().__init__()
        self.blocks, self.n_iter, self.gradient = blocks, n_iter, gradient
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in blocks)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
            for _ in blocks
        )

    def forward(self, v: Tensor) -> Tensor:
        """v (B, C, S)."""
        for b, norm, mlp in zip(self.blocks, self.norms, self.mlps, strict=True):
            z = norm(v.mT).mT
            v = v + solve(b, z, b.weights, solver=FixedIterations(self.n_iter), gradient=self.gradient).value
            v = v + mlp(v.mT).mT
        return v


def measure_case(case: Case, b: Block, plain: Block, repeats: int, least: float) -> list[str]:
    """One row: ours / torchdeq's."""
    cuda = b.z.is_cuda
    runs: dict[str, list[Callable[[], None]]] = {"ours": [], "theirs": []}
    counts: dict[str, list[int]] = {}
    memory, graphs = {}, {}
    for who, make in (("ours", ours), ("theirs", theirs)):
        forward = make(b, case.solver, case.gradient)

        def infer(make=make) -> None:
            with torch.no_grad():
                make(b, case.solver, case.gradient)()

        def train(forward=forward) -> None:
            step(forward, b)

        runs[who] = [infer, train]
        counts[who] = []
        b.evaluations = 0
        infer()
        counts[who].append(b.evaluations)
        b.evaluations = b.products = 0
        train()
        counts[who] += [b.evaluations, b.products]
        memory[who] = peak_memory(train, cuda)
        graphs[who] = one_graph(make(plain, case.solver, case.gradient))
    cells = [case.name, *(f"{a} / {c}" for a, c in zip(counts["ours"], counts["theirs"], strict=True))]
    for kind in range(2):
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            for who in times:
                times[who].append(milliseconds(runs[who][kind], cuda, least))
        ratio = statistics.median(a / c for a, c in zip(times["ours"], times["theirs"], strict=True))
        cells += [f"{statistics.median(times['ours']):.1f} / {statistics.median(times['theirs']):.1f}", f"{ratio:.2f}"]
    cells.append(f"{memory['ours']:.0f} / {memory['theirs']:.0f}")
    return [*cells, f"{graphs['ours']} / {graphs['theirs']}"]


def memory_rows(sizes: dict[str, int], device: str, depth: int) -> list[list[str]]:
    """Peak memory of a training step at n = 2 and 64, of F alone and of a model."""
    rows = []
    blocks = [block(**sizes, device=device) for _ in range(depth)]
    options = dict(rtol=TOLERANCE, atol=0.0, max_steps=MAX_STEPS)
    gradients = {"implicit": Implicit(Picard(**options)), "recompute": CheckpointedUnroll(), "unroll": Unroll()}
    for name, gradient in gradients.items():
        for what in ("F alone", f"model of {depth} blocks"):
            peaks = []
            for n_iter in (2, 64):
                if what == "F alone":
                    forward = ours(blocks[0], FixedIterations(n_iter), gradient)
                    peaks.append(peak_memory(lambda forward=forward: step(forward, blocks[0]), device == "cuda"))
                else:
                    model = Model(blocks, sizes["rows"], n_iter, gradient).to(device)
                    v = blocks[0].z.detach()

                    def run(model=model, v=v) -> None:
                        model(v).square().sum().backward()
                        for t in (*model.parameters(), *(t for b in blocks for t in b.weights)):
                            t.grad = None

                    peaks.append(peak_memory(run, device == "cuda"))
            grown = peaks[1] / peaks[0] - 1
            verdict = "-" if name == "unroll" else "met" if grown <= 0.1 else "missed"
            rows.append([name, what, *(f"{p:.1f}" for p in peaks), f"{grown:+.0%}", verdict])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--repeats", type=int, help="default: 7, or 3 with --quick")
    parser.add_argument("--threads", type=int, help="that torch uses on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    args = parser.parse_args()
    if importlib.util.find_spec("torchdeq") is None:
        parser.error(REMEDY)
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = dict(batch=8, rows=64, features=256, hidden=512)
    if args.device == "cuda":
        sizes |= dict(rows=512)
    if args.quick:
        sizes = dict(batch=4, rows=32, features=64, hidden=128)
    args.repeats = args.repeats or (3 if args.quick else 7)
    least = 0.05 if args.quick else 0.3

    console = Console(width=170)
    cuda = args.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    text = ", ".join(f"{key} {value}" for key, value in sizes.items())
    title = f"imixer / torchdeq {importlib.metadata.version('torchdeq')}; {text}; {where}; torch {torch.__version__}"
    b, plain = block(**sizes, device=args.device), block(**sizes, device=args.device)
    plain.counted = False
    rows = []
    todo = cases(8)
    with console.status("") as status:
        for i, case in enumerate(todo):
            status.update(f"[{i + 1}/{len(todo)}] {case.name}")
            rows.append(measure_case(case, b, plain, args.repeats, least))
            console.print(" | ".join(rows[-1]), highlight=False)
        status.update("memory")
        memory = memory_rows(sizes, args.device, depth=2 if args.quick else 6)
    header = ["solver, gradient", "F forward", "F training", "J^T training"]
    header += ["forward ms", "ratio", "training ms", "ratio", "peak MiB", "one graph"]
    tables = [
        (title, header, rows),
        ("Memory of a training step", ["gradient", "of", "n = 2 MiB", "n = 64 MiB", "growth", "target 10 %"], memory),
    ]
    lines = []
    for name, head, body in tables:
        table = Table(*head, title=name)
        for row in body:
            table.add_row(*row)
        console.print(table)
        lines += [f"{name}.\n", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in body] + [""]
    if args.markdown:
        args.markdown.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
