"""Run the `imixer` command: a file per command, which parses, calls and prints. Free of torch until one needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import imixer
from imixer.extras import MissingExtraError, require_extra

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, see `imixer.cli.dispatch.main`. Without the extra `train` there is none but `--version`.

    Args:
        argv: Words after `imixer`. Default: those of the process.

    Returns:
        The exit code: 2 if the extra is not installed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        require_extra("train", f"imixer {words[0]}" if words else "imixer")
        from imixer.cli import dispatch
    except MissingExtraError as error:  # what dispatches is not there either
        if words[:1] == ["--version"]:
            print(f"imixer {imixer.__version__}")
            return 0
        print(f"imixer: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while it is imported; the commands have their own
        print("imixer: interrupted", file=sys.stderr)
        return 130
    return dispatch.main(words)
