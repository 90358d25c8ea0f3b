"""Stop training on SIGTERM and Ctrl-C, after the step at hand is finished and saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_PATIENCE_S = 1.0  # a terminal sends Ctrl-C to launcher and workers alike, so that a worker may get it twice


class Interrupted(KeyboardInterrupt):
    """An interruption of training by a signal. Catch it to exit with `exit_code`.

    Args:
        message: A line that says what is saved and how to go on.
        signal_number: The signal.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """The exit code of a process that ends by the signal: by convention, 128 plus its number."""
        return 128 + self.signal_number


def interrupt(number: int, _frame: FrameType | None = None) -> None:
    """Stop at once, as Ctrl-C does, with the exit code of the signal: a handler of `signal.signal`.

    Args:
        number: The signal.

    Raises:
        Interrupted: Always.
    """
    raise Interrupted("", number)


class StopRequest:
    """A request to stop, which the training loop looks at after each step.

    Args:
        loud: Whether to answer on stderr; one of several processes does.

    Attributes:
        signal_number: The signal that asked to stop; None as long as none has.
    """

    def __init__(self, loud: bool = False) -> None:
        self._loud = loud
        self.signal_number: int | None = None
        self._asked = 0.0

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """Ask to stop after the step at hand. Asking again, later, stops at once.

        Args:
            number: The signal.

        Raises:
            KeyboardInterrupt: If it asks again.
        """
        now = time.monotonic()
        if self.signal_number is not None and now - self._asked > _PATIENCE_S:
            raise KeyboardInterrupt
        if self._loud and self.signal_number is None:
            answer = f"{signal.Signals(number).name}: stopping after this step, which is saved first ...\n"
            with suppress(
                OSError
            ):  # print and logging may be interrupted by this very signal, and cannot be entered twice
                os.write(2, answer.encode())
        self.signal_number, self._asked = number, now


@contextmanager
def stop_on_signals(loud: bool = False) -> Iterator[StopRequest]:
    """Let SIGTERM and SIGINT ask to stop, instead of stopping, within the context.

    In another thread than the main one, Python does not hand over signals, and nothing changes.

    Args:
        loud: Whether to answer on stderr; one of several processes does.

    Yields:
        The request, which says whether a signal has asked to stop.
    """
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
