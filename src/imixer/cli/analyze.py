"""`imixer analyze`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, add_run, new_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError

# What each looks at, and the options it takes.
_ANALYSES = {
    "energy": ("of every mixing step as a Hopfield network, and how symmetric its couplings are", ("images", "data")),
    "contraction": (
        "whether each inverse exists, in theory and on images, and the error that the iterations leave",
        ("images", "data", "require"),
    ),
    "inverse": ("what of each iMLP's input can be recovered from its inner state", ("images", "data")),
    "iterations": (
        "accuracy and latency against the number of iterations, and against a tolerance",
        ("images", "data"),
    ),
    "convergence": (
        "how far and in which direction each iteration moves the inner state",
        ("images", "data", "n_iter", "seed", "out"),
    ),
    "features": (
        "what each iteration of one block makes of one image, as feature maps",
        ("image", "data", "n_iter", "block"),
    ),
    "weights": ("token mixing matrices as pictures over the token grid", ()),
    "ood": (
        "whether energies, residuals and logits tell images of another kind from the run's own",
        ("images", "data", "against"),
    ),
}


def build() -> ArgumentParser:
    """Its parser."""
    parser = new_parser(
        "Measure a run, print a table, and write it and a figure into RUN/analysis. `convergence` compares several."
    )
    parser.add_argument(
        "what",
        metavar="WHAT",
        choices=list(_ANALYSES),
        help="; ".join(f"`{name}`: {what}" for name, (what, _) in _ANALYSES.items()) + ".",
    )
    add_run(parser, several=True)
    parser.add_argument(
        "--images",
        type=int | None,
        help="Held-out images to measure on, evenly spread. Default: 64; for `iterations` and `ood` all. For "
        "`convergence` drawn at random, 16.",
    )
    parser.add_argument(
        "--require",
        choices=["guaranteed", "observed"],
        help="For `contraction`: exit with 1 unless every block is a contraction, for any input (`guaranteed`) or at "
        "least on the images (`observed`).",
    )
    parser.add_argument(
        "--n_iter",
        type=int | None,
        help="For `convergence` and `features`: iterations to look at. Default: as trained; of several runs 10, or one "
        "more than the largest of theirs.",
    )
    parser.add_argument("--seed", type=int | None, help="For `convergence`: of the draw of images. Default: 0.")
    parser.add_argument(
        "--image",
        type=int | str | None,
        help="For `features`: number of a held-out image, or an image file. Default: 0.",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="DATA",
        type=str,
        help="For `ood`: images of another kind, as `noise`, `shuffled`, `rotated` or `inverted`, made from the run's "
        "own, or a data set, as for --data.name. Default: those four.",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=str | None,
        help="For `convergence` of several runs: folder to write into. Default: the folder analysis of the first.",
    )
    parser.add_argument("--block", type=int | None, help="For `features`: which, from 0. Default: the last.")
    return parser


def run(args: Namespace) -> int:
    """Run it; gives its exit code."""
    given = {name: value for name, value in args.as_dict().items() if value is not None}
    what, runs, device = (given.pop(name) for name in ("what", "run", "device"))
    for name, value in given.items():
        if name not in _ANALYSES[what][1]:
            raise InputError(f"{name} is {value}, of which analyze {what} has no use; leave it out")
    if what == "convergence" and len(runs) > 1:
        return _compare(runs, device, **given)
    if len(runs) > 1:
        raise InputError(
            f"analyze {what} measures one run, and {len(runs)} are given, from {runs[0]} to {runs[-1]}; give one"
        )
    if "out" in given:
        raise InputError(f"out is {given['out']}, and what is found of a single run goes into it; leave it out")
    require = given.pop("require", None)
    announce_loading("the run")
    from imixer.analysis.analyze import analyze

    analysis = import_module(f"imixer.analysis.views.{what}").ANALYSIS
    found, folder = analyze(analysis, runs[0], device=device, **given)
    console = new_console()
    analysis.show(found, console)
    files = (folder / f"{what}.{kind}" for kind in ("json", "png", "pdf"))
    console.print(f"written: {', '.join(str(file) for file in files if file.exists())}", soft_wrap=True)
    return _judge(found, require) if require else 0


def _compare(paths: Sequence[str], device: str, out: str | None = None, **options: Any) -> int:
    """Compare the convergence of several runs; gives the exit code."""
    announce_loading("the runs")
    from imixer.analysis.convergence import compare_convergence
    from imixer.analysis.views.convergence import show_comparison, write_comparison
    from imixer.training.finished_run import load_run

    runs = [load_run(path, device) for path in paths]
    found = compare_convergence(runs, **options)
    files = write_comparison(found, Path(out) if out is not None else runs[0].directory.analysis)
    console = new_console()
    show_comparison(found, console)
    console.print(f"written: {', '.join(map(str, files))}", soft_wrap=True)
    return 0


def _judge(blocks: Any, require: Any) -> int:
    """The exit code that `--require` asks for; says why if it is not 0."""
    from imixer.analysis.contraction import failed_blocks

    problem = failed_blocks(blocks, require)
    if problem:
        print(f"imixer: {problem}", file=sys.stderr)
    return 1 if problem else 0


COMMAND = Command("Measure a trained model.", build, run)
