"""Accuracy of a trained Mixer that goes on as itself or as an iMixer, and of both from random weights.

    python benchmarks/from_mixer.py [--data digits] [--seeds 5] [--out from_mixer] [--markdown FILE]
    python benchmarks/from_mixer.py --data cifar10 --data_dir DIR

Every line has the same multiply-adds in all: a Mixer is trained for half of them and goes on for the other half, as a
Mixer or as an iMixer with F = 0 at the start; the two others train for all of them from random weights. Learning rates
and the margin were chosen before the trials; no epoch is selected. Lines that begin with the same weights are compared
pair by pair; the iMixer from random weights, which cannot, by Welch's test. Holm's correction is made for all lines.
Runs that are finished in `--out` are read, not trained again.
"""

import argparse
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from rich.console import Console

from imixer.experiments.comparison import MARGIN, Judgement, compare_means, judge
from imixer.experiments.data_sets import locate_dataset
from imixer.experiments.sentences import detectable_words, interval_words, p_words, verdict_words
from imixer.notices import notices_on_stderr
from imixer.tables import Grid, markdown, on_screen, plus_minus
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import build_config, parse, train_parser
from imixer.training.run.result import read_result
from imixer.training.train import train

BASELINE = "Mixer, goes on"
SIZES: dict[str, dict[str, Any]] = {
    "digits": {
        "variant": "{}_t2_8",
        "sizes": {"num_blocks": 2, "embed_dim": 32},
        "half": 0.025,  # T multiply-adds
        "lr": (5e-3, 2.5e-3),  # from random weights, and going on
        "more": {"data": {"batch_size": 64, "pipeline": "device"}},
    },
    "cifar10": {
        "variant": "{}_t4_32",
        "sizes": {"num_blocks": 4, "embed_dim": 32},
        "half": 0.6,
        "lr": (2e-3, 1e-3),
        "more": {"data": {"batch_size": 128, "pipeline": "device", "hflip": 0.5}, "precision": "auto"},
    },
}


@dataclass(frozen=True)
class Line:
    """A line of the table: what is trained, for how many halves of the budget, and from which weights."""

    name: str
    model: str
    halves: int
    source: str | None = None  # option of `ModelConfig` that takes the Mixer
    contraction_lr_scale: float = 1.0
    shares_weights: bool = True  # with the baseline, at the same seed


LINES = (
    Line(BASELINE, "mixer", 1, "checkpoint"),
    Line("iMixer from the Mixer", "imixer", 1, "from_mixer"),
    Line("iMixer from the Mixer, F with 5 x lr", "imixer", 1, "from_mixer", 5.0),
    Line("Mixer from random weights", "mixer", 2),
    Line("iMixer from random weights", "imixer", 2, shares_weights=False),
)


def accuracy(
    data: dict[str, Any], setting: dict[str, Any], line: Line, seed: int, mixer: Path | None, out: Path
) -> float:
    """Train a run, or read it if it is finished; in percent of the held-out images."""
    if not RunDirectory(out).finished:
        model = {"name": setting["variant"].format(line.model), **setting["sizes"]}
        if line.source and mixer:
            model[line.source] = str(mixer)
        config: dict[str, Any] = {
            "model": model,
            "optim": {"lr": setting["lr"][bool(line.source)], "contraction_lr_scale": line.contraction_lr_scale},
            "schedule": {"warmup_share": 0.1},
            "budget": f"{setting['half'] * line.halves:g}T",
            "seed": seed,
            "out": str(out),
            "logger": "csv",
            **setting["more"],
        }
        config["data"] = config["data"] | data
        train(build_config(parse(train_parser(), ["--config", yaml.safe_dump(config)])))
    return 100 * read_result(RunDirectory(out)).last["val_acc"]


def table(scores: dict[str, dict[int, float]], start: dict[int, float], margin: float) -> Grid:
    """Compare each line with the Mixer that goes on."""
    shared = {line.name: line.shares_weights for line in LINES}
    others = [line.name for line in LINES if line.name != BASELINE]
    compared = [compare_means(scores[name], scores[BASELINE], shared_weights=shared[name]) for name in others]
    verdicts: dict[str, Judgement] = {}
    pairs = [(name, each) for name, each in zip(others, compared, strict=True) if each is not None]
    for (name, _), verdict in zip(pairs, judge([(each, margin) for _, each in pairs]), strict=True):
        verdicts[name] = verdict
    header = ("", "top-1, %", "difference", "test", "95 % interval", "p, corrected", "verdict", "detectable")
    rows: list[tuple[str, ...]] = [("the Mixer after half", _spread(start), *[""] * 6)]
    for name, own in scores.items():
        cells = [""] * 6
        if (verdict := verdicts.get(name)) is not None:
            difference = verdict.comparison
            cells = [
                f"{difference.difference:+.2f}",
                difference.test,
                interval_words(verdict),
                p_words(verdict.p),
                verdict_words(verdict),
                detectable_words(verdict.detectable),
            ]
        rows.append((name, _spread(own), *cells))
    return Grid(header, tuple(rows), text=1)


def _spread(values: dict[int, float]) -> str:
    sample = list(values.values())
    return plus_minus(fmean(sample), stdev(sample) if len(sample) > 1 else None)


def main() -> int:
    parser = argparse.ArgumentParser(description="A Mixer that goes on as an iMixer.")
    parser.add_argument("--data", choices=list(SIZES), default="digits")
    parser.add_argument("--data_dir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("from_mixer"))
    parser.add_argument("--margin", type=float, default=MARGIN)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    location = locate_dataset(args.data, args.data_dir)
    if location.missing:
        print(location.missing, file=sys.stderr)
        return 2
    data = {name.removeprefix("data."): value for name, value in location.settings.items()}
    setting, began = SIZES[args.data], time.perf_counter()
    half = Line("half", "mixer", 1)
    start: dict[int, float] = {}
    scores: dict[str, dict[int, float]] = {line.name: {} for line in LINES}
    with notices_on_stderr():
        for seed in range(args.seeds):
            folder = args.out / args.data / f"seed-{seed}"
            mixer = folder / "half"
            start[seed] = accuracy(data, setting, half, seed, None, mixer)
            for number, line in enumerate(LINES):
                scores[line.name][seed] = accuracy(data, setting, line, seed, mixer, folder / f"line-{number}")
    grid = table(scores, start, args.margin)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(on_screen(grid, f"{args.data}, {2 * setting['half']:g} T multiply-adds in all, {args.seeds} seeds"))
    console.print(
        f"{time.perf_counter() - began:.0f} s, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, margin {args.margin:g}"
    )
    if args.markdown:
        args.markdown.write_text(markdown(grid), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
