"""Keep the memory of one training step for the next, instead of giving it back to the system."""

from __future__ import annotations

import ctypes
import os
import platform

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1  # the most that it takes, in bytes
_HIGHEST_MMAP_THRESHOLD = 2**25  # likewise


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory, so that every training step finds the pages of the last one.

    A step on a CPU allocates and frees each activation. By default glibc gives large blocks back, and the system then
    clears every page again: a sixth of a small model's step. The process's peak memory stays what it is. A user's own
    setting, in `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_` or `GLIBC_TUNABLES`, is left alone.

    Returns:
        Whether that could be set: it cannot with another C library than glibc.
    """
    ours = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
    if platform.libc_ver()[0] != "glibc" or ours & os.environ.keys():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _HIGHEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _NEVER))
