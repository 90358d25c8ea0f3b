"""Keep the memory of one training step for the next, instead of giving it back to the system."""

from __future__ import annotations

import ctypes
import os
import platform

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory, so that every training step finds the pages of the last one.

    A step on a CPU allocates and frees each activation. By default glibc gives large blocks back, and the system then
    clears every page again: from a sixth of a small model's step to two thirds of one whose activations take 100 MB
    each. The process's peak memory may grow by a quarter. A user's own setting, in `MALLOC_TRIM_THRESHOLD_`,
    `MALLOC_MMAP_THRESHOLD_`, `MALLOC_MMAP_MAX_` or `GLIBC_TUNABLES`, is left alone.

    Returns:
        Whether that could be set: it cannot with another C library than glibc.
    """
    ours = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"}
    if platform.libc_ver()[0] != "glibc" or ours & os.environ.keys():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Blocks above 32 MiB would be mapped, whatever the threshold for it: so none is.
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
