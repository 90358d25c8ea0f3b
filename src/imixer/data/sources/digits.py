"""The handwritten digits that come with scikit-learn: no download, trains in seconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData, LabelledImage
from imixer.data.sources.splitting import held_out_share, stratified_split
from imixer.data.sources.statistics import usable_statistics


class ArrayImages(Dataset[LabelledImage]):
    """Gray images in memory.

    Choose it for small data sets, and in tests.

    Args:
        images: Pixel values (items, height, width).
        labels: Label of each item (items,).
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledImage:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def open_digits(config: DataConfig) -> ImageData:
    """Open the digits: 1,797 gray images of 8 x 8 pixels in ten classes.

    Args:
        config: Gives `val_fraction`, the share of each class that is held out, and `split_seed`.

    Raises:
        InputError: If the share leaves too few images in a split.
    """
    # deferred: scikit-learn takes a second to import
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # values are 0 to 16
    labels = bunch.target.astype(np.int64)
    names = tuple(str(digit) for digit in range(10))
    train, val = stratified_split(labels, names, fraction=config.val_fraction, seed=config.split_seed, what="digits")
    train_items = ArrayImages(images[train], labels[train])
    statistics = usable_statistics(lambda index: train_items[index][0], len(train_items), config, "digits")
    return ImageData(
        name="digits",
        train=train_items,
        val=ArrayImages(images[val], labels[val]),
        class_names=names,
        in_chans=1,
        native_size=(8, 8),
        mean=statistics.mean,
        std=statistics.std,
        sources=("scikit-learn", held_out_share(config)),
        notes=statistics.notes,
    )
