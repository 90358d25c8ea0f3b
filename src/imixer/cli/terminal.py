"""Say what a command is doing, and open the console it prints to."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from imixer.console import PlainConsole, width_for


def announce_loading(what: str, library: str = "PyTorch") -> None:
    """Say on stderr that a library which takes seconds to import is being loaded.

    Args:
        what: What is loaded after it.
        library: The library.
    """
    # OpenMP threads that spin for long while idle slow small models tenfold on a machine that does something else too.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    print(f"loading {library} and {what} ...", file=sys.stderr, flush=True)


def new_console() -> Console:
    """Open the console that tables and lines are printed to."""
    return PlainConsole(width=width_for(sys.stdout))
