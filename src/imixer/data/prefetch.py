"""Fetch the groups of streamed images ahead of training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from imixer.errors import InputError


class Prefetcher:
    """A thread that fetches the groups of the window that is read, and those of the next, into the cache.

    Choose it beside a loader of streamed images. It changes when images are there, and never which ones they are: what
    it has not fetched, the loader fetches itself. Start it after the loader's processes, which must not inherit it.

    Args:
        hold: Fetches a group into the cache if it is not there.
        windows: The groups of each window, in order.
    """

    def __init__(self, hold: Callable[[int], None], windows: Sequence[Sequence[int]]) -> None:
        self._hold, self._windows = hold, windows
        self._reached = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def start(self, window: int) -> None:
        """Start with a window.

        Args:
            window: Its number.
        """
        self._reached = window
        self._thread.start()

    def reach(self, window: int) -> None:
        """Say which window is being read.

        Args:
            window: Its number.
        """
        if window > self._reached:
            with self._changed:
                self._reached = window
                self._changed.notify()

    def stop(self) -> None:
        """Stop, after the group at hand."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        for number in range(self._reached, len(self._windows)):
            with self._changed:
                while not self._stopped and number > self._reached + 1:
                    self._changed.wait()
            for group in self._windows[number]:
                if self._stopped:
                    return
                try:
                    self._hold(group)
                except InputError:
                    return  # the loader meets it too, and says so
