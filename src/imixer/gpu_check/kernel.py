"""Compare the fused token mixing with the one it replaces."""

from __future__ import annotations

from imixer.gpu_check.journal import Bench


def run(bench: Bench) -> None:
    """Write down whether it is right, and how fast it is."""
    bench.note("none yet")
