"""Run the command that a command line names, and turn errors into one line and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

import imixer
from imixer.cli import (
    analyze,
    compare,
    evaluate,
    explore,
    export,
    models,
    predict,
    push,
    recall,
    recipes,
    replay,
    report,
    reproduce,
    runs,
    show,
    sweep,
    train,
)
from imixer.cli.command import Command, relax_run
from imixer.errors import InputError, did_you_mean, user_line
from imixer.escaping import one_line
from imixer.notices import notices_on_stderr
from imixer.training.run.parsing import expand_config_flags, parse

_COMMANDS: dict[str, Command] = {
    "train": train.COMMAND,
    "sweep": sweep.COMMAND,
    "reproduce": reproduce.COMMAND,
    "replay": replay.COMMAND,
    "recipes": recipes.COMMAND,
    "models": models.COMMAND,
    "runs": runs.COMMAND,
    "show": show.COMMAND,
    "evaluate": evaluate.COMMAND,
    "compare": compare.COMMAND,
    "predict": predict.COMMAND,
    "analyze": analyze.COMMAND,
    "recall": recall.COMMAND,
    "explore": explore.COMMAND,
    "report": report.COMMAND,
    "export": export.COMMAND,
    "push": push.COMMAND,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after `imixer`. Default: those of the process.

    Returns:
        The exit code: 0 if all went well; 1 if a trial failed, or a run does not meet what `--require` asks; 2 if the
        user can mend the error; 130 after Ctrl-C; 143 after SIGTERM; 141 if the reader of the output is gone.
    """
    _open_missing_streams()
    _escape_what_the_encoding_lacks()
    try:
        with notices_on_stderr():
            code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _reader_gone()
    except InputError as error:
        return _refuse(error)
    except (OSError, MemoryError, RuntimeError) as error:
        if (line := user_line(error)) is None:
            raise
        return _refuse(line)
    except KeyboardInterrupt as error:
        print(f"imixer: interrupted {one_line(error)}".rstrip(), file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except SystemExit as error:  # --help and the like
        return error.code if isinstance(error.code, int) else 0


def _refuse(error: object) -> int:
    """Say in one line what is wrong, and return the exit code."""
    print(f"imixer: {one_line(error)}", file=sys.stderr)
    return 2


def _open_missing_streams() -> None:
    """Open stdout and stderr to nowhere, if the process was started without them.

    Otherwise the next file to be opened, such as a checkpoint, would take their number and what is printed.
    """
    if sys.stdout is None or sys.stderr is None:
        while os.open(os.devnull, os.O_RDWR) < 2:  # the lowest that is free
            pass
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _escape_what_the_encoding_lacks() -> None:
    """Let stdout write letters that its encoding does not have as escapes, as stderr does by default."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _reader_gone() -> int:
    """End without a word, as by SIGPIPE, once nobody reads the output any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 128 + signal.SIGPIPE


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "--version"):
        print(f"imixer {imixer.__version__}") if argv[:1] == ["--version"] else _help()
        return 0
    name, *rest = argv
    if name not in _COMMANDS:
        raise InputError(f"no command {name!r}{did_you_mean(name, _COMMANDS)}; `imixer --help` lists them")
    command = _COMMANDS[name]
    parser = command.build()
    parser.prog = f"imixer {name}"
    words = expand_config_flags(rest) if name == "train" else rest
    relax_run(parser, words)
    return command.run(parse(parser, words)) or 0


def _help() -> None:
    parser = ArgumentParser(prog="imixer", description="Train, evaluate and use iMixers and other timm models.")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    commands = parser.add_subcommands(metavar="COMMAND", title="`imixer COMMAND --help` tells more")
    for name, command in _COMMANDS.items():
        commands.add_subcommand(name, command.build(), help=command.summary)
    parser.print_help()
