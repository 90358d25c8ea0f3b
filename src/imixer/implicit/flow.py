"""Residual flows: 1 - F as an invertible transform, and how it changes densities."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from imixer.errors import check_whole
from imixer.implicit.choices import named_solver
from imixer.implicit.contraction import Contraction
from imixer.implicit.determinants import exact_log_det, residual_log_det
from imixer.implicit.gradients import Implicit, adjoint_like
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Anderson, ToTolerance
from imixer.implicit.spectral import PowerIterated, advance_once, release
from imixer.implicit.states import per_sample

DEFAULT_INVERSE = Anderson(rtol=1e-5, atol=1e-6)


class ResidualFlow(nn.Module):
    """z = x - F(x), its inverse x = (1 - F)^-1 z, and the log-determinants of both.

    Choose it to make a density, or an invertible layer, of a contraction: `ResidualFlow(block.mlp_tokens.contraction)`
    is that of an iMixer's block, whose x is what the block computes of z = G(v). Everything is differentiable: the way
    back by the implicit function theorem, the determinants as `residual_log_det` is.

    Args:
        F: A `Contraction`, or any module from x (B, ...) to its like. If it has a method `weights()`, these are
            computed once per call and handed on, as `F(x, *weights)`. Otherwise its parameters get the gradients. In
            training its power iterations run once per call.
        exact: Compute determinants from the whole Jacobian, of N x N for N numbers a sample. Choose it for small N.
        terms: Terms of the series otherwise, see `residual_log_det`.
        roulette: Probability that one more is taken.
        probes: Random vectors.
        n_iter: Iterations of inverses inside a nested `Contraction`.
        solver: How x is found: `Anderson`, `Broyden` or `Picard`, or one of these by name.

    Raises:
        ValueError: If an option of the series is impossible, the solver has no tolerance, or F is no module.

    Source: Behrmann et al., arXiv 1811.00995; Chen et al., arXiv 1906.02735; (1 - F)^-1 is paper (27).
    """

    def __init__(
        self,
        F: nn.Module,
        *,
        exact: bool = False,
        terms: int = 10,
        roulette: float = 0.5,
        probes: int = 1,
        n_iter: int = 16,
        solver: ToTolerance | str = DEFAULT_INVERSE,
    ) -> None:
        super().__init__()
        if not isinstance(F, nn.Module):
            raise ValueError(f"F is {type(F).__name__}; give a module from x to its like")
        check_whole(terms=terms, probes=probes, n_iter=n_iter)
        if terms < 1 or probes < 1 or not 0 <= roulette < 1:
            raise ValueError(
                f"terms, probes and roulette are {terms}, {probes} and {roulette}; give 1 or more, 1 or more, and a "
                "probability below 1"
            )
        chosen = named_solver(solver) if isinstance(solver, str) else solver
        if not isinstance(chosen, ToTolerance):
            raise ValueError(f"solver is {solver!r}, which has no tolerance; choose Anderson, Broyden or Picard")
        self.F, self.exact, self.n_iter, self.solver = F, exact, n_iter, chosen
        self.series: dict[str, Any] = {"terms": terms, "roulette": roulette, "probes": probes}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute z = x - F(x).

        Args:
            x: Points (B, ...).

        Returns:
            z (B, ...), and log|det dz/dx| (B,).
        """
        with self._map() as (F, weights):
            return x - F(x, *weights), self._log_det(F, x, weights)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Solve x = z + F(x).

        Args:
            z: Points (B, ...).

        Returns:
            x (B, ...), and log|det dx/dz| (B,).

        Raises:
            NotConvergedError: If the inverse is not found.
        """
        gradient = Implicit(adjoint_like(self.solver))
        with self._map() as (F, weights):
            x = solve(F, z, weights, solver=self.solver, gradient=gradient, name="ResidualFlow").value
            return x, -self._log_det(F, x, weights)

    def log_prob(self, x: Tensor, base: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Compute the log-density of x, whose z has a known one.

        Args:
            x: Points (B, ...).
            base: The log-density (B,) of z (B, ...). Default: that of independent standard normal numbers.

        Returns:
            Log-densities (B,); unbiased estimates unless the determinants are exact.

        Raises:
            ValueError: If base gives anything but one number a sample.
        """
        z, log_det = self(x)
        density = _standard_normal(z) if base is None else base(z)
        if density.shape != log_det.shape:
            raise ValueError(f"base gives {tuple(density.shape)}; return one log-density a sample, ({len(z)},)")
        return log_det + density

    @contextmanager
    def _map(self) -> Iterator[tuple[Callable[..., Tensor], Sequence[Tensor]]]:
        """Give F, the same map however often it is evaluated, and what it depends on besides x."""
        F: Any = self.F
        held = advance_once(module for module in F.modules() if isinstance(module, PowerIterated))
        try:
            if isinstance(F, Contraction):
                yield lambda x, *w: F(x, list(w), self.n_iter), F.weights()
            elif callable(getattr(F, "weights", None)):
                yield F, F.weights()
            else:
                own = dict(F.named_parameters())
                # Copies: the backward may come after the next forward has moved the buffers on.
                vectors = {
                    f"{name}.v".removeprefix("."): module.v.clone()
                    for name, module in F.named_modules()
                    if module in held and module.v is not None
                }
                yield (
                    lambda x, *w: functional_call(F, vectors | dict(zip(own, w, strict=True)), (x,)),
                    list(own.values()),
                )
        finally:
            release(held)

    def _log_det(self, F: Callable[..., Tensor], x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return exact_log_det(F, x, weights) if self.exact else residual_log_det(F, x, weights, **self.series)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        if self.exact:
            return "exact=True"
        return ", ".join(f"{name}={value}" for name, value in self.series.items())


def _standard_normal(z: Tensor) -> Tensor:
    normal = torch.distributions.Normal(torch.zeros((), dtype=z.dtype, device=z.device), 1.0)
    density: Tensor = per_sample(normal.log_prob(z)).sum(1)
    return density
