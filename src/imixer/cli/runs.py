"""List the runs in a folder: `imixer runs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, new_parser
from imixer.cli.terminal import new_console
from imixer.progress import with_progress


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser(
        "List the runs in a folder, unfinished and damaged ones too: state, data, model, accuracy, date."
    )
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", type=str, default="runs", help="Folder of runs, at any depth."
    )
    parser.add_argument(
        "--sort",
        choices=["name", "accuracy", "date"],
        default="name",
        help="By name, or the highest `accuracy` (of a segmentation, mIoU) or the latest `date` first.",
    )
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    from imixer.training.run.result import best_by
    from imixer.training.run.summary import RunSummary, find_run_directories, summarize
    from imixer.training.run_tables import show_runs

    paths = find_run_directories(Path(args.folder))
    runs = list(with_progress(([summarize(path)] for path in paths), len(paths), "reading runs"))
    order: dict[str, Callable[[RunSummary], Any]] = {
        "accuracy": lambda each: -each.last[best_by(each.last)] if each.last else 1,
        "date": lambda each: -each.changed.timestamp(),
    }
    if args.sort in order:
        runs.sort(key=order[args.sort])
    show_runs(runs, new_console())


COMMAND = Command("List the runs in a folder.", build, run)
