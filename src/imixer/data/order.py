"""Build the order of the training images that a configuration asks for."""

from __future__ import annotations

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData, training_labels
from imixer.data.sampler import BatchOrder, BatchShard
from imixer.errors import InputError


def build_order(data: ImageData, config: DataConfig, seed: int, shard: BatchShard) -> BatchOrder:
    """Build the order of the training images.

    Args:
        data: The data set.
        config: Batch size, what becomes of the last batch, and the balance of classes.
        seed: Training seed, 0 or more.
        shard: The images of each batch that are this process's.

    Raises:
        InputError: If a batch is larger than the data set, or images are to be drawn by class and are streamed, or the
            data do not tell the labels.
    """
    labels = None
    if config.balance == "sampling":
        if data.windows is not None:
            raise InputError(
                "data.balance is sampling, and these images are streamed in an order of their own; pass --data.balance "
                "loss, or --data.streaming never if they fit into memory"
            )
        labels = training_labels(data, "data.balance is sampling")
    return BatchOrder(
        len(data.train), config.batch_size, seed, shard, data.windows, config.last_batch == "fill", labels
    )
