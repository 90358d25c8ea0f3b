"""What the user sees while a command works, and where it prints."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from imixer.escaping import PlainConsole


def announce_loading(what: str, library: str = "PyTorch") -> None:
    """Say that a library that takes seconds to import is on its way, and what after it."""
    # OpenMP threads that spin for long while idle slow small models tenfold on a machine that does something else too.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    print(f"loading {library} and {what} ...", file=sys.stderr, flush=True)


def new_console() -> Console:
    """Where tables and lines go."""
    # A pipe has no width: lines stay whole.
    return PlainConsole(width=None if sys.stdout.isatty() else 160)
