"""Stems: from an image to the first tokens, by one convolution or several.

B: images, S: tokens, C: channels (`embed_dim`), H, W: height and width in pixels.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, to_2tuple
from timm.layers.trace_utils import _assert
from torch import Tensor, nn

from imixer.dtypes import at_least_float32
from imixer.implicit.spectral import full_precision

StemName = Literal["patch", "conv", "whitened", "deep"]
Size = int | tuple[int, int]

_WHITENED = 2  # side in pixels of what `Whitening` looks at
_EPS = 5e-4  # of airbench; keeps directions without variance from blowing up


def build_stem(
    name: StemName,
    *,
    img_size: Size,
    patch_size: int,
    in_chans: int,
    embed_dim: int,
    width: int | None = None,
    norm_layer: Callable[..., nn.Module] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> PatchEmbed:
    """Build the stem of that name.

    Args:
        name: `patch`: one convolution, cutting patches as MLP-Mixer does; what is left of the image is cut off. `conv`:
            3x3 convolutions of stride 2, as many as make patches of `patch_size`, widths doubling up to `embed_dim`.
            `whitened`: the same on top of a frozen `Whitening`. `deep`: `Whitening`, then 3x3 convolutions of stride 1
            with pooling, two per halving but the first: the most accurate, and nearly half a convolutional net by its
            multiply-adds.
        img_size: Height and width of the image in pixels, or one side.
        patch_size: Pixels per token and side, a power of 2 that divides the image unless the name is `patch`.
        in_chans: Channels of the image.
        embed_dim: Channels C of the tokens.
        width: Channels of the first convolution; those between it and the last follow. Default: `embed_dim` halved
            per convolution, and 3/8 of `embed_dim` in `deep`. Not for `patch`.
        norm_layer: Normalises the tokens. Default: nothing does.
        device: Where to make the parameters.
        dtype: In which type.

    Raises:
        ValueError: If there is no such stem, `patch_size` is no power of 2 or does not divide the image, which `patch`
            does not need, or `width` makes no sense.

    Source: `conv`: Xiao et al., arXiv 2106.14881; `whitened`, `deep`: Jordan, arXiv 2404.00498, section 3.
    """
    if name not in get_args(StemName):
        raise ValueError(f"stem is {name!r}; choose {', '.join(get_args(StemName))}")
    if width is not None and (name == "patch" or width < 1):
        remedy = "leave it out for stem patch" if name == "patch" else "give 1 or more"
        raise ValueError(f"stem_width is {width}; {remedy}")
    common: dict[str, Any] = dict(
        img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, norm_layer=norm_layer,
        device=device, dtype=dtype,
    )  # fmt: skip
    return PatchEmbed(**common) if name == "patch" else ConvStem(name, width=width, **common)


class Whitening(nn.Module):
    """Frozen 2x2 convolution that makes the pixels of patches uncorrelated and of variance 1.

    Choose it, by the stems `whitened` and `deep`, for short training runs. Image (B, in_chans, H, W) -> (B, 8 in_chans,
    H, W): each filter comes with its negative. The filters are a buffer and not learned: `whiten` computes them from
    training images, and until then they are those for white noise. They are applied in float32 whatever the precision,
    since they divide by small standard deviations; what they give has their dtype.

    Source: Jordan, arXiv 2404.00498, section 3.1.
    """

    weight: Tensor

    def __init__(
        self, in_chans: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.in_channels = in_chans
        self.out_channels = 2 * in_chans * _WHITENED**2
        self.kernel_size = to_2tuple(_WHITENED)
        values = torch.eye(self.out_channels // 2, device=device, dtype=dtype)
        self.register_buffer("weight", self._as_filters(values))

    @torch.no_grad()
    def whiten(self, covariance: Tensor) -> None:
        """Set the filters for patches of this covariance.

        Args:
            covariance: Of the pixels of 2x2 patches, in the order of a filter, (4 in_chans, 4 in_chans).

        Raises:
            ValueError: If the matrix has another shape.
        """
        side = self.out_channels // 2
        if covariance.shape != (side, side):
            raise ValueError(f"covariance has shape {tuple(covariance.shape)}; give ({side}, {side})")
        variances, vectors = torch.linalg.eigh(covariance.double().cpu())
        rows = vectors.T.flip(0) / (variances.flip(0)[:, None].clamp(min=0) + _EPS).sqrt()  # largest variance first
        # which of the two signs a vector gets is the linear algebra library's choice: its largest entry is positive
        sign = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
        self.weight.copy_(self._as_filters(rows * sign))

    def _as_filters(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, -rows]).unflatten(1, (self.in_channels, *self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten images (B, in_chans, H, W) -> (B, 8 in_chans, H, W)."""
        x = F.pad(x, (0, 1, 0, 1))
        if torch.jit.is_scripting():
            return _conv(x, self.weight)
        return _conv_in_float32(x, self.weight)


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    kernel = at_least_float32(weight)
    return F.conv2d(x.to(kernel.dtype), kernel).to(weight.dtype)


@torch.fx.wrap  # symbolic tracing cannot enter a context
def _conv_in_float32(x: Tensor, weight: Tensor) -> Tensor:
    with full_precision(x.device):
        return _conv(x, weight)


def patch_covariance(images: Tensor) -> Tensor:
    """Compute the covariance of the pixels of all 2x2 patches of images, for `Whitening.whiten`.

    Args:
        images: (B, in_chans, H, W), normalised as the model takes them, at least 2x2 pixels.

    Returns:
        float64 (4 in_chans, 4 in_chans). The mean is not subtracted, as the filters have no bias.
    """
    patches = F.unfold(images.double(), _WHITENED).transpose(1, 2).flatten(0, 1)
    return patches.T @ patches / len(patches)


class ConvStem(PatchEmbed):
    """Several convolutions in the place of timm's `PatchEmbed`, with its interface.

    Image (B, in_chans, H, W) -> tokens (B, S, C). `proj` is the first convolution, `layers` are the others; BatchNorm
    and GELU stand between two, GELU alone after `Whitening`, whose outputs come with their negatives.

    Takes the arguments of `build_stem`, all but `patch` as its name.
    """

    def __init__(
        self,
        name: StemName,
        *,
        img_size: Size,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        width: int | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        halvings = _halvings(name, to_2tuple(img_size), to_2tuple(patch_size))
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(img_size, patch_size, in_chans, embed_dim, norm_layer, **dd)
        layers: list[nn.Module] = []
        channels = in_chans
        if name != "conv":
            whitening = Whitening(in_chans, **dd)
            self.register_module("proj", whitening)
            channels = whitening.out_channels
            layers.append(nn.GELU())
        steps = _deep(halvings, embed_dim, width) if name == "deep" else _strided(halvings, embed_dim, width)
        for number, (out, stride, pooled) in enumerate(steps):
            last = number == len(steps) - 1
            conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=last, **dd)
            if number == 0 and name == "conv":
                self.proj = conv
            else:
                layers.append(conv)
            if pooled:
                layers.append(nn.MaxPool2d(2))
            if not last:
                layers += [nn.BatchNorm2d(out, **dd), nn.GELU()]
            channels = out
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Turn images (B, in_chans, H, W) into tokens (B, S, C)."""
        if self.strict_img_size:
            _, _, height, width = x.shape
            _assert(height == self.img_size[0], f"Input height ({height}) doesn't match model ({self.img_size[0]}).")
            _assert(width == self.img_size[1], f"Input width ({width}) doesn't match model ({self.img_size[1]}).")
        x = self.layers(self.proj(x))
        return self.norm(x.flatten(2).transpose(1, 2))


Step = tuple[int, int, bool]  # channels, stride, whether it is pooled


def _halvings(name: str, image: tuple[int, int], patch: tuple[int, int]) -> int:
    side = patch[0]
    if patch[0] != patch[1] or side < 1 or side & (side - 1):
        raise ValueError(f"stem {name} halves the image, and patch_size is {_pair(patch)}; give a power of 2")
    if name == "deep" and side == 1:
        raise ValueError("stem deep pools, and patch_size is 1; give 2 or more, or stem whitened")
    if any(pixels % side or pixels < side for pixels in image):
        raise ValueError(
            f"stem {name} makes tokens of {side}x{side} pixels, which do not divide an image of {image[0]}x{image[1]}; "
            "change patch_size or img_size"
        )
    return side.bit_length() - 1


def _pair(patch: tuple[int, int]) -> str:
    return str(patch[0]) if patch[0] == patch[1] else f"{patch[0]}x{patch[1]}"


def _strided(halvings: int, embed_dim: int, width: int | None) -> list[Step]:
    count = max(1, halvings)
    widths = [max(1, embed_dim >> (count - 1 - i)) for i in range(count)]
    if width is not None:
        if count == 1:
            _require_width(width, embed_dim)
        elif width > embed_dim:
            raise ValueError(
                f"stem_width is {width}, above embed_dim = {embed_dim}, which the stem ends with; lower it"
            )
        widths = [min(embed_dim, width << i) for i in range(count - 1)] + [embed_dim]
    return [(out, 2 if halvings else 1, False) for out in widths]


def _require_width(width: int | None, embed_dim: int) -> None:
    if width not in (None, embed_dim):
        raise ValueError(f"stem_width is {width}, but the only convolution has embed_dim = {embed_dim} channels")


def _deep(halvings: int, embed_dim: int, width: int | None) -> list[Step]:
    if halvings == 1:
        _require_width(width, embed_dim)
    width = width or max(1, embed_dim * 3 // 8)
    steps: list[Step] = [(width, 1, True)]
    for _ in range(halvings - 1):
        steps += [(width, 1, False), (width, 1, True)]
    return [*steps[:-1], (embed_dim, 1, True)]
