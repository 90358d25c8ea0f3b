"""Show what is known of a run: `imixer show`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, new_parser
from imixer.cli.terminal import new_console
from imixer.errors import InputError
from imixer.escaping import shell_word


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser("Show all that is known of a run, finished or not: state, accuracy, settings, files.")
    parser.add_argument("run", metavar="RUN", type=str, help="Run directory that `imixer train` made.")
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    from imixer.training.run.summary import find_run_directories, summarize
    from imixer.training.run_tables import show_run

    path = Path(args.run)
    if find_run_directories(path) != [path]:
        raise InputError(f"{path} is a folder of runs; `imixer runs {shell_word(path)}` lists them")
    show_run(summarize(path), new_console())


COMMAND = Command("Show what is known of a run.", build, run)
