"""Train a sweep: `imixer sweep`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, new_parser
from imixer.cli.executor import add_executor, build_executor
from imixer.cli.terminal import announce_loading, new_console


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser("Train a grid of configurations with several seeds each: what is not yet finished of it.")
    parser.add_argument(
        "spec",
        metavar="SPEC",
        type=str,
        help="YAML file with any of: name; recipe and config, to start from; set, settings; grid, lists of values by "
        "setting; cases, settings by name of the case; seeds, a number or a list.",
    )
    parser.add_argument("--out", metavar="DIR", type=str | None, help="Folder of the sweep. Default: sweeps/<name>.")
    add_executor(parser)
    parser.add_argument(
        "--share",
        metavar="I/N",
        type=str | None,
        help="Do only the I-th of N shares of the trials, from 0: for job arrays. Default: all.",
    )
    return parser


def run(args: Namespace) -> int:
    """Run the command and return its exit code."""
    from imixer.sweep.spec import read_sweep, select_share

    sweep = read_sweep(args.spec)
    trials = select_share(sweep, args.share or "0/1")
    executor = build_executor(args)
    from imixer.sweep.display import report_sweep
    from imixer.sweep.sweep import run_sweep

    announce_loading("the trials")
    results = run_sweep(sweep, args.out, executor, trials)
    report_sweep(results, new_console())
    return int(any(results[trial].status == "failed" for trial in trials))


COMMAND = Command("Train a grid of configurations and seeds, here or on Ray.", build, run)
