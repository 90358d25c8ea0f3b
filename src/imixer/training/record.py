"""Write down each epoch: CSV rows, and a logger's scalars."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch

from imixer.training.atomic import write_text
from imixer.training.loggers import Logger
from imixer.training.run_directory import RunDirectory

Row = Dict[str, Any]


class Record:
    """Keeps `metrics.csv`, a row per epoch, and `convergence.csv`, a row per epoch and block; tells a logger too.

    Args:
        run: Where to write.
        logger: What else is told.

    Attributes:
        images_per_s: Training images over all processes, over the time spent training, in the last epoch.
    """

    def __init__(self, run: RunDirectory, logger: Logger) -> None:
        self.run, self.logger = run, logger
        self.images_per_s = 0.0
        self._began, self._images = 0.0, 0

    def restart(self, rows: Sequence[Row]) -> None:
        """Drop what was written after a checkpoint that training goes back to.

        Args:
            rows: The epochs that the checkpoint knows.
        """
        _rewrite(self.run.metrics, [_plain(row) for row in rows])
        if self.run.convergence.is_file():
            with self.run.convergence.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["epoch"]) <= len(rows)]
            _rewrite(self.run.convergence, kept)

    def begin_epoch(self) -> None:
        """Start the clock of an epoch's training."""
        self._began, self._images = time.perf_counter(), 0

    def count(self, images: int) -> None:
        """Count images as trained on."""
        self._images += images

    def end_training(self, device: torch.device) -> None:
        """Stop the clock, once the device has done its work."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.images_per_s = round(self._images / (time.perf_counter() - self._began), 1)

    def write(self, row: Row, blocks: List[Dict[str, float]]) -> None:
        """Add an epoch.

        Args:
            row: Its numbers.
            blocks: How its inverses converge, see `convergence`.
        """
        _append(self.run.metrics, [_plain(row)])
        _append(self.run.convergence, [_plain({"epoch": row["epoch"]} | block) for block in blocks])
        scalars = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        for block in blocks:
            scalars |= {f"{name}/block_{block['block']}": v for name, v in block.items() if name != "block"}
        self.logger.log(scalars, row["step"])

    def close(self) -> None:
        """Finish the logger."""
        self.logger.close()


def _plain(row: Row) -> Row:
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def _append(path: Path, rows: Sequence[Row]) -> None:
    if not rows:
        return
    with path.open("a", newline="", encoding="utf-8") as file:
        _write(file, rows, header=file.tell() == 0)


def _rewrite(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    if rows:
        _write(text, rows, header=True)
    write_text(path, text.getvalue())


def _write(file: Any, rows: Sequence[Row], *, header: bool) -> None:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
