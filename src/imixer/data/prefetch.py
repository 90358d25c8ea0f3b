"""Fetch the groups of streamed images ahead of training."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence

from imixer.errors import InputError

_THREADS = 4  # most of the time they wait for the network


class Prefetcher:
    """Threads that fetch the groups of the window that is read, and those of the next, into the cache.

    Choose it beside a loader of streamed images. It changes when images are there, and never which ones they are: what
    it has not fetched, the loader fetches itself. Start it after the loader's processes, which must not inherit it.

    Args:
        hold: Fetches a group into the cache if it is not there.
        windows: The groups of each window, in order.
    """

    def __init__(self, hold: Callable[[int], object], windows: Sequence[Sequence[int]]) -> None:
        self._hold = hold
        self._groups = [(number, group) for number, window in enumerate(windows) for group in window]
        self._next = self._reached = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, name="prefetch", daemon=True) for _ in range(_THREADS)]

    def start(self, window: int) -> None:
        """Start with a window.

        Args:
            window: Its number.
        """
        self._reached = window
        self._next = bisect.bisect_left(self._groups, (window,))
        for thread in self._threads:
            thread.start()

    def reach(self, window: int) -> None:
        """Say which window is being read.

        Args:
            window: Its number.
        """
        if window > self._reached:
            with self._changed:
                self._reached = window
                self._changed.notify_all()

    def stop(self) -> None:
        """Stop, after the groups at hand."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (group := self._take()) is not None:
            try:
                self._hold(group)
            except InputError:
                return  # the loader meets it too, and says so

    def _take(self) -> int | None:
        """Take the next group as soon as it is due. None: there is nothing left to fetch."""
        with self._changed:
            while not self._stopped and self._next < len(self._groups):
                window, group = self._groups[self._next]
                if window <= self._reached + 1:
                    self._next += 1
                    return group
                self._changed.wait()
        return None
