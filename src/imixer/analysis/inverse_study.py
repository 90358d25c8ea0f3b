"""How exactly G(v) comes back from x: against the ceiling, the depth, the iterations and the precision.

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

CEILINGS = (0.5, 0.7, 0.9, 0.95)
DEPTHS = (3, 4, 5)
ITERATIONS = (2, 8, 32)
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16)
FEATURES, INPUTS = 64, 64


def untrained(coeff: float, depth: int, seed: int) -> Contraction:
    """An untrained F in float64 that its ceiling binds in every direction.

    The matrices are orthogonal, times ten times the ceiling, and the way back is the transpose of the way there.
    Gaussian ones hardly feel a ceiling, since almost all of their directions are far below their norm.

    Args:
        coeff: The ceiling c.
        depth: Layers L.
        seed: Of the weights.
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
    """Relative errors of z = G(v) after going to x and back, of every precision and number of iterations.

    Args:
        F: The contraction.
        z: (B, D).

    Returns:
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


def study(seed: int = 0) -> tuple[dict[tuple[torch.dtype, float, int, str], Tensor], dict[tuple[float, int], Tensor]]:
    """All round trips of Gaussian z, and the norms of the Jacobian of F at their fixed points."""
    errors, norms = {}, {}
    z = torch.randn(INPUTS, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for depth in DEPTHS:
        for coeff in CEILINGS:
            F = untrained(coeff, depth, seed)
            norms[coeff, depth] = on_data(F, z, tol=1e-2, max_steps=20).norms[0]
            for dtype, how, error in round_trips(F, z):
                errors[dtype, coeff, depth, how] = error
    return errors, norms


def tables() -> Iterator[str]:
    """The study as lines of Markdown."""
    errors, norms = study()
    hows = [*(f"n = {n}" for n in ITERATIONS), "converged"]
    for dtype in PRECISIONS:
        name = str(dtype).removeprefix("torch.")
        yield f"| {name}: L | c | norm of dF/dx | {' | '.join(hows)} |"
        yield "|" + "---|" * (len(hows) + 3)
        for depth in DEPTHS:
            for coeff in CEILINGS:
                norm = norms[coeff, depth]
                cells = [_cell(errors[dtype, coeff, depth, how]) for how in hows]
                steep = f"{norm.mean():.2f} ± {norm.std():.2f}" if norm.isfinite().all() else "none, inside ≥ 1"
                yield f"| {depth} | {coeff} | {steep} | {' | '.join(cells)} |"
        yield ""


def _cell(errors: Tensor) -> str:
    return f"{errors.mean():.1e} ± {errors.std():.0e}" if errors.mean() < 1 else "diverges"


if __name__ == "__main__":
    print("\n".join(tables()))
