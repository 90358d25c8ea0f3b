"""Scenes composed of scikit-learn's handwritten digits before its two photographs: every pixel has a class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from imixer.data.config import DataConfig
from imixer.data.image_data import MaskedData, MaskedImage
from imixer.data.sources.masks import default_palette
from imixer.data.sources.splitting import stratified_split

SIDE = 32  # pixels of a scene
CLASSES = ("background", *map(str, range(10)))
TRAINING, HELD_OUT = 4000, 500  # scenes
_DIGITS = (1, 2)  # the fewest and the most of a scene
_SIDES = (18, 26)  # of a digit, in pixels
_STROKE = 0.45  # ink from which on a pixel is of the digit
_COVERED = 0.15  # the most of an earlier digit, or of its own, that a digit may share
_TRIES = 20  # to place a digit
_EDGE = 4.0  # how much steeper edges of strokes are than those of an 8x8 digit that was enlarged
_CONTRAST = 70  # the least difference of gray between a digit and what is behind it
_STREAM = 11  # keeps these draws apart from those of splits


class ArrayMasks(Dataset[MaskedImage]):
    """Images with masks in memory.

    Choose it for small data sets, and in tests.

    Args:
        images: Pixel values (items, height, width, 3).
        masks: Class of each pixel (items, height, width).
    """

    def __init__(self, images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> MaskedImage:
        return Image.fromarray(self.images[index]), self.masks[index]


class SceneComposer:
    """Compose scenes of given digits and photographs.

    Args:
        digits: Ink (items, 8, 8), from 0 to 1.
        labels: Digit of each item (items,).
        photos: Photographs (height, width, 3).
    """

    def __init__(self, digits: NDArray[np.float32], labels: NDArray[np.int64], photos: list[NDArray[np.uint8]]) -> None:
        self.digits, self.labels, self.photos = digits, labels, photos

    def compose(self, generator: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Compose a scene: a piece of a photograph, and digits on it, the later ones before the earlier.

        Args:
            generator: Draws everything that is random.

        Returns:
            The image (SIDE, SIDE, 3), and the class of each pixel (SIDE, SIDE).
        """
        canvas = self._background(generator)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for _ in range(generator.integers(*_DIGITS, endpoint=True)):
            number = int(generator.integers(len(self.labels)))
            if (ink := self._place(generator, self.digits[number], mask)) is None:
                continue
            color = self._color(generator, float(canvas[ink > 0.5].mean()))
            canvas = canvas + ink[..., None] * (color - canvas)
            mask[ink > 0.5] = self.labels[number] + 1
        return np.rint(canvas).clip(0, 255).astype(np.uint8), mask

    def _place(
        self, generator: np.random.Generator, digit: NDArray[np.float32], mask: NDArray[np.uint8]
    ) -> NDArray[np.float32] | None:
        """Find a place for a digit, and return its ink (SIDE, SIDE); None if what is there leaves none."""
        for _ in range(_TRIES):
            side = int(generator.integers(*_SIDES, endpoint=True))
            top, left = generator.integers(-1, SIDE - side + 2, 2)
            rows, columns = slice(max(0, top), min(SIDE, top + side)), slice(max(0, left), min(SIDE, left + side))
            large = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))
            large = ((large - _STROKE) * _EDGE + 0.5).clip(0, 1)
            ink = np.zeros((SIDE, SIDE), np.float32)
            ink[rows, columns] = large[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            stroke = ink > 0.5
            shared = np.bincount(mask[stroke], minlength=len(CLASSES))[1:]
            there = np.bincount(mask.ravel(), minlength=len(CLASSES))[1:]
            if (shared <= _COVERED * np.minimum(there, stroke.sum())).all():
                return ink
        return None

    def _background(self, generator: np.random.Generator) -> NDArray[np.float32]:
        photo = self.photos[generator.integers(len(self.photos))]
        side = int(generator.integers(SIDE, min(photo.shape[:2]) // 2))
        top, left = (int(generator.integers(0, length - side + 1)) for length in photo.shape[:2])
        piece = Image.fromarray(photo[top : top + side, left : left + side])
        return np.asarray(piece.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.float32)

    def _color(self, generator: np.random.Generator, behind: float) -> NDArray[np.float32]:
        while True:
            color = generator.uniform(0, 255, 3).astype(np.float32)
            if abs(float(color.mean()) - behind) > _CONTRAST:
                return color


def compose_scenes(
    digits: NDArray[np.float32],
    labels: NDArray[np.int64],
    photos: list[NDArray[np.uint8]],
    count: int,
    seed: tuple[int, ...],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Compose scenes, each from a seed of its own, so that the first ones are the same however many there are.

    Args:
        digits: Ink (items, 8, 8), from 0 to 1.
        labels: Digit of each item (items,).
        photos: Photographs (height, width, 3).
        count: Number of scenes.
        seed: What tells these scenes from others.

    Returns:
        The images (count, SIDE, SIDE, 3), and the classes of the pixels (count, SIDE, SIDE).
    """
    composer = SceneComposer(digits, labels, photos)
    scenes = [composer.compose(np.random.default_rng((_STREAM, *seed, number))) for number in range(count)]
    images, masks = zip(*scenes, strict=True)
    return np.stack(images), np.stack(masks)


def open_scenes(config: DataConfig) -> MaskedData:
    """Compose the scenes: 4,000 to train on and 500 held out, of 32 x 32 pixels in eleven classes.

    Digits of the held-out scenes are in no training scene.

    Args:
        config: Gives `val_fraction`, the share of each digit's images that held-out scenes are made of, and
            `split_seed`, which also draws the scenes.

    Raises:
        InputError: If the share leaves too few digits in a split.
    """
    # deferred: scikit-learn takes a second to import
    from sklearn.datasets import load_digits, load_sample_images

    bunch = load_digits()
    digits, labels = (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)
    photos = [np.asarray(photo, np.uint8) for photo in load_sample_images().images]
    parts = stratified_split(labels, CLASSES[1:], fraction=config.val_fraction, seed=config.split_seed, what="scenes")
    composed = [
        compose_scenes(digits[part], labels[part], photos, count, (config.split_seed, number))
        for number, (part, count) in enumerate(zip(parts, (TRAINING, HELD_OUT), strict=True))
    ]
    train, val = (ArrayMasks(images, masks) for images, masks in composed)
    values = train.images.reshape(-1, 3) / 255
    return MaskedData(
        name="scenes",
        train=train,
        val=val,
        class_names=CLASSES,
        in_chans=3,
        native_size=(SIDE, SIDE),
        mean=tuple(values.mean(0).tolist()),
        std=tuple(values.std(0).tolist()),
        sources=("digits and photographs of scikit-learn, composed", f"of other digits, {config.val_fraction:.0%}"),
        pixels=tuple(np.bincount(train.masks.ravel(), minlength=len(CLASSES)).tolist()),
        palette=default_palette(CLASSES),
    )
