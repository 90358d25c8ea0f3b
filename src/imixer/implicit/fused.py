"""Token mixing in one kernel: H(x) with x = (1 - F)^-1 G(v) by n iterations, the state in registers throughout.

Step by step, each product reads and writes the whole state: on a GPU the memory sets the pace. Fused, the state is
read once and written once, and the backward pass finds n + 1 iterates instead of all that lies between them.

It is off. `python -m imixer.gpu_check` shows on a device whether it is right and faster; a device's name then goes into
`PROVEN`, and there a measurement at first use chooses for each shape.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.timing import wait_for

Mode = Literal["off", "measured", "on"]
PROVEN: frozenset[str] = frozenset()  # devices, by torch's names, on which it was shown to be right and faster

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_WIDEST = 512  # of x: the state must fit into registers
_TOKENS_BLOCK = _INNER_BLOCK = 32
_TURNS = 5

_mode: Mode = "measured"
_faster: dict[Any, bool] = {}


@contextmanager
def fused_mode(mode: Mode) -> Iterator[None]:
    """Decide within the context where token mixing is fused.

    Args:
        mode: `off`: nowhere. `measured`, the default: on the devices in `PROVEN`, for the shapes for which a
            measurement at first use finds it faster. `on`: wherever it can be.

    Raises:
        ValueError: If there is no such mode.
    """
    global _mode
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}; choose off, measured or on")
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def may_fuse(v: Tensor) -> bool:
    """Tell whether fused token mixing comes into question for v at all; cheap, and no wherever it is off."""
    if _mode == "off" or torch.compiler.is_compiling() or not isinstance(v, Tensor):
        return False
    if _mode == "measured" and not (PROVEN and v.is_cuda and torch.cuda.get_device_name(v.device) in PROVEN):
        return False
    if _mode == "on" and v.device.type in ("cpu", "mps") and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    return find_spec("triton") is not None


def token_mixing(v: Tensor, weights: Sequence[Tensor | None], n_iter: int) -> Tensor | None:
    """Mix the tokens of v in one kernel, with exact GELUs, or tell that it is not worth it.

    Under autocast it computes in the dtype of that, and holds the state in float32.

    Args:
        v: Tokens (..., C, S).
        weights: W and b of the way in (D, S), W1 (H, D), b1, W2 (D, H) and b2 of F as they multiply, and W and b of the
            way out (S', D). A bias may be None.
        n_iter: Iterations n.

    Returns:
        Mixed tokens (..., C, S'). None if the dtype or the width is none of the kernel's, or step by step is faster.

    Source: paper (29), (30) and Algorithm 1.
    """
    dtype = torch.get_autocast_dtype(v.device.type) if torch.is_autocast_enabled(v.device.type) else v.dtype
    d = _size(weights[0], 0)
    if dtype not in _DTYPES or d > _WIDEST or v.dim() < 2 or v.numel() == 0:
        return None
    with torch.autocast(v.device.type, enabled=False):
        sizes = d, _size(weights[2], 0), d, _size(weights[6], 0)
        cast = [w.to(dtype).contiguous() if w is not None else None for w in weights]
        biases = [cast[2 * i + 1] if cast[2 * i + 1] is not None else v.new_zeros(size, dtype=dtype)
                  for i, size in enumerate(sizes)]  # fmt: skip
        whole: list[Any] = [t for i in range(4) for t in (cast[2 * i], biases[i])]
        v = v.to(dtype)
        rows = v if v.dim() == 3 else v.reshape(1, -1, v.shape[-1])
        if _mode == "measured" and not _is_faster(rows, whole, n_iter):
            return None
        mixed: Tensor = _TokenMixing.apply(rows, n_iter, *whole)
        return mixed.view(*v.shape[:-1], mixed.shape[-1])


def step_by_step(v: Tensor, weights: Sequence[Tensor], n_iter: int) -> Tensor:
    """Compute what `token_mixing` computes by one product after the other: the reference.

    Args:
        v: Tokens (..., C, S).
        weights: As `token_mixing` takes them, without None.
        n_iter: Iterations n.
    """
    W_in, b_in, W1, b1, W2, b2, W_out, b_out = weights
    z = F.linear(v, W_in, b_in)
    x = z
    for _ in range(n_iter):
        x = z + F.linear(F.gelu(F.linear(F.gelu(x), W1, b1)), W2, b2)
    return F.linear(F.gelu(x), W_out, b_out)


class _TokenMixing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, n_iter: int, *weights: Tensor) -> Tensor:
        from imixer.implicit.fused_kernels import forward_kernel

        B, C, S = v.shape
        d, h, s_out = weights[0].shape[0], weights[2].shape[0], weights[6].shape[0]
        keep = any(ctx.needs_input_grad)
        states = v.new_empty((n_iter + 1, B * C, d) if keep else (1,))
        out = v.new_empty(B, s_out, C).transpose(1, 2)  # as the block will transpose it back
        blocks = _blocks(v, d)
        with _on(v.device):
            forward_kernel[_grid(B * C, blocks)](
                v, *weights, states, out, B * C, S, d, h, s_out, C, B * C * d,
                *v.stride(), *out.stride(), n_iter, keep, **blocks,
            )  # fmt: skip
        ctx.save_for_backward(v, states, *weights)
        ctx.n_iter = n_iter
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        from imixer.implicit.fused_kernels import backward_kernel

        if torch.is_grad_enabled():
            raise RuntimeError(
                "fused token mixing has no second derivative; wrap the computation in imixer.implicit.fused_mode('off')"
            )
        v, states, *weights = ctx.saved_tensors
        W_in, _, W1, b1, W2, _, W_out, _ = weights
        B, C, S = v.shape
        n, rows, d, h, s_out = ctx.n_iter, B * C, W_in.shape[0], W1.shape[0], W_out.shape[0]
        dx, a, da = (v.new_empty(n, rows, width) for width in (d, h, h))
        dz, dv = v.new_empty(rows, d), torch.empty_like(v)
        blocks = _blocks(v, d)
        with _on(v.device):
            backward_kernel[_grid(rows, blocks)](
                dout, W_in, W1, b1, W2, W_out, states, dx, a, da, dz, dv, rows, S, d, h, s_out, C,
                rows * d, rows * h, n * rows * d, n * rows * h, *dout.stride(), *dv.stride(), n, **blocks,
            )  # fmt: skip
        # Sums over all rows are products of their own: a program has only its rows.
        dx, a, da, before = (t.flatten(0, 1) for t in (dx, a, da, F.gelu(states[:n])))
        of_in = torch.einsum("bcd,bcs->ds", dz.view(B, C, d), v), dz.sum(0)
        of_out = torch.einsum("bcs,bcd->sd", dout, F.gelu(states[n]).view(B, C, d)), dout.sum((0, 1))
        return dv, None, *of_in, da.t() @ before, da.sum(0), dx.t() @ a, dx.sum(0), *of_out


def _blocks(v: Tensor, d: int) -> dict[str, Any]:
    """Choose the sizes of a program's blocks, and its arithmetic."""
    import triton
    import triton.language as tl

    padded = max(16, triton.next_power_of_2(d))
    exact = v.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "ACC": tl.float64 if v.dtype == torch.float64 else tl.float32,
        "PRECISION": "ieee" if exact or v.dtype == torch.float64 else "tf32",
        "WIDEN": v.dtype == torch.bfloat16 and not v.is_cuda,
        "R_B": 32 if padded <= 128 else 16,  # beyond, registers no longer hold the state on an H100
        "S_B": _TOKENS_BLOCK,
        "D_P": padded,
        "H_B": _INNER_BLOCK,
        "num_warps": 8,
    }


def _grid(rows: int, blocks: dict[str, Any]) -> tuple[int]:
    return (-(-rows // blocks["R_B"]),)


def _on(device: torch.device) -> Any:
    """Launch on the device of the tensors, which need not be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _size(weight: Tensor | None, axis: int) -> int:
    assert weight is not None  # only biases may be missing
    return weight.shape[axis]


def _is_faster(v: Tensor, weights: list[Tensor], n_iter: int) -> bool:
    """Measure once per shape whether the kernel is faster, with a backward pass where there will be one."""
    backward = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
    key = (tuple(v.shape), v.stride(), *(tuple(w.shape) for w in weights), n_iter, v.dtype, v.device, backward)
    if key not in _faster:
        _faster[key] = fused_ms(v, weights, n_iter, backward) < step_by_step_ms(v, weights, n_iter, backward)
    return _faster[key]


def _best_ms(
    mix: Callable[[Tensor, Sequence[Tensor]], Tensor], v: Tensor, weights: list[Tensor], backward: bool
) -> float:
    v, *weights = (t.detach().requires_grad_(backward) for t in (v, *weights))
    times = []
    with torch.set_grad_enabled(backward):
        for _ in range(_TURNS + 1):  # the first compiles
            wait_for(v.device)
            began = time.perf_counter()
            y = mix(v, weights)
            if backward:
                torch.autograd.grad(y, [v, *weights], torch.ones_like(y))
            wait_for(v.device)
            times.append(1e3 * (time.perf_counter() - began))
    return min(times[1:])


def fused_ms(v: Tensor, weights: list[Tensor], n_iter: int, backward: bool) -> float:
    """Measure the milliseconds of the kernel, the best of some.

    Args:
        v: Tokens (B, C, S).
        weights: As `token_mixing` takes them, of the dtype of v.
        n_iter: Iterations n.
        backward: Whether to go back, too.
    """
    return _best_ms(lambda v, w: _TokenMixing.apply(v, n_iter, *w), v, weights, backward)


def step_by_step_ms(v: Tensor, weights: list[Tensor], n_iter: int, backward: bool) -> float:
    """Measure the milliseconds of `step_by_step`, the best of some. Arguments are those of `fused_ms`."""
    return _best_ms(partial(step_by_step, n_iter=n_iter), v, weights, backward)
