"""What a sweep consists of. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imixer.training.run.config import TrainConfig


@dataclass(frozen=True)
class Cell:
    """One configuration, to be trained with several seeds.

    Args:
        name: Unique in its sweep, and safe as the name of a folder.
        settings: What sets it apart from the other cells, by dotted name.
        config: The whole configuration; its `seed` and `out` are the trial's to set.
        seeds: Its seeds.
    """

    name: str
    settings: dict[str, Any] = field(hash=False)
    config: TrainConfig = field(hash=False)
    seeds: tuple[int, ...] = (0,)

    @property
    def epochs(self) -> int:
        """Epochs that a trial trains, cool-down included."""
        return self.config.epochs + self.config.schedule.cooldown_epochs


@dataclass(frozen=True)
class Trial:
    """A cell with a seed: one training run."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """Where its run directory lies, in the sweep's."""
        return f"{self.cell.name}/seed-{self.seed}"

    def config(self, folder: Path) -> TrainConfig:
        """What to train, for a sweep in `folder`."""
        return replace(self.cell.config, seed=self.seed, out=str(folder / self.name))


@dataclass(frozen=True)
class Sweep:
    """Cells times seeds.

    Args:
        name: Name of its folder.
        cells: The configurations.
        seeds: The seeds of all cells together. Cells share them, but for those that have fewer.
        spec: What `build_sweep` makes the same sweep from, without recipe or other files.
    """

    name: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    spec: dict[str, Any]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """In order: every cell with the first seed, then with the second, so that an early look sees all cells."""
        return tuple(Trial(cell, seed) for seed in self.seeds for cell in self.cells if seed in cell.seeds)
