"""Name versions and device, and measure what its largest products reach."""

from __future__ import annotations

import torch

from imixer.gpu_check.journal import Bench
from imixer.timing import milliseconds
from imixer.training.devices import device_name
from imixer.training.run.environment import environment

WIDTH, TINY_WIDTH = 8192, 64
_REPEATS = 3


def product_flops(dtype: torch.dtype, device: torch.device, width: int) -> float:
    """Measure the FLOP per second of a product of two square matrices, the best of some.

    Args:
        dtype: Type of the matrices.
        device: The device.
        width: Rows and columns of each.
    """
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    (a @ b).sum()  # chooses a kernel
    least_s = 0.1 if device.type == "cuda" else 0.0
    return 2 * width**3 / min(milliseconds(lambda: a @ b, device, least_s) for _ in range(_REPEATS)) * 1e3


def run(bench: Bench) -> None:
    """Write down what there is, and how fast it multiplies."""
    device = bench.device
    for name, value in environment().items():
        bench.row("Versions", what=name, value=str(value))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known = {
            "device": device_name(device),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory, GiB": f"{properties.total_memory / 2**30:.1f}",
            "free memory, GiB": f"{torch.cuda.mem_get_info(device)[0] / 2**30:.1f}",
            "shared memory of a block, KiB": getattr(properties, "shared_memory_per_block_optin", 0) // 1024,
            "CUDA of torch": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
        for name, value in known.items():
            bench.row("Versions", what=name, value=str(value))
    width = TINY_WIDTH if bench.tiny else WIDTH
    kinds = [("float32", torch.float32, "highest"), ("TF32", torch.float32, "high"), ("bf16", torch.bfloat16, "high")]
    for name, dtype, precision in kinds:
        torch.set_float32_matmul_precision(precision)
        flops = product_flops(dtype, device, width)
        bench.row(f"Products of two {width}x{width} matrices", type=name, TFLOP_per_s=flops / 1e12)
