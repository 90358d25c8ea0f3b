"""Time and memory of an iMixer against the Mixer of its size, beside their ratio of multiply-adds.

    python benchmarks/step.py [--pairs s16_224 laptop t4_32 t2_8] [--batches 16 1] [--repeats 7] [--no-compile]
        [--markdown FILE]

Both models run in one process, in turn, so that a drift of the machine's speed falls on both. Figures are medians over
the repeats after a warm-up; the ratio is the median of the ratios of neighbouring measurements. Multiply-adds are
counted by torch on the forward of the folded model; a training step has three times as many. The share of the peak is
what the iMixer computes a second, of what a product of two square matrices does in the same type. Memory is the highest
that a step needs, above the imports. Freed memory is kept for the next step, as `imixer train` does.
"""

import argparse
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import imixer.models
from imixer.implicit import fold
from imixer.timing import milliseconds
from imixer.timing import peak_memory as peak_memory_of
from imixer.training.allocator import keep_freed_memory
from imixer.training.run.environment import environment

IMIXER, MIXER = "iMixer", "Mixer"
_PYRAMID: dict[str, Any] = dict(
    patch_size=2, stem="whitened", num_blocks=(2, 4, 2), embed_dim=(64, 128, 192), mlp_ratio=(0.5, 3.0)
)
_LAPTOP = _PYRAMID | dict(tokens_dim=(128, 64, 32), n_iter=1, hidden_ratio=0.5)
# name -> size of the image, and for each of the two models its name and options
PAIRS: dict[str, tuple[int, dict[str, tuple[str, dict[str, Any]]]]] = {
    "s16_224": (224, {IMIXER: ("imixer_s16_224", {}), MIXER: ("mixer_s16_224", {})}),
    "t4_32": (32, {IMIXER: ("imixer_t4_32", {}), MIXER: ("mixer_t4_32", {})}),
    "t2_8": (8, {IMIXER: ("imixer_t2_8", {}), MIXER: ("mixer_t2_8", {})}),
    # recipe laptop/imixer_cifar10, and laptop/mixer_cifar10 which has as many multiply-adds
    "laptop": (
        32,
        {
            IMIXER: ("imixer_t4_32", _LAPTOP),
            MIXER: ("mixer_t4_32", _PYRAMID | dict(tokens_dim=(160, 96, 64))),
        },
    ),
}
PEAK_WIDTH = 2048


def create(pair: str, which: str) -> nn.Module:
    name, options = PAIRS[pair][1][which]
    return timm.create_model(name, **options)


def peak(dtype: torch.dtype, device: str) -> float:
    """Multiply-adds a second of a product of two square matrices, the best of some."""
    a, b = (torch.randn(PEAK_WIDTH, PEAK_WIDTH, device=device, dtype=dtype) for _ in range(2))
    return PEAK_WIDTH**3 / min(milliseconds(lambda: a @ b, a.device) for _ in range(5)) * 1e3


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Of one forward over the batch x."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def training_step(
    model: nn.Module, forward: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Callable[[Tensor], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(x: Tensor) -> None:
        target = torch.arange(len(x), device=x.device)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference(model: nn.Module, forward: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor], None]:
    model.eval()

    @torch.no_grad()
    def step(x: Tensor) -> None:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            forward(x)

    return step


def build(
    pair: str, which: str, mode: str, compiled: bool, dtype: torch.dtype, device: str
) -> Callable[[Tensor], None]:
    torch.manual_seed(0)
    model = create(pair, which).to(device)
    if mode == "folded" and which == IMIXER:
        model = fold(model)
    forward = torch.compile(model) if compiled else model
    return (training_step if mode == "train" else inference)(model, forward, dtype)


def peak_memory(device: str, pair: str, which: str, mode: str, compiled: bool, dtype: torch.dtype, batch: int) -> float:
    """MiB that a step needs at its highest, above the imports: in a process of its own on the CPU."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()  # of the models that are timed
        step, x = build(pair, which, mode, compiled, dtype, device), images(pair, batch, device)
        step(x)
        return ((peak_memory_of(partial(step, x), x.device) or 0) - before) / 2**20
    command = [
        sys.executable,
        __file__,
        "--memory",
        pair,
        which,
        mode,
        str(int(compiled)),
        str(dtype).split(".")[1],
        str(batch),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def images(pair: str, batch: int, device: str) -> Tensor:
    size = PAIRS[pair][0]
    return torch.randn(batch, 3, size, size, device=device)


def memory_child(pair: str, which: str, mode: str, compiled: str, dtype: str, batch: str) -> None:
    before = resident_peak()
    step = build(pair, which, mode, bool(int(compiled)), getattr(torch, dtype), "cpu")
    x = images(pair, int(batch), "cpu")
    for _ in range(2):
        step(x)
    print(resident_peak() - before)


def resident_peak() -> float:
    """Of this process, MiB. From /proc where there is one, since rusage also remembers the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=["s16_224"], choices=list(PAIRS))
    parser.add_argument(
        "--modes", nargs="+", default=["train", "infer", "folded"], choices=["train", "infer", "folded"]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--memory", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()
    if args.memory:
        return memory_child(*args.memory)

    console = Console()
    where = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    )
    types = [torch.float32, torch.bfloat16]
    peaks = {dtype: peak(dtype, args.device) for dtype in types}
    title = f"iMixer against Mixer. {where}; torch {torch.__version__}, timm {timm.__version__}; a product of two "
    title += f"{PEAK_WIDTH}x{PEAK_WIDTH} matrices: {peaks[types[0]] / 1e9:.0f} G multiply-adds/s in float32, "
    title += f"{peaks[types[1]] / 1e9:.0f} in bf16"
    header = ["models", "mode", "batch", "type", "compiled", "iMixer ms", "Mixer ms", "time ratio", "min-max"]
    header += ["MAC ratio", "time/MACs", "target 1.05", "iMixer, of peak", "Mixer, of peak", "iMixer MiB", "Mixer MiB"]
    rows: list[list[str]] = []
    macs = {
        (pair, which): multiply_adds(fold(m) if isinstance(m := create(pair, which), imixer.models.IMixer) else m,
                                     images(pair, 1, "cpu"))
        for pair in args.pairs for which in (IMIXER, MIXER)
    }  # fmt: skip
    compiles = [False, True] if args.compile else [False]
    cells = list(product(args.pairs, args.modes, args.batches, types, compiles))
    with console.status("") as status:
        for i, (pair, mode, batch, dtype, compiled) in enumerate(cells):
            status.update(
                f"[{i + 1}/{len(cells)}] {pair}, {mode}, batch {batch}, {dtype}, {'compiled' if compiled else 'eager'}"
            )
            torch.compiler.reset()
            work = macs[pair, IMIXER] / macs[pair, MIXER]
            x = images(pair, batch, args.device)
            steps = {which: build(pair, which, mode, compiled, dtype, args.device) for which in (IMIXER, MIXER)}
            for step in steps.values():
                for _ in range(3):
                    step(x)
            times: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(args.repeats):
                for name, step in steps.items():
                    times[name].append(milliseconds(partial(step, x), x.device))
            ratios = [a / b for a, b in zip(times[IMIXER], times[MIXER], strict=True)]
            ratio = statistics.median(ratios)
            memory = [peak_memory(args.device, pair, which, mode, compiled, dtype, batch) for which in steps]
            passes = 3 if mode == "train" else 1
            speeds = {
                which: macs[pair, which] * batch * passes / statistics.median(times[which]) * 1e3 for which in steps
            }
            cell = [pair, mode, str(batch), "f32" if dtype == torch.float32 else "bf16", "yes" if compiled else "no"]
            cell += [f"{statistics.median(times[name]):.1f}" for name in (IMIXER, MIXER)]
            cell += [f"{ratio:.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}", f"{work:.2f}", f"{ratio / work:.2f}"]
            cell += ["met" if ratio / work <= 1.05 else "missed"]
            cell += [f"{speeds[which] / peaks[dtype]:.0%}" for which in steps]
            cell += [f"{m:.0f}" for m in memory]
            rows.append(cell)
            console.print(" | ".join(rows[-1]), highlight=False, soft_wrap=True)
    show(title, header, rows, 130, args.markdown)


def show(title: str, header: list[str], rows: list[list[str]], width: int, markdown: Path | None) -> None:
    """Print a table at least so wide, and write it to a Markdown file if one is given."""
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=max(Console().width, width)).print(table)
    if markdown:
        lines = [f"{title}.\n", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        markdown.write_text("\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n")


def cpu_name() -> str:
    return str(environment()["cpu"])


if __name__ == "__main__":
    main()
