"""How long a newcomer waits: for help, and for the first trained model. Exits with 1 if a target is missed.

    python benchmarks/waiting.py [--seeds 5]

The targets are for two CPU cores that do nothing else: help within 1.5 seconds, the best of three; `imixer train` on
the digits in less than 30 seconds, start-up included, for every seed.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

HELP_S, DIGITS_S = 1.5, 30.0


def seconds(*words: str) -> float:
    """Of one command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "imixer", *words], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="How long a newcomer waits.")
    parser.add_argument("--seeds", type=int, default=5)
    count = parser.parse_args().seeds
    rows = [
        (f"imixer {' '.join(words)}", min(seconds(*words) for _ in range(3)), HELP_S, "")
        for words in (["--help"], ["train", "--help"], ["recipes"])
    ]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            run = Path(folder) / str(seed)
            taken = seconds("train", "--seed", str(seed), "--out", str(run))
            accuracy = json.loads((run / "result.json").read_text())["last"]["val_acc"]
            rows.append((f"imixer train --seed {seed}", taken, DIGITS_S, f"{accuracy:.2%}"))
    table = Table("command", "seconds", "target", "accuracy")
    for command, taken, target, accuracy in rows:
        table.add_row(command, f"{taken:.1f}", f"{target:g}", accuracy)
    console = Console()
    console.print(table)
    console.print(f"{torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}")
    return int(any(taken >= target for _, taken, target, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
