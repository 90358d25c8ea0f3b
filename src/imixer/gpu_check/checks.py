"""Try all promises about a device, one after the other."""

from __future__ import annotations

import time
import traceback

from imixer.errors import in_short
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.model_promises import MODEL_PROMISES
from imixer.gpu_check.promise import Place, Promise
from imixer.gpu_check.training_promises import TRAINING_PROMISES

PROMISES: tuple[Promise, ...] = (*MODEL_PROMISES, *TRAINING_PROMISES)


def promises_on(kind: str, *, slow: bool) -> list[Promise]:
    """Choose the promises that a kind of device can try, those that take longer last.

    Args:
        kind: `cpu` or `cuda`.
        slow: Whether to include those that take more than a second on a CPU.
    """
    chosen = [each for each in PROMISES if (kind == "cuda" or not each.only_cuda) and (slow or not each.slow)]
    return sorted(chosen, key=lambda each: each.slow)


def run(bench: Bench) -> None:
    """Write down which promises hold, and how far off each is."""
    chosen = promises_on(bench.device.type, slow=not bench.tiny)
    for number, promise in enumerate(chosen):
        if bench.skipped(f"the last {len(chosen) - number} of {len(chosen)} promises"):
            return
        folder = bench.folder / str(number)
        folder.mkdir()
        began, off, why = time.monotonic(), None, None
        try:
            off = promise.attempt(Place(bench.device, folder))
        except Exception as error:  # whatever it is, the other promises are tried
            traceback.print_exc()
            why = f"{type(error).__name__}: {in_short(error, 160)}"
        cells = {"promise": promise.name, "holds": why is None, "why_not": why}
        bench.row("Promises", **cells, off=off, seconds=time.monotonic() - began)
