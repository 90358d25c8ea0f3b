"""From the words of a command line to a command and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Dict, List, Optional

from jsonargparse import ArgumentParser

import imixer
from imixer.cli import analyze, evaluate, export, predict, recall, recipes, replay, report, reproduce, sweep, train
from imixer.cli.command import Command
from imixer.errors import InputError
from imixer.escaping import one_line
from imixer.training.parsing import hoist, parse
from imixer.training.suggest import nearest

_COMMANDS: Dict[str, Command] = {
    "train": train.COMMAND,
    "sweep": sweep.COMMAND,
    "reproduce": reproduce.COMMAND,
    "replay": replay.COMMAND,
    "recipes": recipes.COMMAND,
    "evaluate": evaluate.COMMAND,
    "predict": predict.COMMAND,
    "analyze": analyze.COMMAND,
    "recall": recall.COMMAND,
    "report": report.COMMAND,
    "export": export.COMMAND,
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command.

    Args:
        argv: Words after `imixer`. Default: those of the process.

    Returns:
        0 if all went well, 1 if a run does not meet what `--require` asks or a trial failed, 2 if the user can mend
        what is wrong, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"imixer: {one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "NotConvergedError":  # of imixer.implicit, which nobody may have needed yet
            raise
        print(f"imixer: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"imixer: interrupted {one_line(error)}".rstrip(), file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except SystemExit as error:  # --help and the like
        return error.code if isinstance(error.code, int) else 0


def _run(argv: List[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "--version"):
        print(f"imixer {imixer.__version__}") if argv[:1] == ["--version"] else _help()
        return 0
    name, *rest = argv
    if name not in _COMMANDS:
        raise InputError(f"no command {name!r}{nearest(name, _COMMANDS)}; `imixer --help` lists them")
    command = _COMMANDS[name]
    parser = command.build()
    parser.prog = f"imixer {name}"
    words = hoist(rest) if name == "train" else rest
    return command.run(parse(parser, words)) or 0


def _help() -> None:
    parser = ArgumentParser(prog="imixer", description="Train, evaluate and use iMixers and other timm models.")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    commands = parser.add_subcommands(metavar="COMMAND", title="`imixer COMMAND --help` tells more")
    for name, command in _COMMANDS.items():
        commands.add_subcommand(name, command.build(), help=command.summary)
    parser.print_help()
