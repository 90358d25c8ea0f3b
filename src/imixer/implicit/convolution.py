"""Convolutions whose spectral norm is held at a ceiling. O, I: channels out and in; H, W: height and width."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from imixer.implicit.spectral import at_least_float32, full_precision

Padding = Literal["circular", "zeros", "reflect", "replicate"]
ConvolutionSigma = Literal["fourier", "power"]
WARM_UP_STEPS = 64


def convolution_sigma(kernel: Tensor, size: tuple[int, int], padding_mode: Padding = "circular") -> Tensor:
    """Compute the spectral norm of a convolution that keeps the size of its input. Differentiable.

    With circular padding it is exact: the Fourier transform makes the operator block diagonal, a matrix (O, I) per
    frequency. With zeros it is a bound: the operator is a part of the circular one on an image larger by the kernel.
    `reflect` and `replicate` are a padding, whose norm is the root of the most copies of one pixel, before such a part.

    Args:
        kernel: (O, I, h, w), of stride, dilation and groups 1.
        size: (H, W) of the input.
        padding_mode: How the input is continued.

    Raises:
        ValueError: If the image is smaller than the kernel, no two sizes are given, or the padding is another.

    Source: Sedghi, Gupta & Long, arXiv 1805.10408, theorem 6; the bound is ours.
    """
    h, w = kernel.shape[2:]
    _check(size, padding_mode)
    if size[0] < h or size[1] < w:
        raise ValueError(f"size is {tuple(size)}, less than the kernel's {(h, w)}; give a larger image")
    torus = size if padding_mode == "circular" else (size[0] + h - 1, size[1] + w - 1)
    symbols = torch.fft.rfft2(at_least_float32(kernel), s=torus)
    sigma = torch.linalg.matrix_norm(symbols.permute(2, 3, 0, 1), ord=2).amax()
    return sigma * _padding_norm(size, (h // 2, w // 2), padding_mode)


def _check(size: object, padding_mode: str) -> None:
    if padding_mode not in get_args(Padding):
        raise ValueError(f"padding_mode is {padding_mode!r}; choose {', '.join(get_args(Padding))}")
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"size is {size!r}; give the height and the width of the images, such as (32, 32)")


def _pad(x: Tensor, margins: tuple[int, int], padding_mode: Padding) -> Tensor:
    """Continue images (B, I, H, W) by rows above and below, and columns on both sides."""
    mode = "constant" if padding_mode == "zeros" else padding_mode
    return fn.pad(x, [margins[1]] * 2 + [margins[0]] * 2, mode=mode)


def _padding_norm(size: tuple[int, int], margins: tuple[int, int], padding_mode: Padding) -> float:
    """Return the norm of a padding that repeats pixels; 1 for those that the Fourier transform knows."""
    if padding_mode in ("circular", "zeros"):
        return 1.0
    copies = (_most_copies(side, margin, padding_mode) for side, margin in zip(size, margins, strict=True))
    return math.prod(copies) ** 0.5


def _most_copies(side: int, margin: int, padding_mode: Padding) -> int:
    """Count how often a padding of a line shows the pixel that it shows most often."""
    if padding_mode == "replicate":
        return 1 + margin * (2 if side == 1 else 1)
    return max(1 + (1 <= at <= margin) + (1 <= side - 1 - at <= margin) for at in range(side))


class SpectralConv2d(nn.Module):
    """Convolution of images of one size, whose spectral norm has a ceiling.

    Choose it to build an F of images. What multiplies is the kernel K / max(1, sigma / coeff). With sigma by
    `convolution_sigma` the ceiling holds to rounding; where that is a bound, the norm ends below it, by a third or so.
    Power iteration on the operator comes as near as one likes, but from below, as in `SpectralLinear`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel, odd.
        size: Height and width of the images.
        padding_mode: `circular`, for which the norm is exact, or `zeros`, `reflect` or `replicate`, for which it is
            bounded.
        coeff: Ceiling c of the spectral norm.
        detach_sigma: Keep the gradient from going through sigma, so that a kernel can come below its ceiling again.
        sigma: `fourier`, by `convolution_sigma`, or `power`, by power iteration on the operator.
        n_power_iterations: Power iterations per training forward, starting from the last image.

    Attributes:
        v: The power iteration's image, (I, H, W); None with `fourier`.

    Raises:
        ValueError: If coeff is not positive, a number of channels or iterations is impossible, the kernel is even,
            sigma is unknown, or `convolution_sigma` refuses the size or padding.
    """

    v: Tensor | None

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
        sigma: ConvolutionSigma = "fourier",
        n_power_iterations: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not coeff > 0:
            raise ValueError(f"coeff is {coeff}; the spectral norm ceiling must be above 0")
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise ValueError(f"kernel_size is {kernel_size}, which has no middle; give an odd one")
        if min(in_channels, out_channels) < 1 or n_power_iterations < 0:
            raise ValueError(
                f"in_channels, out_channels and n_power_iterations are {in_channels}, {out_channels} and "
                f"{n_power_iterations}; give 1, 1, 0 or more"
            )
        if sigma not in get_args(ConvolutionSigma):
            raise ValueError(f"sigma is {sigma!r}; choose {' or '.join(get_args(ConvolutionSigma))}")
        _check(size, padding_mode)
        made = nn.Conv2d(in_channels, out_channels, kernel_size, device=device, dtype=dtype)
        assert made.bias is not None
        self.weight, self.bias = made.weight, made.bias
        self.size, self.padding_mode, self.coeff, self.detach_sigma = size, padding_mode, coeff, detach_sigma
        self.n_power_iterations = n_power_iterations
        with torch.no_grad():
            convolution_sigma(self.weight, self.size, self.padding_mode)
        start = torch.randn(in_channels, *size, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("v", start.to(self.weight.device) if sigma == "power" else None)
        self.warm_up()

    @torch.no_grad()
    def warm_up(self) -> None:
        """Bring the power iteration to rest: call it whenever `weight` was changed other than by training."""
        self._iterate(WARM_UP_STEPS)

    def sigma(self) -> Tensor:
        """Return the norm of the operator before normalisation: exact, or its bound, or an estimate from below."""
        if self.v is None:
            return convolution_sigma(self.weight, self.size, self.padding_mode)
        v = self.v.to(at_least_float32(self.weight).dtype, copy=True)  # the backward may come after the next forward
        return torch.linalg.vector_norm(self._apply_kernel(v)) / torch.linalg.vector_norm(v)

    @torch.no_grad()
    def _iterate(self, steps: int) -> None:
        """Move v towards the image that the operator stretches most."""
        if self.v is None or self.v.is_meta:
            return
        v = self.v.to(at_least_float32(self.weight).dtype)
        for _ in range(steps):
            with torch.enable_grad():
                at = v.detach().requires_grad_()
                u = self._apply_kernel(at)
            moved = torch.autograd.grad(u, at, u.detach())[0]
            length = torch.linalg.vector_norm(moved)
            v = torch.where(length > 0, moved / length.clamp_min(torch.finfo(v.dtype).tiny), v)
        self.v.copy_(v)

    def _apply_kernel(self, v: Tensor) -> Tensor:
        """Apply the operator before normalisation to an image (I, H, W)."""
        kernel = at_least_float32(self.weight.detach() if not torch.is_grad_enabled() else self.weight)
        exact = torch.float64 if v.is_cuda else kernel.dtype  # cuDNN rounds float32 to TF32 unless told otherwise
        with full_precision(v.device):
            u = fn.conv2d(_pad(v[None].to(exact), self._margins, self.padding_mode), kernel.to(exact))
        return u[0].to(kernel.dtype)

    @property
    def _margins(self) -> tuple[int, int]:
        return self.weight.shape[-2] // 2, self.weight.shape[-1] // 2

    def normalized_weight(self) -> Tensor:
        """Return the kernel that multiplies, (O, I, h, w). In training it advances the power iteration first."""
        if self.training:
            self._iterate(self.n_power_iterations)
        sigma = self.sigma()
        sigma = sigma.detach() if self.detach_sigma else sigma
        return (self.weight / torch.clamp(sigma / self.coeff, min=1.0)).to(self.weight.dtype)

    def lipschitz_bound(self) -> float:
        """Return the spectral norm that the layer has, or a bound of it: power iteration, from below, is none."""
        bound = float(convolution_sigma(self.weight, self.size, self.padding_mode).detach())
        if self.v is None:
            return min(bound, self.coeff)
        return bound / max(1.0, float(self.sigma().detach()) / self.coeff)

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
        padded = _pad(x, self._margins, self.padding_mode)
        kernel = self.normalized_weight() if weight is None else weight
        return fn.conv2d(padded, kernel, self.bias if bias is None else bias)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        d_out, d_in, *kernel = self.weight.shape
        return (
            f"{d_in}, {d_out}, kernel_size={tuple(kernel)}, size={self.size}, padding_mode={self.padding_mode}, "
            f"coeff={self.coeff}, sigma={'fourier' if self.v is None else 'power'}"
        )
