"""One bar over the whole run, or one line per epoch where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any, Dict, Optional

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

_REFRESH_S = 0.25  # reading the loss waits for the accelerator, so not at every step
_SMOOTHING = 0.95


class ShowProgress:
    """Shows epoch, smoothed training loss, latest validation accuracy, speed and time left on stderr.

    Args:
        shown: Whether to show anything: one of several processes does.
    """

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown
        self._console = Console(file=sys.stderr)
        self._bar: Optional[Progress] = None
        self._task: Optional[TaskID] = None
        self._loss: Optional[Tensor] = None
        self._accuracy = ""

    def start(self, epochs: int, steps_per_epoch: int, batch_size: int, done: int, steps: Optional[int] = None) -> None:
        """Begin to show.

        Args:
            epochs: Epochs of the run.
            steps_per_epoch: Steps of each.
            batch_size: Images of a step, over all processes.
            done: Steps done earlier.
            steps: Steps of the run, if its last epoch is not a whole one.
        """
        self._steps = steps or epochs * steps_per_epoch
        self._epochs, self._steps_per_epoch, self._batch_size = epochs, steps_per_epoch, batch_size
        self._began = self._refreshed = time.perf_counter()
        self._started_at = self._refreshed_at = done
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

    def step(self, done: int, loss: Tensor) -> None:
        """Show a step.

        Args:
            done: Steps done.
            loss: Of this one.
        """
        if self._bar is None or self._task is None:
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

    def epoch(self, row: Dict[str, Any]) -> None:
        """Show an epoch's numbers."""
        self._accuracy = f"  val acc {row['val_acc']:.1%}"
        if self._bar is not None or not self._shown:
            return
        done = row["step"]
        left = (time.perf_counter() - self._began) / (done - self._started_at or 1)
        left *= self._steps - done
        print(
            f"epoch {row['epoch']:>{len(str(self._epochs))}}/{self._epochs}  train loss {row['train_loss']:.3f}"
            f"{self._accuracy}  {row['images_per_s']:,.0f} images/s  {clock(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def stop(self) -> None:
        """Leave the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _title(self, done: int) -> str:
        return f"epoch {min(done // self._steps_per_epoch + 1, self._epochs)}/{self._epochs}"


def clock(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
