"""Throughput, utilisation and memory of a full training step: iMixer, timm's Mixer, and the iMixer as published.

    python benchmarks/train.py [--models iMixer Mixer published] [--size s16] [--batch 512] [--repeats 7]
                               [--no-compile] [--device cuda] [--markdown FILE]

A step is forward, cross entropy with soft targets, backward, fused AdamW and zero_grad, under bf16 autocast.
"Published" is the iMixer that normalises once per fixed point iteration, as the published code does. All models run in
one process, in turn, eager and compiled; figures are medians over the repeats after a warm-up, ratios medians of those
of neighbouring measurements. Utilisation counts 6 FLOPs per multiply-add of the folded model's forward, whatever else a
model computes, against the device's peak in dense bf16. Memory is the highest that a step needs, model and optimizer
included, above the batch; on the CPU above the imports.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import timm
import torch
from rich.console import Console
from step import cpu_name, multiply_adds, resident_peak, show
from torch import Tensor, nn

import imixer.models
from imixer.implicit import fold
from imixer.timing import milliseconds, peak_memory

MODELS = {
    "iMixer": ("imixer_{}_224", {}),
    "Mixer": ("mixer_{}_224", {}),
    "published": ("imixer_{}_224", {"legacy": True}),
}
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16, from the data sheets

Key = tuple[str, bool]  # model, compiled
Step = Callable[[Tensor], None]

# What is asked of S/16 on a GPU at batch 512: speed over the published, speed per multiply-add over the Mixer.
TARGETS: dict[Key, tuple[str, float]] = {("iMixer", False): ("published", 2.5), ("iMixer", True): ("Mixer", 1.0)}


def create(model: str, size: str) -> nn.Module:
    name, options = MODELS[model]
    return timm.create_model(name.format(size), **options)


def forward_macs(model: str, size: str) -> int:
    """Multiply-adds of one image's forward."""
    net = create(model, size)
    return multiply_adds(fold(net) if isinstance(net, imixer.models.IMixer) else net, images(1, "cpu"))


def training_step(model: str, size: str, compiled: bool, batch: int, device: str) -> Step:
    torch.manual_seed(0)
    net = create(model, size).to(device).train()
    forward = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    target = torch.rand(batch, net.num_classes, device=device).softmax(-1)

    def step(x: Tensor) -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def images(batch: int, device: str) -> Tensor:
    return torch.randn(batch, 3, 224, 224, device=device)


def warm_and_measure_memory(make: Callable[[], Step], x: Tensor) -> tuple[Step, float]:
    """A step that has run three times, and the MiB of CUDA memory that it needs."""
    before = torch.cuda.memory_allocated()
    step = make()
    for _ in range(2):
        step(x)
    return step, ((peak_memory(partial(step, x), x.device) or 0) - before) / 2**20


def resident_memory(model: str, size: str, compiled: bool, batch: int) -> float:
    """MiB that a step needs on the CPU: in a process of its own."""
    command = [sys.executable, __file__, "--memory", model, size, str(int(compiled)), str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_child(model: str, size: str, compiled: str, batch: str) -> None:
    x = images(int(batch), "cpu")
    before = resident_peak()
    step = training_step(model, size, bool(int(compiled)), len(x), "cpu")
    for _ in range(2):
        step(x)
    print(resident_peak() - before)


def peak_flops(device: str) -> tuple[float, str]:
    """Of the device in bf16, per second, and where that is from."""
    if device == "cuda":
        for name, peak in PEAK_FLOPS.items():
            if name in torch.cuda.get_device_name():
                return peak, "data sheet"
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(milliseconds(lambda: torch.mm(a, b), b.device) for _ in range(5))
    return 2 * n**3 / best * 1e3, f"the best of five products of {n}x{n} matrices"


def prepare(args: argparse.Namespace, x: Tensor, console: Console) -> tuple[dict[Key, Step], dict[Key, float]]:
    """Every model's step, warm, and its memory."""
    steps: dict[Key, Step] = {}
    memory: dict[Key, float] = {}
    for key in product(args.models, [False, True] if args.compile else [False]):
        model, compiled = key
        console.print(f"warming up {model}, {'compiled' if compiled else 'eager'} ...", highlight=False)
        make = partial(training_step, model, args.size, compiled, args.batch, args.device)
        if args.device == "cuda":
            steps[key], memory[key] = warm_and_measure_memory(make, x)
        else:
            memory[key] = resident_memory(model, args.size, compiled, args.batch)
            steps[key] = make()
            for _ in range(2):
                steps[key](x)
    return steps, memory


def measure(steps: dict[Key, Step], repeats: int, x: Tensor, console: Console) -> dict[Key, list[float]]:
    """Milliseconds of every step, in turn."""
    times: dict[Key, list[float]] = {key: [] for key in steps}
    for repeat in range(repeats):
        console.print(f"measuring {repeat + 1}/{repeats} ...", highlight=False)
        for key, step in steps.items():
            times[key].append(milliseconds(partial(step, x), x.device))
    return times


def describe(
    key: Key, times: dict[Key, list[float]], macs: dict[str, int], batch: int, peak: float, judged: bool
) -> list[str]:
    """A row of the table, without the memory."""
    model, compiled = key
    speed = [batch / ms * 1e3 for ms in times[key]]
    utilisation = 6 * macs[model] * statistics.median(speed) / peak
    row = [*median_and_range(speed, 0 if min(speed) > 100 else 1), f"{100 * utilisation:.1f}"]
    target = ""
    for other in ("published", "Mixer"):
        if other not in macs:
            row += ["", ""]
            continue
        work = macs[model] / macs[other] if other == "Mixer" else 1.0
        ratios = [b / a * work for b, a in zip(times[other, compiled], times[key], strict=True)]
        row += median_and_range(ratios, 2)
        if key in TARGETS and TARGETS[key][0] == other:
            asked = TARGETS[key][1]
            target = f"{asked} over {other}: " + ("met" if statistics.median(ratios) >= asked else "missed")
            target = target if judged else target.partition(":")[0]
    return [*row, target]


def median_and_range(values: list[float], digits: int) -> list[str]:
    return [f"{statistics.median(values):.{digits}f}", f"{min(values):.{digits}f}-{max(values):.{digits}f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="s16", choices=["s16", "b16", "l16"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return memory_child(*args.memory)

    console = Console()
    began = time.perf_counter()
    on_gpu = args.device == "cuda"
    peak, source = peak_flops(args.device)
    macs = {model: forward_macs(model, args.size) for model in args.models}
    x = images(args.batch, args.device)
    steps, memory = prepare(args, x, console)
    times = measure(steps, args.repeats, x, console)

    header = ["model", "compiled", "GMACs", "MiB", "images/s", "min-max", "MFU %", "speed over published", "min-max"]
    header += ["speed per MAC over Mixer", "min-max", "target on a GPU at batch 512"]
    judged = on_gpu and (args.size, args.batch) == ("s16", 512)
    rows = []
    for key in times:
        model, compiled = key
        row = [model, "yes" if compiled else "no", f"{macs[model] / 1e9:.2f}", f"{memory[key]:.0f}"]
        rows.append(row + describe(key, times, macs, args.batch, peak, judged))
    where = torch.cuda.get_device_name() if on_gpu else f"{cpu_name()}, threads: {torch.get_num_threads()}"
    title = (
        f"Training {args.size.upper()} at 224x224, batch {args.batch}, bf16 autocast, {args.repeats} repeats. "
        f"{where}; peak {peak / 1e12:.3g} TFLOP/s ({source}); "
        f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    )
    show(title, header, rows, 150, args.markdown)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


if __name__ == "__main__":
    main()
