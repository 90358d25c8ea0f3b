"""Define what a command is, and the arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser, Namespace

from imixer.errors import InputError
from imixer.weights import find_packaged, packaged_models


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
    """Build a parser of RUN, --model, --data, --device and --checkpoint."""
    parser = new_parser(description)
    add_run(parser)
    return parser


def add_run(parser: ArgumentParser, several: bool = False, device: bool = True) -> None:
    """Add RUN, --model, --data, --checkpoint and --device to a parser. `chosen_runs` reads the first two.

    Args:
        parser: The parser.
        several: Whether more than one RUN may be given.
        device: Whether the device may be chosen.
    """
    nargs = "+" if several else None
    parser.add_argument("run", metavar="RUN", nargs=nargs, type=str, help="Run directory that `imixer train` made.")
    parser.add_argument(
        "--model",
        metavar="NAME",
        nargs=nargs,
        type=str,
        help=f"Packaged model in the place of RUN: {', '.join(packaged_models()) or 'there is none'}. What is written "
        "goes into the folder NAME.",
    )
    parser.add_argument(
        "--data", metavar="PATH", type=str | None, help="Where the run's data lie now. Default: where they lay."
    )
    add_checkpoint(parser)
    if device:
        add_device(parser)


def add_device(parser: ArgumentParser) -> None:
    """Add --device to a parser."""
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="`cpu`, `cuda`, or `auto`: CUDA where there is any.",
    )


def add_checkpoint(parser: ArgumentParser) -> None:
    """Add --checkpoint to a parser."""
    parser.add_argument(
        "--checkpoint",
        choices=["last", "best"],
        default="last",
        help="Whose weights to take: those of the `last` epoch, or of the `best` on the held-out images. What comes of "
        "the best is written into RUN/best.",
    )


def relax_run(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Ask for no RUN where `--model` is among the words. argparse cannot say that one of two is required."""
    if any(word.partition("=")[0] == "--model" for word in words):
        for action in parser._actions:
            if action.dest in ("run", "images"):  # images follow RUN, and are missing with it
                action.required = False


def chosen_runs(runs: Sequence[str] | None, models: Sequence[str] | None) -> list[str]:
    """Return the directories of runs and of packaged models, in this order.

    Args:
        runs: The words in the place of RUN.
        models: The names after --model.

    Raises:
        InputError: If there is no such packaged model.
    """
    return [*(runs or ()), *(str(find_packaged(name)) for name in models or ())]


def chosen_run(run: str | None, model: str | None) -> str:
    """Return the directory of the run, or of the packaged model.

    Raises:
        InputError: If both are given, or there is no such packaged model.
    """
    if run is not None and model is not None:
        raise InputError(f"model is {model}, and {run} is given in the place of RUN; leave one of them out")
    return chosen_runs([run] if run is not None else (), [model] if model is not None else ())[0]
