"""One bar over the whole run, or one line per epoch where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any, Optional

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from imixer.training.record import Record

_REFRESH_S = 0.25  # reading the loss waits for the accelerator, so not at every step
_SMOOTHING = 0.95


class ShowProgress(Callback):
    """Shows epoch, smoothed training loss, latest validation accuracy, speed and time on stderr.

    Args:
        record: Supplies the numbers of finished epochs; must come before this callback.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self._console = Console(file=sys.stderr)
        self._bar: Optional[Progress] = None
        self._task: Optional[TaskID] = None
        self._loss: Optional[Tensor] = None
        self._began = self._epoch_began = self._refreshed = time.perf_counter()
        self._images = 0
        self._accuracy = ""

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._began = time.perf_counter()
        if self._console.is_terminal and trainer.is_global_zero:
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
            self._task = self._bar.add_task("epoch 1", total=trainer.estimated_stepping_batches, numbers="")
            self._bar.start()

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self._epoch_began, self._images = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._bar is None or self._task is None:
            return
        loss = outputs["loss"].detach().float()
        self._loss = loss.clone() if self._loss is None else self._loss.lerp_(loss, 1 - _SMOOTHING)
        self._images += len(batch[0]) * trainer.world_size
        now = time.perf_counter()
        if now - self._refreshed < _REFRESH_S and not trainer.is_last_batch:
            return
        self._refreshed = now
        speed = self._images / (now - self._epoch_began)
        self._bar.update(
            self._task,
            completed=trainer.global_step,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            numbers=f"train loss {self._loss.item():.3f}{self._accuracy}  {speed:,.0f} images/s",
        )

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        row = self.record.rows[-1]
        self._accuracy = f"  val acc {row['val_acc']:.1%}"
        if self._bar is not None or not trainer.is_global_zero:
            return
        done, total = row["epoch"], trainer.max_epochs or row["epoch"]
        left = (time.perf_counter() - self._began) / done * (total - done)
        print(
            f"epoch {done:>{len(str(total))}}/{total}  train loss {row['train_loss']:.3f}{self._accuracy}  "
            f"{row['images_per_s']:,.0f} images/s  {_clock(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def teardown(self, trainer: Trainer, module: Any, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
