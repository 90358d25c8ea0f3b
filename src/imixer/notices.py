"""Show on stderr what the library logs: warnings, and notices of what it does beside what it was asked for.

The library logs with the standard `logging`, to loggers below `imixer`. The commands show its messages as they are, one
a line. In a program of your own, warnings go to stderr by default; `logging.getLogger("imixer")` is where to silence
or redirect them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ROOT = logging.getLogger("imixer")


class _StderrHandler(logging.Handler):
    """Print each message to the stderr of the moment, which may be redirected to the log of a trial."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


@contextmanager
def notices_on_stderr() -> Iterator[None]:
    """Show notices and warnings on stderr within the context, as the commands do. Contexts may be nested."""
    if any(isinstance(handler, _StderrHandler) for handler in _ROOT.handlers):
        yield
        return
    level, propagate, handler = _ROOT.level, _ROOT.propagate, _StderrHandler()
    _ROOT.addHandler(handler)
    _ROOT.setLevel(logging.INFO)
    _ROOT.propagate = False  # a library such as wandb may have its own handler, which would say all a second time
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        _ROOT.setLevel(level)
        _ROOT.propagate = propagate
