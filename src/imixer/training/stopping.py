"""A polite end on SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

_PATIENCE_S = 1.0  # a terminal sends Ctrl-C to launcher and workers alike, so that a worker may get it twice


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop; the message says what is saved.

    Args:
        message: What is saved and how to go on.
        signal_number: Which signal asked.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """By convention, 128 and the signal's number."""
        return 128 + self.signal_number


class StopRequest:
    """Whether, and by which signal, training was asked to stop."""

    def __init__(self) -> None:
        self.signal_number: Optional[int] = None
        self._asked = 0.0

    def ask(self, number: int, _frame: Any = None) -> None:
        """Ask to stop after the step at hand; ask again to stop at once."""
        now = time.monotonic()
        if self.signal_number is not None and now - self._asked > _PATIENCE_S:
            raise KeyboardInterrupt
        self.signal_number, self._asked = number, now


@contextmanager
def on_request() -> Iterator[StopRequest]:
    """Within it, SIGTERM and SIGINT ask to stop instead of stopping; in the main thread only, as Python has it."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
