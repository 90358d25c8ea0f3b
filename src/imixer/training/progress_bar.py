"""Show the progress of a run: one bar on a terminal; elsewhere lines, first an estimate, then one per epoch or so."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from imixer.progress import clock
from imixer.training.run.result import best_by

_FIRST_LINE_S = 2.0  # of steps, to estimate by
_BETWEEN_LINES_S = 30.0
_REFRESH_S = 0.25  # reading the loss waits for the accelerator, so not at every step
_SMOOTHING = 0.95
_SHORT = {"val_acc": "acc", "val_miou": "mIoU"}


class TrainingProgress:
    """A display of epoch, smoothed training loss, latest validation accuracy, speed and time left, on stderr.

    Args:
        shown: Whether to show anything: one of several processes does.
    """

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown
        self._console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._loss: Tensor | None = None
        self._accuracy = ""

    def start(self, epochs: int, steps_per_epoch: int, batch_size: int, done: int, steps: int | None = None) -> None:
        """Start the display.

        Args:
            epochs: Epochs of the run.
            steps_per_epoch: Optimizer steps of each epoch.
            batch_size: Images of a step, over all processes.
            done: Steps done in earlier sessions.
            steps: Steps of the whole run, if its last epoch is not a whole one.
        """
        self._steps = steps or epochs * steps_per_epoch
        self._epochs, self._steps_per_epoch, self._batch_size = epochs, steps_per_epoch, batch_size
        self._began = self._refreshed = time.perf_counter()
        self._started_at = self._refreshed_at = done
        self._next_line = self._began + _FIRST_LINE_S
        if self._shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("elapsed,"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
            )
            self._task = self._bar.add_task(self._title(done), total=self._steps, completed=done, numbers="")
            self._bar.start()
        elif self._shown:
            left = self._steps - done
            _print(f"training for {left:,} steps, {steps_per_epoch:,} per epoch ...")

    def step(self, done: int, loss: Tensor) -> None:
        """Show an optimizer step.

        Args:
            done: Steps done.
            loss: The training loss of the step, a scalar.
        """
        if self._bar is None or self._task is None:
            self._say(done, loss)
            return
        loss = loss.detach().float()
        self._loss = loss.clone() if self._loss is None else self._loss.lerp_(loss, 1 - _SMOOTHING)
        now = time.perf_counter()
        if now - self._refreshed < _REFRESH_S:
            return
        speed = (done - self._refreshed_at) * self._batch_size / (now - self._refreshed)
        self._refreshed, self._refreshed_at = now, done
        self._bar.update(
            self._task,
            completed=done,
            description=self._title(done - 1),
            numbers=f"train loss {self._loss.item():.3f}{self._accuracy}  {speed:,.0f} images/s",
        )

    def _say(self, done: int, loss: Tensor) -> None:
        """Print how far the run is and how long it will take, where there is no terminal."""
        now = time.perf_counter()
        if not self._shown or now < self._next_line or done % self._steps_per_epoch == 0:  # the epoch has its own line
            return
        self._next_line = now + _BETWEEN_LINES_S
        speed = (done - self._started_at) / (now - self._began)
        _print(
            f"epoch {self._of_all(done)}, step {done:,}  train loss {loss.item():.3f}  {speed:.3g} steps/s, "
            f"{speed * self._batch_size:,.0f} images/s  about {self._left(done, now)} left for the whole run"
        )

    def validate(self, batches: int) -> None:
        """Show that validation begins, if the last line is long ago.

        Args:
            batches: Held-out batches of this process.
        """
        if self._bar is None and self._shown and time.perf_counter() > self._next_line:
            self._next_line = time.perf_counter() + _BETWEEN_LINES_S
            _print(f"validating on {batches:,} batches ...")

    def epoch(self, row: dict[str, Any]) -> None:
        """Show the metrics of an epoch.

        Args:
            row: The metrics, as in `metrics.csv`.
        """
        metric = best_by(row)
        self._accuracy = f"  val {_SHORT[metric]} {row[metric]:.1%}"
        if self._bar is not None or not self._shown:
            return
        done = row["step"]
        self._next_line = time.perf_counter() + _BETWEEN_LINES_S
        _print(
            f"epoch {row['epoch']:>{len(str(self._epochs))}}/{self._epochs}  train loss {row['train_loss']:.3f}"
            f"{self._accuracy}  {row['images_per_s']:,.0f} images/s  "
            f"{self._left(done, time.perf_counter())} left"
        )

    def stop(self) -> None:
        """Stop the display."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, done: int, now: float) -> str:
        left = self._steps - done
        return clock((now - self._began) / (done - self._started_at or 1) * left)

    def _of_all(self, done: int) -> str:
        return f"{min(done // self._steps_per_epoch + 1, self._epochs)}/{self._epochs}"

    def _title(self, done: int) -> str:
        return f"epoch {self._of_all(done)}"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
