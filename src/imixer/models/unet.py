"""A small U-Net: the convolutional baseline of segmentation.

B: images, H, W: height and width in pixels, C_l: channels at depth l.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class ConvPair(nn.Sequential):
    """Two 3x3 convolutions, each with batch normalisation and ReLU: (B, dim, H, W) -> (B, out_dim, H, W).

    Args:
        dim: Channels before.
        out_dim: Channels after each of the two.
        device: Where to make the parameters.
        dtype: Their type.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        layers: list[nn.Module] = []
        for before in (dim, out_dim):
            layers += [
                nn.Conv2d(before, out_dim, 3, padding=1, bias=False, device=device, dtype=dtype),
                nn.BatchNorm2d(out_dim, device=device, dtype=dtype),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """A U-Net: an encoder that halves the image, and a decoder that doubles it again and sees every depth's features.

    Choose it as the backbone of a segmentation to compare others with. The head `linear` makes it the usual U-Net: it
    reads the decoder's last map, which has the size of the image.

    It departs from its source in three things: convolutions are padded, so that maps keep their size; maps are enlarged
    by repetition, to the size of the one that they are joined to, so that any image size will do; and convolutions are
    batch-normalised.

    Args:
        num_classes: Number of classes, for images.
        in_chans: Channels of the images.
        widths: Channels C_l from the image's size downwards; each depth has half the side of the one before.
        global_pool: Pooling before the classifier, by timm's names; empty for none, which needs `num_classes=0`.
        drop_rate: Dropout before the classifier.
        device: Where to make the parameters.
        dtype: Their type.
        **_: Options of other models, which it has no use for: a recipe's model can be exchanged by name alone.

    Attributes:
        feature_info: The decoder's maps, the finest first, which is its last.
        last_level: Index of the map that is computed last, among these.

    Raises:
        ValueError: If there are no widths, or classes are to be told from a map that is not pooled.

    Source: Ronneberger, Fischer, Brox, U-Net, arXiv 1505.04597, section 2.
    """

    WIDTHS = (16, 32, 64, 128)
    last_level = 0
    pool_type: str

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        widths: Sequence[int] = WIDTHS,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths is empty; give one number of channels or more")
        before = [in_chans, *widths[:-1]]
        self.in_chans, self.num_features = in_chans, widths[0]
        down = zip(before, widths, strict=True)
        self.down = nn.ModuleList(ConvPair(dim, width, device, dtype) for dim, width in down)
        pairs = reversed(list(pairwise(widths)))
        self.up = nn.ModuleList(ConvPair(fine + coarse, fine, device, dtype) for fine, coarse in pairs)
        places = [*(f"up.{i}" for i in reversed(range(len(self.up)))), f"down.{len(widths) - 1}"]
        self.feature_info = [
            {"module": place, "num_chs": width, "reduction": 2**depth}
            for depth, (place, width) in enumerate(zip(places, widths, strict=True))
        ]
        self.drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _maps(self, x: Tensor, ups: int | None = None) -> list[Tensor]:
        """Return the decoder's maps after so many of its blocks, all by default; the finest first."""
        seen: list[Tensor] = []
        for i, pair in enumerate(self.down):
            x = pair(F.max_pool2d(x, 2, ceil_mode=True) if i else x)
            seen.append(x)
        maps = [seen.pop()]
        for pair in self.up[:ups]:
            skip = seen.pop()
            enlarged = F.interpolate(maps[0], size=skip.shape[-2:], mode="nearest")
            maps.insert(0, pair(torch.cat([skip, enlarged], 1)))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the decoder's last map (B, C_0, H, W) of images (B, in_chans, H, W)."""
        return self._maps(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a map over its pixels, and classify the image by what that gives."""
        y = self.global_pool(x)
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
        """Return the decoder's maps of the indices, as timm's models do. The finest is computed last.

        Raises:
            ValueError: If the format is not NCHW.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; choose NCHW")
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        maps = self._maps(x, self._ups(taken) if stop_early else None)
        finest = len(self.down) - len(maps)
        chosen = [maps[i - finest] for i in taken]
        return chosen if intermediates_only else (maps[0], chosen)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the classifier and the decoder's blocks that no map of the indices needs, and return the indices.

        With `prune_head` false both are kept, as the classifier reads the finest map.
        """
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_head:
            self.up = self.up[: self._ups(taken)]
            self.num_features = self.feature_info[min(taken)]["num_chs"]
            self.reset_classifier(0)
        return taken

    def _ups(self, indices: Sequence[int]) -> int:
        """Return the number of blocks of the decoder that the maps of the indices need."""
        return len(self.down) - 1 - min(indices)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of the parameters of each depth, in the order of computing, as timm's models do."""
        return {"stem": r"^down\.0\.", "down": r"^down\.(\d+)", "up": r"^up\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """Return the classifier of images."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one of another number of classes, and the pooling if one is named.

        Raises:
            ValueError: If classes are to be told from a map that is not pooled.
        """
        pool = self.pool_type if global_pool is None else global_pool
        if num_classes and not pool:
            raise ValueError(f"global_pool is empty and num_classes is {num_classes}; give avg, or num_classes=0")
        like = next(self.parameters())
        self.num_classes, self.pool_type = num_classes, pool
        self.global_pool, self.head = create_classifier(
            self.num_features, num_classes, pool, device=like.device, dtype=like.dtype
        )


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
    depths = len(kwargs.get("widths", UNet.WIDTHS))
    model: UNet = build_model_with_cfg(
        UNet,
        "unet_16",
        pretrained,
        feature_cfg={"out_indices": kwargs.pop("out_indices", depths), "feature_cls": "getter"},
        **kwargs,
    )
    return model
