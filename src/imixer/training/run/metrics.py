"""Write down each epoch: CSV rows, and a logger's scalars."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from imixer.reading import read_rows
from imixer.training.run.directory import RunDirectory
from imixer.training.run.loggers import Logger
from imixer.writing import write_text

Row = dict[str, Any]


class MetricsWriter:
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

    def restart(self, rows: Sequence[Row], *, measured: bool = True) -> None:
        """Drop what was written after a checkpoint that training goes back to, and what is damaged.

        `metrics.csv` is written again from the checkpoint. What `convergence.csv` has lost is named on stderr.

        Args:
            rows: The epochs that the checkpoint knows.
            measured: Whether there should be something in `convergence.csv`.
        """
        _rewrite(self.run.metrics, [_plain(row) for row in rows])
        path = self.run.convergence
        there, damaged = read_rows(path, ("epoch", "block"))
        kept = [row for row in there if float(row["epoch"]) <= len(rows)]
        if damaged or kept or path.is_file():
            _rewrite(path, kept)
        lost = sorted(set(range(1, len(rows) + 1)) - {int(float(row["epoch"])) for row in kept})
        if measured and lost:
            state = f"has {damaged} damaged lines" if damaged else "lacks lines"
            epochs = f"epoch {lost[0]}" if len(lost) == 1 else f"epochs {lost[0]} to {lost[-1]}"
            print(
                f"{path} {state}; how the inverses converged in {epochs} is lost, all else goes on",
                file=sys.stderr,
                flush=True,
            )

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

    def write(self, row: Row, blocks: list[dict[str, float]]) -> None:
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
