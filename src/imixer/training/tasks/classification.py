"""The task of telling the class of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imixer.data.batches import build_batches
from imixer.data.image_data import ImageData, ImageSet, training_labels
from imixer.data.kept import keep_images
from imixer.data.sampler import BatchShard
from imixer.data.sources.open import open_dataset
from imixer.plotting import drawn
from imixer.training.figures import draw_confusion_matrix, draw_learning_curves
from imixer.training.model import BuiltModel, build_model_for
from imixer.training.run.config import TrainConfig
from imixer.training.run.confusion import write_confusion
from imixer.training.run.directory import RunDirectory
from imixer.training.tasks.losses import ClassificationLoss
from imixer.training.validation import ValidationMetrics


class Classification:
    """One class for each image: cross entropy, accuracy, and a confusion matrix of images.

    Choose it by `task: classify`, which is the default.
    """

    def open(self, config: TrainConfig) -> ImageData:
        """Open labelled images, see `open_dataset`."""
        return open_dataset(config.data)

    def build_model(self, config: TrainConfig, data: ImageSet) -> BuiltModel:
        """Build a timm model with one logit per class, see `imixer.training.model.build_model_for`."""
        return build_model_for(config, data)

    def build_batches(
        self,
        data: ImageData,
        config: TrainConfig,
        input_size: tuple[int, int, int],
        *,
        device: torch.device,
        shard: BatchShard,
    ) -> tuple[Any, Any]:
        """Build batches by the pipeline that the configuration names, see `imixer.data.batches.build_batches`."""
        if config.data.keep_decoded and config.data.pipeline == "timm":  # the other keeps all images in any case
            data = keep_images(data, config.data, input_size)
        return build_batches(
            data,
            config.data,
            input_size,
            smoothing=config.smoothing,
            seed=config.seed,
            device=device,
            shard=shard,
            held_out_batch=config.micro_batch,
        )

    def loss(self, data: ImageData, config: TrainConfig) -> ClassificationLoss:
        """Build the cross entropy with label smoothing, and with weights if `data.balance` is `loss`."""
        if config.data.balance != "loss":
            return ClassificationLoss(config.smoothing)
        labels = training_labels(data, "data.balance is loss")
        return ClassificationLoss(config.smoothing, inverse_class_sizes(labels, len(data.class_names)))

    def validation(self, data: ImageData, config: TrainConfig, input_size: tuple[int, int, int]) -> ValidationMetrics:
        """Build loss, accuracy and confusion matrix."""
        return ValidationMetrics(len(data.class_names))

    def write_numbers(self, run: RunDirectory, confusion: Tensor, data: ImageData) -> None:
        """Write the confusion matrix."""
        write_confusion(confusion.tolist(), data.class_names, run.confusion_counts)

    def draw(self, run: RunDirectory, rows: Sequence[dict[str, Any]], confusion: Tensor, data: ImageData) -> None:
        """Draw learning curves and the confusion matrix."""
        drawn(run.learning_curves, lambda path: draw_learning_curves(rows, path))
        drawn(run.confusion_matrix, lambda path: draw_confusion_matrix(confusion.numpy(), data.class_names, path))


def inverse_class_sizes(labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    """Compute a weight for each class in inverse proportion to its images, with a mean of 1 over the images.

    Args:
        labels: Label of each image (images,).
        classes: Number of classes.

    Returns:
        A weight for each class; 1 for one without images, whose loss no image has.
    """
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    weights = np.where(present, len(labels) / (present.sum() * counts.clip(1)), 1.0)
    return tuple(weights.tolist())
