"""Define what a command is, and the arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jsonargparse import ArgumentParser, Namespace


@dataclass(frozen=True)
class Command:
    """A command of `imixer`.

    Args:
        summary: What it does, in a line.
        build: Builds its parser.
        run: Runs it with the parsed arguments. Returns its exit code, or nothing for 0.
    """

    summary: str
    build: Callable[[], ArgumentParser]
    run: Callable[[Namespace], int | None]


def new_parser(description: str) -> ArgumentParser:
    """Build a parser that raises on unknown arguments, instead of ending the process."""
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description)


def run_parser(description: str) -> ArgumentParser:
    """Build a parser of RUN, --data, --device and --checkpoint."""
    parser = new_parser(description)
    add_run(parser)
    return parser


def add_run(parser: ArgumentParser, several: bool = False) -> None:
    """Add RUN, --data, --device and --checkpoint to a parser.

    Args:
        parser: The parser.
        several: Whether more than one RUN may be given.
    """
    nargs = "+" if several else None
    parser.add_argument("run", metavar="RUN", nargs=nargs, type=str, help="Run directory that `imixer train` made.")
    parser.add_argument(
        "--data", metavar="PATH", type=str | None, help="Where the run's data lie now. Default: where they lay."
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="`cpu`, `cuda`, or `auto`: CUDA where there is any.",
    )
    add_checkpoint(parser)


def add_checkpoint(parser: ArgumentParser) -> None:
    """Add --checkpoint to a parser."""
    parser.add_argument(
        "--checkpoint",
        choices=["last", "best"],
        default="last",
        help="Whose weights to take: those of the `last` epoch, or of the `best` on the held-out images. What comes of "
        "the best is written into RUN/best.",
    )
