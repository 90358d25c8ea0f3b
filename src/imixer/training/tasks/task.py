"""What a task is: all that the training loop does not know about images and their targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from imixer.data.image_data import ImageSet
from imixer.data.sampler import BatchShard
from imixer.training.model import BuiltModel
from imixer.training.run.config import TrainConfig
from imixer.training.run.directory import RunDirectory
from imixer.training.tasks.losses import Loss


class Validation(Protocol):
    """The metrics of a task, over the images of all processes.

    Attributes:
        best_by: The metric by which an epoch is the best.
        confusion: The counts of true (row) against predicted (column) class at the last validation, int64 (classes,
            classes); None before the first.
    """

    best_by: ClassVar[str]
    confusion: Tensor | None

    def score(
        self, model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], rounds: int = 0
    ) -> dict[str, float]:
        """Compute the metrics of a model, `val_loss`, `val_acc` and the task's own. All processes must call it.

        Args:
            model: The model, from images (B, in_chans, H, W) to logits.
            batches: This process's share of the held-out data.
            rounds: The smallest number of forward passes; those after the last batch count for nothing.
        """
        ...

    def to(self, device: torch.device) -> Any:
        """Move the metrics to a device, and return them."""
        ...


class Task(Protocol):
    """All that a training loop does not know: data, model, loss, metrics and results.

    Choose `imixer.training.tasks.registry.find_task` to get one by the name that a configuration has. Tasks hold
    nothing.
    """

    def open(self, config: TrainConfig) -> ImageSet:
        """Open the data that a configuration names.

        Raises:
            InputError: If there are none, or they cannot be used for the task.
        """
        ...

    def build_model(self, config: TrainConfig, data: ImageSet) -> BuiltModel:
        """Build the model for the data.

        Raises:
            InputError: If the model cannot be built, or does not fit the data.
        """
        ...

    def build_batches(
        self,
        data: Any,
        config: TrainConfig,
        input_size: tuple[int, int, int],
        *,
        device: torch.device,
        shard: BatchShard,
    ) -> tuple[Any, Any]:
        """Build the training batches and the held-out batches, see `imixer.data.batches.build_batches`.

        Raises:
            InputError: If a setting makes no sense for the task or the data.
        """
        ...

    def loss(self, data: Any, config: TrainConfig) -> Loss:
        """Build the training loss."""
        ...

    def validation(self, data: Any, config: TrainConfig, input_size: tuple[int, int, int]) -> Validation:
        """Build the metrics to validate by."""
        ...

    def write_numbers(self, run: RunDirectory, confusion: Tensor, data: Any) -> None:
        """Write the numbers of the last validation, before the model is written."""
        ...

    def draw(self, run: RunDirectory, rows: Sequence[dict[str, Any]], confusion: Tensor, data: Any) -> None:
        """Draw the figures of a run that is trained."""
        ...
