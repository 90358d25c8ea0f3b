"""Run the `imixer` command: a file per command, which parses, calls and prints. Free of torch until one needs it."""

from imixer.cli.dispatch import main

__all__ = ["main"]
