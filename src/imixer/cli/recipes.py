"""List the recipes: `imixer recipes`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, new_parser
from imixer.recipes import recipes


def build() -> ArgumentParser:
    """Build the parser of the command."""
    return new_parser("List the recipes that ship with the package, for `imixer train --recipe`.")


def run(args: Namespace) -> None:
    """Run the command."""
    known = recipes()
    width = max(map(len, known))
    for name, description in known.items():
        print(f"{name:{width}}  {description}")


COMMAND = Command("List the recipes.", build, run)
