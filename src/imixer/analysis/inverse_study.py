"""Measure how exactly G(v) comes back from x, against ceiling, depth, iterations and precision.

python -m imixer.analysis.inverse_study > inverse.md
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from imixer.analysis.inverse import recover_G
from imixer.analysis.statistics import relative_error
from imixer.implicit import Contraction, SpectralLinear, fold
from imixer.implicit.certificate import on_data
from imixer.implicit.nest import fixed_point
from imixer.implicit.solvers import Picard
from imixer.tables import Grid, markdown, plus_minus

CEILINGS = (0.5, 0.7, 0.9, 0.95)
DEPTHS = (3, 4, 5)
ITERATIONS = (2, 8, 32)
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16)
FEATURES, INPUTS = 64, 64


def untrained(coeff: float, depth: int, seed: int) -> Contraction:
    """Make an untrained F in float64 that its ceiling binds in every direction.

    Its matrices are orthogonal, times ten times the ceiling, and W2 is the transpose of W1. Gaussian matrices would
    hardly feel a ceiling, since almost all of their directions are far below their norm.

    Args:
        coeff: Ceiling c of the spectral norms.
        depth: Number of layers L.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        F = Contraction(FEATURES, [2 * FEATURES] * (depth - 2), tied=True, coeff=coeff, dtype=torch.float64)
        for layer in F.modules():
            if isinstance(layer, SpectralLinear):
                nn.init.orthogonal_(layer.weight, gain=10 * coeff)
                layer.warm_up()
    return F.eval()


def round_trips(F: Contraction, z: Tensor) -> Iterator[tuple[torch.dtype, str, Tensor]]:
    """Measure relative errors of z = G(v) after going to x and back, in every precision and number of iterations.

    Args:
        F: The contraction.
        z: G(v), (B, D).

    Yields:
        Precision, number of iterations, errors (B,).
    """
    for dtype in PRECISIONS:
        plain, start = fold(F).to(dtype), z.to(dtype)
        weights = plain.weights()
        for n in ITERATIONS:
            x = start
            for _ in range(n):
                x = start + plain(x, weights, n)
            yield dtype, f"n = {n}", relative_error(recover_G(plain, x, n), start)
        solver = Picard(rtol=8 * torch.finfo(dtype).eps, atol=0.0, max_steps=200)
        x = fixed_point(plain, start, solver).states[0]
        yield dtype, "converged", relative_error(recover_G(plain, x, solver=solver), start)


def measure_round_trips(
    seed: int = 0,
) -> tuple[dict[tuple[torch.dtype, float, int, str], Tensor], dict[tuple[float, int], Tensor]]:
    """Measure all round trips of Gaussian z, and the norms of the Jacobian of F at their fixed points."""
    errors, norms = {}, {}
    z = torch.randn(INPUTS, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for depth in DEPTHS:
        for coeff in CEILINGS:
            F = untrained(coeff, depth, seed)
            norms[coeff, depth] = on_data(F, z, tol=1e-2, max_steps=20).norms[0]
            for dtype, how, error in round_trips(F, z):
                errors[dtype, coeff, depth, how] = error
    return errors, norms


def round_trip_tables() -> Iterator[Grid]:
    """Measure, and make a table per precision."""
    errors, norms = measure_round_trips()
    hows = [*(f"n = {n}" for n in ITERATIONS), "converged"]
    for dtype in PRECISIONS:
        name = str(dtype).removeprefix("torch.")
        rows = []
        for depth in DEPTHS:
            for coeff in CEILINGS:
                norm = norms[coeff, depth]
                exists = bool(norm.isfinite().all())
                steep = plus_minus(float(norm.mean()), float(norm.std())) if exists else "none, inside ≥ 1"
                cells = (_cell(errors[dtype, coeff, depth, how]) for how in hows)
                rows.append((str(depth), str(coeff), steep, *cells))
        yield Grid((f"{name}: L", "c", "norm of dF/dx", *hows), tuple(rows), 0)


def _cell(errors: Tensor) -> str:
    return f"{errors.mean():.1e} +- {errors.std():.0e}" if errors.mean() < 1 else "diverges"


if __name__ == "__main__":
    print("\n".join(map(markdown, round_trip_tables())))
