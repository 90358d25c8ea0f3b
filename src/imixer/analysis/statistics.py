"""Mean and spread of a measurement."""

from typing import Dict

from torch import Tensor


def spread(values: Tensor) -> Dict[str, float]:
    """Mean and standard deviation of a sample (N,); 0 if N is 1."""
    return {"mean": float(values.mean()), "std": float(values.std()) if len(values) > 1 else 0.0}


def plus_minus(values: Tensor, digits: int = 3) -> str:
    """`mean +- std` of a sample (N,)."""
    found = spread(values.double())
    return f"{found['mean']:.{digits}g} +- {found['std']:.2g}"
