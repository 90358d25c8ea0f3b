"""What a command is, and what their parsers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        summary: What it does, in a line.
        build: Gives its parser.
        run: Runs it on what was parsed; returns its exit code, or nothing for 0.
    """

    summary: str
    build: Callable[[], ArgumentParser]
    run: Callable[[Namespace], int | None]


def new_parser(description: str) -> ArgumentParser:
    """A parser that raises on what it does not know, instead of ending the process."""
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description)


def run_parser(description: str) -> ArgumentParser:
    """A parser of RUN, --data and --device."""
    parser = new_parser(description)
    add_run(parser)
    return parser


def add_run(parser: ArgumentParser, several: bool = False) -> None:
    """Add RUN, of which there may be several, --data and --device."""
    many: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_argument("run", metavar="RUN", type=str, help="Run directory that `imixer train` made.", **many)
    parser.add_argument(
        "--data", metavar="PATH", type=str | None, help="Where the run's data lie now. Default: where they lay."
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="`cpu`, `cuda`, or `auto`: CUDA where there is any.",
    )
