"""Convolutions whose spectral norm is held at a ceiling. O, I: channels out and in; G: groups; k: kernel sizes."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from imixer.dtypes import at_least_float32
from imixer.errors import as_whole, check_whole
from imixer.implicit.spectral import (
    WARM_UP_STEPS,
    PowerIterated,
    binade,
    full_precision,
    replaying,
    unit,
    unless_lost,
)

Padding = Literal["circular", "zeros", "reflect", "replicate"]
ConvolutionSigma = Literal["fourier", "power"]


def convolution_sigma(
    kernel: Tensor,
    size: int | Sequence[int],
    padding_mode: Padding = "circular",
    *,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Compute the spectral norm of a convolution that keeps the size of its input. Differentiable.

    With circular padding it is exact: the Fourier transform makes the operator block diagonal, a matrix (O, I) per
    frequency. With zeros it is a bound: the operator is a part of the circular one on an image larger by the kernel.
    `reflect` and `replicate` are a padding, whose norm is the root of the most copies of one pixel, before such a part.

    Args:
        kernel: (O, I / G, *k), of stride 1, along as many axes as `size` has.
        size: Sizes of the input, such as (H, W).
        padding_mode: How the input is continued.
        dilation: Distance between the kernel's pixels.
        groups: Groups G of channels that do not see each other.

    Raises:
        ValueError: If the image is smaller than the kernel, the sizes are not one per axis of the kernel, the padding
            is another, dilation is below 1, or groups do not divide the channels out.

    Source: Sedghi, Gupta & Long, arXiv 1805.10408, theorem 6; the bound is ours.
    """
    axes = kernel.dim() - 2
    if axes < 1:
        raise ValueError(f"the kernel is {tuple(kernel.shape)}; give (O, I, *k), with the sizes of the kernel last")
    size = _checked(size, padding_mode, axes)
    check_whole(dilation=dilation, groups=groups)
    if dilation < 1 or groups < 1 or kernel.shape[0] % groups:
        raise ValueError(
            f"dilation and groups are {dilation} and {groups}, for {kernel.shape[0]} channels out; give 1 or more of "
            "each, and a number of groups that divides the channels"
        )
    reach = _reach(kernel, dilation)
    if any(n < k for n, k in zip(size, reach, strict=True)):
        raise ValueError(f"size is {size}, less than the kernel's {reach}; give a larger image")
    torus = size if padding_mode == "circular" else tuple(n + k - 1 for n, k in zip(size, reach, strict=True))
    wide = at_least_float32(kernel)
    spread = wide.new_zeros(*kernel.shape[:2], *reach)
    pixels: tuple[Any, ...] = (..., *([slice(None, None, dilation)] * axes))
    spread[pixels] = wide
    symbols = torch.fft.rfftn(spread, s=torus, dim=tuple(range(2, 2 + axes)))
    blocks = symbols.flatten(2).movedim(2, 0).unflatten(1, (groups, -1))  # (frequencies, G, O / G, I / G)
    return torch.linalg.matrix_norm(blocks, ord=2).amax() * _padding_norm(size, _margins(reach), padding_mode)


def _checked(size: int | Sequence[int], padding_mode: str, axes: int) -> tuple[int, ...]:
    """Return the size of images as a tuple."""
    if padding_mode not in get_args(Padding):
        raise ValueError(f"padding_mode is {padding_mode!r}; choose {', '.join(get_args(Padding))}")
    sizes = as_whole(size)
    if not sizes or min(sizes) < 1 or len(sizes) != axes:
        wanted = {1: "the length of the sequences, such as (100,)", 2: "the height and the width, such as (32, 32)"}
        raise ValueError(f"size is {size!r}; give {wanted.get(axes, f'{axes} sizes, such as {(8,) * axes}')}")
    return sizes


def _scaled(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Divide a kernel by a power of two near its largest entry, lest squares overflow; return both."""
    kernel = at_least_float32(kernel)
    scale = binade(kernel.flatten())[0]
    return kernel / scale, scale


def _reach(kernel: Tensor, dilation: int) -> tuple[int, ...]:
    """Return the sizes of a kernel (O, I / G, *k) with the gaps between its pixels."""
    return tuple(dilation * (k - 1) + 1 for k in kernel.shape[2:])


def _margins(reach: Sequence[int]) -> tuple[int, ...]:
    return tuple(k // 2 for k in reach)


def _pad(x: Tensor, margins: Sequence[int], padding_mode: Padding) -> Tensor:
    """Continue images (B, I, *size) on both sides of every axis."""
    mode = "constant" if padding_mode == "zeros" else padding_mode
    return fn.pad(x, [m for margin in reversed(margins) for m in (margin, margin)], mode=mode)


def _padding_norm(size: Sequence[int], margins: Sequence[int], padding_mode: Padding) -> float:
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


class _SpectralConv(PowerIterated):
    """What convolutions along one, two or three axes share."""

    axes: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        size: int | Sequence[int],
        *,
        padding_mode: Padding = "circular",
        dilation: int = 1,
        groups: int = 1,
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
        kernel = as_whole(kernel_size)
        if kernel and not isinstance(kernel_size, Sequence):
            kernel = kernel * self.axes
        if not kernel or len(kernel) != self.axes:
            raise ValueError(f"kernel_size is {kernel_size}; give one odd number, or {self.axes}")
        if any(k % 2 == 0 or k < 1 for k in kernel):
            raise ValueError(f"kernel_size is {kernel_size}, which has no middle; give an odd one")
        check_whole(in_channels=in_channels, out_channels=out_channels, n_power_iterations=n_power_iterations)
        check_whole(dilation=dilation, groups=groups)
        if min(in_channels, out_channels) < 1 or n_power_iterations < 0:
            raise ValueError(
                f"in_channels, out_channels and n_power_iterations are {in_channels}, {out_channels} and "
                f"{n_power_iterations}; give 1, 1, 0 or more"
            )
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups is {groups}, for {in_channels} channels in and {out_channels} out; give a divisor of both"
            )
        if sigma not in get_args(ConvolutionSigma):
            raise ValueError(f"sigma is {sigma!r}; choose {' or '.join(get_args(ConvolutionSigma))}")
        self.size = _checked(size, padding_mode, self.axes)
        made = getattr(nn, f"Conv{self.axes}d")(
            in_channels, out_channels, kernel, groups=groups, device=device, dtype=dtype
        )
        self.weight = made.weight
        self.bias: nn.Parameter = made.bias
        self.padding_mode: Padding = padding_mode
        self.dilation, self.groups, self.coeff, self.detach_sigma = dilation, groups, coeff, detach_sigma
        self.n_power_iterations = n_power_iterations
        self.advances_itself = True
        with torch.no_grad():
            self._fourier_sigma()
        v = torch.empty(in_channels, *self.size, device=self.weight.device) if sigma == "power" else None
        self.register_buffer("v", v)
        self.init_non_persistent_buffers()

    @torch.no_grad()
    def warm_up(self) -> None:
        """Bring the power iteration to rest: call it whenever `weight` was changed other than by training.

        It begins anew: the last image may have one frequency alone, which no circular convolution leads out of.
        """
        if self.v is not None:
            self.v.copy_(self._first_v(self.v))
            self._iterate(WARM_UP_STEPS)

    def advance(self) -> None:
        """Run one training forward's power iterations."""
        self._iterate(self.n_power_iterations)

    def sigma(self) -> Tensor:
        """Return the norm of the operator before normalisation: exact, or its bound, or an estimate from below."""
        if self.v is None:
            return self._fourier_sigma()
        kernel, scale = _scaled(self.weight)
        v = self.v.to(kernel.dtype, copy=True)  # the backward may come after the next forward
        return scale * torch.linalg.vector_norm(self._apply_kernel(v, kernel)) / torch.linalg.vector_norm(v)

    def _fourier_sigma(self) -> Tensor:
        return convolution_sigma(self.weight, self.size, self.padding_mode, dilation=self.dilation, groups=self.groups)

    @torch.no_grad()
    def _iterate(self, steps: int) -> None:
        """Move v towards the image that the operator stretches most."""
        if self.v is None or self.v.is_meta or self.weight.is_meta:
            return
        # Inference mode takes no derivatives, nor of what was made there. Hooks would take what this saves
        # for a part of the forward, which a checkpointed one would miss in its replay.
        with torch.inference_mode(False), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            kernel, _ = _scaled(self.weight.detach().clone())
            before = v = self.v.detach().clone().to(kernel.dtype)
            for _ in range(steps):
                with torch.enable_grad():
                    at = v.detach().requires_grad_()
                    u = self._apply_kernel(at, kernel)
                moved = torch.autograd.grad(u, at, u.detach())[0]
                v = unit(moved.flatten()).view_as(v)
            v = unless_lost(v.flatten(), before.flatten()).view_as(v)
        self.v.copy_(v)

    def _apply_kernel(self, v: Tensor, kernel: Tensor) -> Tensor:
        """Apply the operator of a kernel, before normalisation, to an image (I, *size)."""
        kernel = at_least_float32(kernel)
        exact = torch.float64 if v.is_cuda else kernel.dtype  # cuDNN rounds float32 to TF32 unless told otherwise
        with full_precision(v.device):
            u = self._convolved(v[None].to(exact), kernel.to(exact), None)
        return u[0].to(kernel.dtype)

    def _convolved(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        padded = _pad(x, _margins(_reach(kernel, self.dilation)), self.padding_mode)
        convolve: Any = (fn.conv1d, fn.conv2d, fn.conv3d)[self.axes - 1]
        y: Tensor = convolve(padded, kernel, bias, dilation=self.dilation, groups=self.groups)
        return y

    def normalized_weight(self) -> Tensor:
        """Return the kernel that multiplies, (O, I / G, *k). In training it advances the power iteration first."""
        if self.training and self.advances_itself and not replaying():
            self.advance()
        sigma = self.sigma()
        sigma = sigma.detach() if self.detach_sigma else sigma
        return (self.weight / torch.clamp(sigma / self.coeff, min=1.0)).to(self.weight.dtype)

    def lipschitz_bound(self) -> float:
        """Return the spectral norm that the layer has, or a bound of it: power iteration, from below, is none."""
        bound = float(self._fourier_sigma().detach())
        if self.v is None:
            return min(bound, self.coeff)
        return bound / max(1.0, float(self.sigma().detach()) / self.coeff)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Convolve images.

        Args:
            x: (B, I, *size).
            weight: What `normalized_weight()` gave. Default: normalise now.
            bias: Bias (O,) to add. Default: the layer's own.

        Returns:
            (B, O, *size).

        Raises:
            ValueError: If the images have another size, for which nothing is known.
        """
        known = self.size if self.v is None else tuple(self.v.shape[1:])
        if x.dim() != self.axes + 2 or tuple(x.shape[2:]) != known:
            raise ValueError(
                f"images are {tuple(x.shape[2:])}, and the norm is known for {known}; build the layer for that size"
            )
        return self._convolved(
            x, self.normalized_weight() if weight is None else weight, self.bias if bias is None else bias
        )

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        d_out, d_in, *kernel = self.weight.shape
        return (
            f"{d_in * self.groups}, {d_out}, kernel_size={tuple(kernel)}, size={self.size}, "
            f"padding_mode={self.padding_mode}, dilation={self.dilation}, groups={self.groups}, coeff={self.coeff}, "
            f"sigma={'fourier' if self.v is None else 'power'}"
        )


class SpectralConv2d(_SpectralConv):
    """Convolution of images of one size, whose spectral norm has a ceiling.

    Choose it to build an F of images. What multiplies is the kernel K / max(1, sigma / coeff). With sigma by
    `convolution_sigma` the ceiling holds to rounding; where that is a bound, the norm ends below it, by a third or so.
    Power iteration on the operator comes as near as one likes, but from below, as in `SpectralLinear`. Its stride is 1,
    since F leads from a state to its like.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel, odd; one number for both.
        size: Height and width of the images.
        padding_mode: `circular`, for which the norm is exact, or `zeros`, `reflect` or `replicate`, for which it is
            bounded.
        dilation: Distance between the kernel's pixels.
        groups: Groups of channels that do not see each other.
        coeff: Ceiling c of the spectral norm.
        detach_sigma: Keep the gradient from going through sigma, so that a kernel can come below its ceiling again.
        sigma: `fourier`, by `convolution_sigma`, or `power`, by power iteration on the operator.
        n_power_iterations: Power iterations per training forward, starting from the last image.

    Attributes:
        v: The power iteration's image, (I, H, W); None with `fourier`.

    Raises:
        ValueError: If coeff is not positive, a number of channels, groups or iterations is impossible, the kernel is
            even, sigma is unknown, or `convolution_sigma` refuses the size, dilation or padding.
    """

    axes = 2


class SpectralConv1d(_SpectralConv):
    """Convolution of sequences (B, I, length), otherwise as `SpectralConv2d`.

    Choose it to build an F of sequences.
    """

    axes = 1


class SpectralConv3d(_SpectralConv):
    """Convolution of volumes (B, I, depth, height, width), otherwise as `SpectralConv2d`.

    Choose it to build an F of volumes or films.
    """

    axes = 3
