"""Define what a sweep consists of: cells, trials and the sweep itself. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imixer.training.run.config import TrainConfig


@dataclass(frozen=True)
class SweepCell:
    """One configuration, to be trained with several seeds.

    Args:
        name: Unique in its sweep, and safe as the name of a folder.
        settings: Settings in which it differs from the other cells, by dotted name.
        config: Its whole configuration. Each trial sets `seed` and `out` itself.
        seeds: Seeds that it is trained with.
    """

    name: str
    settings: dict[str, Any] = field(hash=False)
    config: TrainConfig = field(hash=False)
    seeds: tuple[int, ...] = (0,)

    @property
    def epochs(self) -> int | None:
        """Epochs that a trial trains, cool-down included. None where steps, a budget or minutes decide."""
        return self.config.all_epochs if self.config.length_in_epochs else None


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep: a cell with a seed."""

    cell: SweepCell
    seed: int

    @property
    def name(self) -> str:
        """Path of its run directory within the sweep's folder."""
        return f"{self.cell.name}/seed-{self.seed}"

    def config(self, folder: Path) -> TrainConfig:
        """Return the configuration to train.

        Args:
            folder: Folder of the sweep.
        """
        return replace(self.cell.config, seed=self.seed, out=str(folder / self.name))


@dataclass(frozen=True)
class Sweep:
    """Configurations to train, each with several seeds. `build_sweep` makes one from a specification.

    Args:
        name: Name of its folder.
        cells: Its configurations.
        seeds: Seeds of all cells together. A cell may have fewer.
        spec: A specification from which `build_sweep` makes the same sweep, without recipe or other files.
    """

    name: str
    cells: tuple[SweepCell, ...]
    seeds: tuple[int, ...]
    spec: dict[str, Any]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials: every cell with the first seed, then with the second, so that an early look sees all cells."""
        return tuple(Trial(cell, seed) for seed in self.seeds for cell in self.cells if seed in cell.seeds)
