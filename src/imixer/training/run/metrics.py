"""Write the metrics of each epoch: rows of CSV files, and scalars of a logger."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers import Logger

from imixer.reading import read_rows
from imixer.timing import wait_for
from imixer.training.run.directory import RunDirectory
from imixer.writing import csv_text, write_csv

Row = dict[str, Any]  # of an epoch
_log = logging.getLogger(__name__)


class MetricsWriter:
    """A writer of `metrics.csv`, a row per epoch, and of `convergence.csv`, a row per epoch and block.

    It passes the same numbers on to a logger.

    Args:
        run: The directory to write to.
        logger: The logger, or None.

    Attributes:
        images_per_s: The training images of all processes per second spent training, in the epoch at hand.
    """

    def __init__(self, run: RunDirectory, logger: Logger | None) -> None:
        self.run, self.logger = run, logger
        self.images_per_s = 0.0
        self._began, self._images = 0.0, 0

    def restart(self, rows: Sequence[Row], *, measured: bool = True) -> None:
        """Drop rows that were written after the checkpoint that training goes back to, and rows that are damaged.

        `metrics.csv` is written again from the checkpoint. A warning names what `convergence.csv` has lost.

        Args:
            rows: The rows of the epochs up to the checkpoint.
            measured: Whether there should be rows in `convergence.csv`.
        """
        write_csv(self.run.metrics, [_formatted(row) for row in rows])
        path = self.run.convergence
        there, damaged = read_rows(path, ("epoch", "block"))
        kept = [row for row in there if float(row["epoch"]) <= len(rows)]
        if damaged or kept or path.is_file():
            write_csv(path, kept)
        lost = sorted(set(range(1, len(rows) + 1)) - {int(float(row["epoch"])) for row in kept})
        if measured and lost:
            state = f"has {damaged} damaged lines" if damaged else "lacks lines"
            epochs = f"epoch {lost[0]}" if len(lost) == 1 else f"epochs {lost[0]} to {lost[-1]}"
            _log.warning(f"{path} {state}; how the inverses converged in {epochs} is lost, all else goes on")

    def begin_epoch(self) -> None:
        """Start the clock of an epoch's training."""
        self._began, self._images = time.perf_counter(), 0

    def count(self, images: int) -> None:
        """Count images that were trained on."""
        self._images += images

    def measure_speed(self, device: torch.device) -> None:
        """Measure the speed of an epoch's training so far, once the device has done its work."""
        wait_for(device)
        if self._images:  # else all were before the checkpoint that training goes on from, which has their speed
            self.images_per_s = round(self._images / (time.perf_counter() - self._began), 1)

    def write(self, row: Row, blocks: list[dict[str, float]]) -> None:
        """Write the metrics of an epoch.

        Args:
            row: The metrics, by name.
            blocks: The convergence of each block's inverse; see `imixer.training.monitor.convergence`.
        """
        _append(self.run.metrics, [_formatted(row)])
        _append(self.run.convergence, [_formatted({"epoch": row["epoch"]} | block) for block in blocks])
        if self.logger is None:
            return
        scalars = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        for block in blocks:
            scalars |= {f"{name}/block_{block['block']}": v for name, v in block.items() if name != "block"}
        self.logger.log_metrics(scalars, row["step"])
        self.logger.save()

    def close(self) -> None:
        """Close the logger."""
        if self.logger is not None:
            self.logger.finalize("success")


def _formatted(row: Row) -> Row:
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def _append(path: Path, rows: Sequence[Row]) -> None:
    if not rows:
        return
    with path.open("a", newline="", encoding="utf-8") as file:
        header = list(rows[0])
        cells = ([row[name] for name in header] for row in rows)
        file.write(csv_text(header if file.tell() == 0 else [], cells))
