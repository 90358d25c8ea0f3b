"""Convolutions whose spectral norm is held at a ceiling. O, I: channels out and in; H, W: height and width."""

from typing import Literal

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from imixer.implicit.spectral import at_least_float32

Padding = Literal["circular", "zeros"]


def convolution_sigma(kernel: Tensor, size: tuple[int, int], padding_mode: Padding = "circular") -> Tensor:
    """Compute the spectral norm of a convolution that keeps the size of its input. Differentiable.

    With circular padding it is exact: the Fourier transform makes the operator block diagonal, a matrix (O, I) per
    frequency. With zeros it is a bound: the operator is a part of the circular one on an image larger by the kernel.

    Args:
        kernel: (O, I, h, w), of stride, dilation and groups 1.
        size: (H, W) of the input.
        padding_mode: How the input is continued.

    Raises:
        ValueError: If the image is smaller than the kernel, or the padding another.

    Source: Sedghi, Gupta & Long, arXiv 1805.10408, theorem 6; the bound is ours.
    """
    h, w = kernel.shape[2:]
    if padding_mode not in ("circular", "zeros"):
        raise ValueError(f"padding_mode is {padding_mode!r}; choose circular or zeros")
    if size[0] < h or size[1] < w:
        raise ValueError(f"size is {tuple(size)}, less than the kernel's {(h, w)}; give a larger image")
    torus = size if padding_mode == "circular" else (size[0] + h - 1, size[1] + w - 1)
    symbols = torch.fft.rfft2(at_least_float32(kernel), s=torus)
    return torch.linalg.matrix_norm(symbols.permute(2, 3, 0, 1), ord=2).amax()


class SpectralConv2d(nn.Module):
    """Convolution of images of one size, whose spectral norm has a ceiling.

    Choose it to build an F of images. What multiplies is the kernel K / max(1, sigma / coeff), sigma by
    `convolution_sigma`, so that the ceiling holds to rounding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel, odd.
        size: Height and width of the images.
        padding_mode: `circular`, for which the norm is exact, or `zeros`, for which it is bounded.
        coeff: Ceiling c of the spectral norm.
        detach_sigma: Keep the gradient from going through sigma, so that a kernel can come below its ceiling again.

    Raises:
        ValueError: If coeff is not positive, the kernel is even, or `convolution_sigma` refuses the size or padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        size: tuple[int, int],
        *,
        padding_mode: Padding = "circular",
        coeff: float = 0.9,
        detach_sigma: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not coeff > 0:
            raise ValueError(f"coeff is {coeff}; the spectral norm ceiling must be above 0")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, which has no middle; give an odd one")
        made = nn.Conv2d(in_channels, out_channels, kernel_size, device=device, dtype=dtype)
        assert made.bias is not None
        self.weight, self.bias = made.weight, made.bias
        self.size, self.padding_mode, self.coeff, self.detach_sigma = size, padding_mode, coeff, detach_sigma
        with torch.no_grad():
            self.sigma()

    def sigma(self) -> Tensor:
        """Return the norm of the operator before normalisation, or its bound."""
        return convolution_sigma(self.weight, self.size, self.padding_mode)

    def normalized_weight(self) -> Tensor:
        """Return the kernel that multiplies, (O, I, h, w)."""
        sigma = self.sigma()
        sigma = sigma.detach() if self.detach_sigma else sigma
        return (self.weight / torch.clamp(sigma / self.coeff, min=1.0)).to(self.weight.dtype)

    def lipschitz_bound(self) -> float:
        """Return the spectral norm that the layer has, or a bound of it."""
        return min(float(self.sigma().detach()), self.coeff)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Convolve images.

        Args:
            x: (B, I, H, W).
            weight: What `normalized_weight()` gave. Default: normalise now.
            bias: Bias (O,) to add. Default: the layer's own.

        Returns:
            (B, O, H, W).

        Raises:
            ValueError: If the images have another size, for which nothing is known.
        """
        if tuple(x.shape[-2:]) != tuple(self.size):
            raise ValueError(
                f"images are {tuple(x.shape[-2:])}, and the norm is known for {tuple(self.size)}; set size"
            )
        margin = self.weight.shape[-1] // 2
        padded = fn.pad(x, [margin] * 4, mode="circular" if self.padding_mode == "circular" else "constant")
        kernel = self.normalized_weight() if weight is None else weight
        return fn.conv2d(padded, kernel, self.bias if bias is None else bias)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        d_out, d_in, *kernel = self.weight.shape
        return (
            f"{d_in}, {d_out}, kernel_size={tuple(kernel)}, size={self.size}, padding_mode={self.padding_mode}, "
            f"coeff={self.coeff}"
        )
