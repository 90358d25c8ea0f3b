"""Between pixels and what a model takes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imixer.training.reload import Reloaded


@dataclass(frozen=True)
class Pixels:
    """The normalisation of a model.

    Args:
        mean: Mean per channel (C, 1, 1), with pixel values in [0, 1].
        std: Standard deviation per channel (C, 1, 1), likewise.
    """

    mean: Tensor
    std: Tensor

    def of(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] of images as the model takes them, (B, C, H, W): whole multiples of 1/255, as in files."""
        return (images * self.std + self.mean).mul(255).round().div(255)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] as the model takes them."""
        return (pixels - self.mean) / self.std


def pixels_of(reloaded: Reloaded) -> Pixels:
    """The normalisation of a run, on its device."""
    cfg = reloaded.model.pretrained_cfg
    mean, std = (torch.tensor(cfg[name], device=reloaded.device).view(-1, 1, 1) for name in ("mean", "std"))
    return Pixels(mean, std)
