"""The `imixer` command, a file per command. Thin: parses, calls, prints. Free of torch until a command needs it."""

from imixer.cli.dispatch import main

__all__ = ["main"]
