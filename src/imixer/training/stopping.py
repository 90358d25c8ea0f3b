"""A polite end on SIGTERM and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

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
    """Whether, and by which signal, training was asked to stop.

    Args:
        loud: Say so on stderr: one of several processes does.
    """

    def __init__(self, loud: bool = False) -> None:
        self._loud = loud
        self.signal_number: int | None = None
        self._asked = 0.0

    def ask(self, number: int, _frame: Any = None) -> None:
        """Ask to stop after the step at hand; ask again to stop at once."""
        now = time.monotonic()
        if self.signal_number is not None and now - self._asked > _PATIENCE_S:
            raise KeyboardInterrupt
        if self._loud and self.signal_number is None:
            said = f"{signal.Signals(number).name}: stopping after this step, which is saved first ...\n"
            with suppress(OSError):  # print might be interrupted by this very signal, and cannot be entered twice
                os.write(2, said.encode())
        self.signal_number, self._asked = number, now


@contextmanager
def on_request(loud: bool = False) -> Iterator[StopRequest]:
    """Within it, SIGTERM and SIGINT ask to stop instead of stopping; in the main thread only, as Python has it."""
    request = StopRequest(loud)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
