"""Summarise a measurement over images: mean, standard deviation, relative error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imixer.tables import plus_minus

if TYPE_CHECKING:
    from torch import Tensor


def spread(values: Tensor) -> dict[str, float]:
    """Return mean and standard deviation of a sample (N,); the latter is 0 if N is 1."""
    return {"mean": float(values.mean()), "std": float(values.std()) if len(values) > 1 else 0.0}


def spread_and_ends(values: Tensor) -> dict[str, float]:
    """Return mean, standard deviation, smallest and largest of a sample (N,)."""
    return spread(values) | {"min": float(values.min()), "max": float(values.max())}


def spread_text(values: Tensor, digits: int = 3) -> str:
    """Write mean and standard deviation of a sample (N,) as `mean +- std`.

    Args:
        values: The sample.
        digits: Significant digits of the mean; the standard deviation has two.
    """
    summary = spread(values.double())
    return plus_minus(summary["mean"], summary["std"], digits, significant=True)


def relative_error(x: Tensor, truth: Tensor) -> Tensor:
    """Return ||x - truth|| / ||truth|| of each sample along the first axis, in float64, on the CPU."""
    from torch.linalg import vector_norm

    x, truth = x.double().flatten(1), truth.double().flatten(1)
    return (vector_norm(x - truth, dim=1) / vector_norm(truth, dim=1)).cpu()
