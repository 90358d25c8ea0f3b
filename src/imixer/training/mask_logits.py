"""Compute the logits of every pixel of images of any size, with the model of a finished run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imixer.data.image_data import MaskedData
from imixer.data.masked_batches import JointTransform, joint_transform
from imixer.training.finished_run import FinishedRun
from imixer.training.finite_checks import checked_logits, unsolved_note
from imixer.training.segmentation_metrics import sliding_logits

_log = logging.getLogger(__name__)


class MaskPredictor:
    """A predictor of the classes of pixels, at the size that images have.

    With `masks.fit: resize` an image is scaled to the model's input, and its logits back; with `window` windows slide
    over it.

    Args:
        run: The finished run of a segmentation.

    Attributes:
        windows: The number of windows so far.
        unsolved: The number of those of which the inverse of a block was not found.
    """

    def __init__(self, run: FinishedRun) -> None:
        self.run = run
        self.windows = self.unsolved = 0
        cfg = run.pretrained_cfg
        empty: Any = MaskedData(
            "", [], [], run.class_names, run.input_size[0], None, tuple(cfg["mean"]), tuple(cfg["std"])
        )
        self._prepare: JointTransform = joint_transform(
            empty, run.config.data, run.config.masks, run.input_size, train=False
        )

    @torch.inference_mode()
    def logits(self, images: Sequence[Image.Image]) -> Iterator[Tensor]:
        """Compute the logits of images, and scale them to the size of each as it is asked for.

        Args:
            images: Images of the run's mode, `L` or `RGB`, of any sizes.

        Returns:
            Of each image (num_classes, height, width), float32, on the CPU.

        Raises:
            InputError: If a logit is not finite.
        """
        tensors = [self._prepare(image, np.zeros((image.height, image.width), np.uint8))[0] for image in images]
        same = len({tensor.shape for tensor in tensors}) == 1
        batches = [torch.stack(tensors)] if same else [tensor[None] for tensor in tensors]
        computed: list[Tensor] = []
        for batch in batches:
            batch = batch.to(self.run.device)
            window = self.run.input_size[1:]
            computed += list(sliding_logits(self._of_window, batch, window, self.run.config.masks.overlap))
        return (_to_size(each, image).cpu() for each, image in zip(computed, images, strict=True))

    def _of_window(self, images: Tensor) -> Tensor:
        logits, unsolved = checked_logits(self.run.model, images, self.run.name)
        self.windows += len(images)
        self.unsolved += unsolved
        return logits

    def tell_unsolved(self) -> None:
        """Warn of the windows of which an inverse was not found, if there are any."""
        if self.unsolved:
            _log.warning(unsolved_note(self.unsolved, self.windows, "windows of the model's size"))

    def classes(self, images: Sequence[Image.Image]) -> list[NDArray[np.uint8]]:
        """Predict the class of each pixel of images, uint8 (height, width) each."""
        return [each.argmax(0).to(torch.uint8).numpy() for each in self.logits(images)]


def _to_size(logits: Tensor, image: Image.Image) -> Tensor:
    """Scale logits (num_classes, H, W) to the size of an image."""
    size = (image.height, image.width)
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
