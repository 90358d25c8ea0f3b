"""List the parts of the GPU check, in order, with the time that each may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from imixer.gpu_check.journal import Bench


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Args:
        name: Name on the command line.
        title: Title of its section of the page.
        share: The time that it may take, in seconds of the eight minutes that all take. What one part leaves, the next
            one has.
        module: The module whose `run` does it, below `imixer.gpu_check`. An error in one part spoils no other.
    """

    name: str
    title: str
    share: float
    module: str

    @property
    def path(self) -> str:
        """The module's whole name."""
        return f"imixer.gpu_check.{self.module}"

    def load(self) -> Callable[[Bench], None]:
        """Import what does this part."""
        work: Callable[[Bench], None] = import_module(self.path).run
        return work


PARTS = (
    Part("hardware", "Versions, device, peaks", 15, "hardware"),
    Part("checks", "What holds", 75, "checks"),
    Part("kernel", "Fused token mixing", 25, "kernel"),
    Part("speed", "Training steps", 95, "speed"),
    Part("data", "Waiting for data", 20, "waiting"),
    Part("profile", "The ten largest kernels", 15, "kernels"),
    Part("pairs", "Training: iMixer and Mixer of as many multiply-adds", 140, "pairs"),
    Part("table3", "Training: the rows of Table 3", 60, "table3_rows"),
    Part("paper", "Training: a slice of the paper's recipe", 35, "paper_slice"),
)
