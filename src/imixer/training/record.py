"""Write down each epoch: a CSV row and TensorBoard scalars."""

from __future__ import annotations

import csv
import math
import time
from typing import Any, Dict, List

from lightning.pytorch import Callback, Trainer
from torch.utils.tensorboard import SummaryWriter

from imixer.errors import InputError
from imixer.training.run_directory import RunDirectory

Row = Dict[str, Any]


class Record(Callback):
    """Appends a row per epoch to `metrics.csv`, sends it to TensorBoard and keeps it in `rows`.

    `images_per_s` counts training images over the time spent training, validation left out; `seconds` is the time
    since training began.

    Works with a `Classifier`.

    Args:
        run: Where to write.

    Raises:
        InputError: During training, as soon as an epoch's training loss is not finite.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.rows: List[Row] = []
        self._began = self._epoch_began = time.perf_counter()
        self._images = 0
        self._images_per_s = 0.0
        self._writer: Any = None

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._began = time.perf_counter()
        if trainer.is_global_zero:
            self._writer = SummaryWriter(str(self.run.tensorboard))

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self._epoch_began, self._images = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._images += len(batch[0]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        module.train_loss.compute().item()  # waits for the accelerator
        self._images_per_s = self._images / (time.perf_counter() - self._epoch_began)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **module.results,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_s": round(self._images_per_s, 1),
            "seconds": round(time.perf_counter() - self._began, 2),
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write(row)
        if not math.isfinite(row["train_loss"]):
            raise InputError(
                f"training diverged: the loss of epoch {row['epoch']} is {row['train_loss']}; "
                "lower optim.lr, warm up longer or set optim.clip_grad"
            )

    def teardown(self, trainer: Trainer, module: Any, stage: str) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, row: Row) -> None:
        with self.run.metrics.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if row["epoch"] == 1:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()
