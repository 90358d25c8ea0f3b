"""Mean, spread and error of a measurement."""

import torch
from torch import Tensor


def spread(values: Tensor) -> dict[str, float]:
    """Mean and standard deviation of a sample (N,); 0 if N is 1."""
    return {"mean": float(values.mean()), "std": float(values.std()) if len(values) > 1 else 0.0}


def plus_minus(values: Tensor, digits: int = 3) -> str:
    """`mean +- std` of a sample (N,)."""
    found = spread(values.double())
    return f"{found['mean']:.{digits}g} +- {found['std']:.2g}"


def relative_error(x: Tensor, truth: Tensor) -> Tensor:
    """||x - truth|| / ||truth|| of each sample along the first axis, in float64, on the CPU."""
    x, truth = x.double().flatten(1), truth.double().flatten(1)
    return (torch.linalg.vector_norm(x - truth, dim=1) / torch.linalg.vector_norm(truth, dim=1)).cpu()
