"""Compare the fused token mixing with the one it replaces: is it right, and is it faster?"""

from __future__ import annotations

import traceback
from importlib.util import find_spec

import torch
from torch import Tensor

from imixer.errors import in_short
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.promise import relative_distance
from imixer.implicit.fused import fused_mode, fused_ms, step_by_step, step_by_step_ms, token_mixing

# samples, channels, tokens S, D_S, N_h, n of the largest token mixings that are trained
SHAPES = {
    "laptop, stage 1": (512, 64, 256, 128, 64, 1),
    "laptop, stage 2": (512, 128, 64, 64, 32, 1),
    "tables of the laptop scale": (512, 128, 64, 64, 128, 2),
    "S/16, hidden ratio 2": (512, 512, 196, 256, 512, 2),
}
TINY_SHAPES = {"tiny, odd": (2, 5, 7, 9, 20, 2)}
TABLE = "Fused token mixing against products one by one"
BOUND = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-12}  # float32 may be TF32 there
_CHECKED = 4  # samples to look at in float64


def token_mixing_of(
    shape: tuple[int, int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[Tensor], int]:
    """Draw tokens (B, C, S), as a block has them, and weights of which F is a contraction.

    Args:
        shape: Samples, channels, tokens, D_S, N_h and iterations.
        dtype: Their type.
        device: Where they are wanted.

    Returns:
        Tokens, weights and iterations, as `imixer.implicit.fused.token_mixing` takes them.
    """
    B, C, S, d, h, n = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int, scale: float = 0.5) -> Tensor:
        x = torch.randn(*size, generator=generator, dtype=torch.float64) * scale
        return (x / size[-1] ** 0.5 if len(size) == 2 else x).to(device, dtype)

    weights = [draw(d, S), draw(d), draw(h, d), draw(h), draw(d, h), draw(d), draw(S, d), draw(S)]
    return draw(B, S, C, scale=1.0).transpose(1, 2), weights, n


def error_of(v: Tensor, weights: list[Tensor], n_iter: int) -> float:
    """Measure how far values and gradients of the kernel are from those of `step_by_step` in float64."""
    sides: list[list[Tensor]] = []
    with fused_mode("on"):
        for dtype in (v.dtype, torch.float64):
            leaves = [t.detach().to(dtype).requires_grad_() for t in (v[:_CHECKED], *weights)]
            run = token_mixing if dtype == v.dtype and not sides else step_by_step
            y = run(leaves[0], leaves[1:], n_iter)
            assert y is not None, "the kernel does not take it"
            with torch.no_grad():
                ahead = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
            sides.append([y, *torch.autograd.grad(y, leaves, ahead)])
    return max(relative_distance(a, b) for a, b in zip(*sides, strict=True))


def run(bench: Bench) -> None:
    """Write down for each shape and type whether it is right, and how fast it is, forward and back."""
    if find_spec("triton") is None:
        bench.note("Triton is not installed here.")
        return
    dtypes = (torch.float64, torch.bfloat16) if bench.tiny else (torch.bfloat16, torch.float32)
    torch.set_float32_matmul_precision("high")
    for name, shape in (TINY_SHAPES if bench.tiny else SHAPES).items():
        for dtype in dtypes:
            if bench.skipped(f"{name} in {dtype}"):
                return
            try:
                _compare(bench, name, shape, dtype)
            except Exception as error:  # of one shape, such as too little shared memory
                traceback.print_exc()
                why = f"{type(error).__name__}: {in_short(error)}"
                bench.row(TABLE, shape=name, type=str(dtype).removeprefix("torch."), holds=False, why_not=why)
    bench.note(
        "B samples, C channels, S tokens, widths D and H, n iterations. Off is the largest relative distance of a "
        "value or a gradient from float64. The kernel is chosen nowhere until this device's name is in "
        "imixer.implicit.fused.PROVEN."
    )


def _compare(bench: Bench, name: str, shape: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    v, weights, n = token_mixing_of(shape, dtype, bench.device)
    off = error_of(v, weights, n)
    times = {
        f"{what}_{'training' if backward else 'inference'}_ms": measure(v, weights, n, backward)
        for backward in (False, True)
        for what, measure in (("fused", fused_ms), ("stepwise", step_by_step_ms))
    }
    bench.row(
        TABLE,
        shape=name,
        B_C_S_D_H_n=" ".join(map(str, shape)),
        type=str(dtype).removeprefix("torch."),
        holds=off <= BOUND[dtype],
        off=off,
        **times,
        speed_up_in_training=times["stepwise_training_ms"] / times["fused_training_ms"],
    )
