"""A small U-Net: the convolutional baseline of segmentation.

B: images, H, W: height and width in pixels, C_l: channels at depth l.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class ConvPair(nn.Sequential):
    """Two 3x3 convolutions, each with batch normalisation and ReLU: (B, dim, H, W) -> (B, out_dim, H, W).

    Args:
        dim: Channels before.
        out_dim: Channels after each of the two.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        layers: list[nn.Module] = []
        for before in (dim, out_dim):
            layers += [nn.Conv2d(before, out_dim, 3, padding=1, bias=False), nn.BatchNorm2d(out_dim), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """A U-Net: an encoder that halves the image, and a decoder that doubles it again and sees every depth's features.

    Choose it as the backbone of a segmentation to compare others with. The head `linear` at level 0 makes it the usual
    U-Net: it reads the decoder's last map, which has the size of the image.

    It departs from its source in three things: convolutions are padded, so that maps keep their size; maps are enlarged
    by repetition, to the size of the one that they are joined to, so that any image size will do; and convolutions are
    batch-normalised.

    Args:
        num_classes: Number of classes, for images.
        in_chans: Channels of the images.
        widths: Channels C_l from the image's size downwards; each depth has half the side of the one before.
        global_pool: `avg`, or empty for no pooling before the classifier.
        drop_rate: Dropout before the classifier.

    Attributes:
        feature_info: The decoder's maps, the finest first, which is its last.

    Raises:
        ValueError: If there are no widths.

    Source: Ronneberger, Fischer, Brox, U-Net, arXiv 1505.04597, section 2.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **_: Any,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths is empty; give one number of channels or more")
        before = [in_chans, *widths[:-1]]
        self.num_classes, self.num_features, self.global_pool = num_classes, widths[0], global_pool
        self.down = nn.ModuleList(ConvPair(dim, width) for dim, width in zip(before, widths, strict=True))
        pairs = reversed(list(pairwise(widths)))
        self.up = nn.ModuleList(ConvPair(fine + coarse, fine) for fine, coarse in pairs)
        places = [*(f"up.{i}" for i in reversed(range(len(self.up)))), f"down.{len(widths) - 1}"]
        self.feature_info = [
            {"module": place, "num_chs": width, "reduction": 2**depth}
            for depth, (place, width) in enumerate(zip(places, widths, strict=True))
        ]
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(widths[0], num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Return the decoder's maps, the finest first."""
        seen: list[Tensor] = []
        for i, pair in enumerate(self.down):
            x = pair(F.max_pool2d(x, 2, ceil_mode=True) if i else x)
            seen.append(x)
        maps = [seen.pop()]
        for pair in self.up:
            skip = seen.pop()
            enlarged = F.interpolate(maps[0], size=skip.shape[-2:], mode="nearest")
            maps.insert(0, pair(torch.cat([skip, enlarged], 1)))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the decoder's last map (B, C_0, H, W) of images (B, in_chans, H, W)."""
        return self._maps(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Average a map over its pixels, and classify the image by it."""
        y = x.mean((2, 3)) if self.global_pool else x
        return y if pre_logits else self.head(self.drop(y))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the decoder's maps of the indices, as timm's models do. The finest is computed last: none is left out.

        Raises:
            ValueError: If the format is not NCHW.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; choose NCHW")
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        maps = self._maps(x)
        chosen = [maps[i] for i in taken]
        return chosen if intermediates_only else (maps[0], chosen)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the classifier, which no map needs, and return the indices."""
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_head:
            self.reset_classifier(0)
        return taken

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of the parameters of each depth, in the order of computing, as timm's models do."""
        return {"stem": r"^down\.0\.", "down": r"^down\.(\d+)", "up": r"^up\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """Return the classifier of images."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one of another number of classes."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


default_cfgs = generate_default_cfgs(
    {
        "unet_16.untrained*": PretrainedCfg(
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=None,
            fixed_input_size=False,
            first_conv="down.0.0",
            classifier="head",
            license="apache-2.0",
        )
    }
)


@register_model
def unet_16(pretrained: bool = False, **kwargs: Any) -> UNet:
    """Build a `UNet` of four depths, with 16 channels at the image's size and twice as many at each depth below."""
    model: UNet = build_model_with_cfg(
        UNet,
        "unet_16",
        pretrained,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 4), "feature_cls": "getter"},
        **kwargs,
    )
    return model
