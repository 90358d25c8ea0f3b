"""What regularisers of the inverse, and a ceiling with detached sigma, do to its convergence: trained on the digits.

    python benchmarks/regularizers.py [--seeds 3] [--out regularizers] [--markdown FILE]

Each line is the recipe `digits` with one option more; lines of a seed share their first weights and the images held
out. The first table has the figures, the second the mean difference from the line without an option, seed by seed, with
its 95 % interval by t, and the verdict on accuracy within a margin of half a point, corrected for the number of
options. Weights were chosen before the trials, and no epoch is selected. Runs that are finished in `--out` are read,
not trained again.

- left: ||x - G(v) - F(x)|| / ||x|| after the n = 2 iterations, in the worst block, per cent;
- evaluations: of plain iteration to a relative 1e-4, in the block that takes the most;
- slope: the largest norm of dF/dx at the solution, of any block and image;
- sigma: the largest spectral norm of the free matrices inside F.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from imixer.analysis.contraction import contraction_along_depth
from imixer.analysis.images import held_out_images
from imixer.experiments.comparison import MARGIN, compare_means, judge
from imixer.experiments.sentences import interval_words, verdict_words
from imixer.implicit import Picard, SpectralLinear, solve
from imixer.models.probe import capture_activations
from imixer.notices import notices_on_stderr
from imixer.recipes import find_recipe
from imixer.tables import Grid, markdown, on_screen
from imixer.training.finished_run import load_run
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import build_config, parse, train_parser
from imixer.training.run.result import read_result
from imixer.training.train import train

LINES: dict[str, dict[str, Any]] = {
    "none": {},
    "jacobian_penalty 1": {"jacobian_penalty": 1.0},
    "trajectory_penalty 1": {"trajectory_penalty": 1.0},
    "correction_penalty 1": {"correction_penalty": 1.0},
    "detach_sigma": {"detach_sigma": True},
}
MEASURES = ("top-1, %", "left, %", "evaluations", "slope", "sigma")
IMAGES = 100


def measured(options: dict[str, Any], seed: int, out: Path) -> tuple[float, ...]:
    """Train a run, or read it if it is finished, and measure it."""
    if not RunDirectory(out).finished:
        more = {"model": {"name": "imixer_n2_8", **options}, "seed": seed, "out": str(out), "logger": "csv"}
        arguments = ["--config", str(find_recipe("digits")), "--config", yaml.safe_dump(more)]
        train(build_config(parse(train_parser(), arguments)))
    run = load_run(str(out), "cpu")
    images = held_out_images(run, IMAGES)
    blocks = contraction_along_depth(run.model, images)
    left, evaluations = 0.0, 0
    with torch.no_grad():
        for inside in capture_activations(run.model, images):
            left = max(left, float(inside.residual(torch.float32).norm() / inside.x.norm()))
            F, weights = inside.F, inside.F.weights()
            found = solve(lambda x, *w, F=F: F(x, list(w)), inside.z, weights, solver=Picard(rtol=1e-4, atol=0.0))
            evaluations = max(evaluations, found.n_evaluations)
    held = [m for m in run.model.modules() if isinstance(m, SpectralLinear)]
    slope = max(float(block.norms.max()) for block in blocks)
    sigma = max(float(layer.sigma(exact=True)) for layer in held)
    return 100 * read_result(RunDirectory(out)).last["val_acc"], 100 * left, evaluations, slope, sigma


def figures(measures: dict[str, list[tuple[float, ...]]]) -> Grid:
    """List what was measured of every run."""
    rows = [
        (line, str(seed), *(f"{value:.2f}" if value > 90 else f"{value:.3g}" for value in run))
        for line, runs in measures.items()
        for seed, run in enumerate(runs)
    ]
    return Grid(("option", "seed", *MEASURES), tuple(rows), text=1)


def differences(measures: dict[str, list[tuple[float, ...]]]) -> Grid:
    """Compare each line with the first, seed by seed."""
    base, *others = measures
    compared = {}
    for line in others:
        pairs = [
            compare_means(dict(enumerate(own)), dict(enumerate(plain)))
            for own, plain in zip(zip(*measures[line], strict=True), zip(*measures[base], strict=True), strict=True)
        ]
        compared[line] = [pair for pair in pairs if pair is not None]
    accuracy = judge([(pairs[0], MARGIN) for pairs in compared.values()])
    rows = []
    for (line, pairs), judgement in zip(compared.items(), accuracy, strict=True):
        judged = judge([(pair, MARGIN) for pair in pairs])  # for their intervals alone
        cells = [f"{each.comparison.difference:+.2f} {interval_words(each)}" for each in judged]
        rows.append((line, *cells, verdict_words(judgement)))
    return Grid(("option", *MEASURES, "accuracy"), tuple(rows), text=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("regularizers"))
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    began = time.perf_counter()
    measures: dict[str, list[tuple[float, ...]]] = {line: [] for line in LINES}
    with notices_on_stderr():
        for seed in range(args.seeds):
            for line, options in LINES.items():
                out = args.out / f"seed-{seed}" / line.replace(" ", "-")
                measures[line].append(measured(options, seed, out))
                print(seed, line, measures[line][-1], file=sys.stderr, flush=True)
    grids = (figures(measures), differences(measures))
    console = Console(width=None if sys.stdout.isatty() else 180)
    for grid, title in zip(grids, (f"digits, {args.seeds} seeds", "less the first line"), strict=True):
        console.print(on_screen(grid, title))
    print(f"{time.perf_counter() - began:.0f} s, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.markdown:
        args.markdown.write_text("\n".join(map(markdown, grids)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
