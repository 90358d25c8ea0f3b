"""A layer that has a fixed point whatever its parameters are."""

import torch
from torch import Tensor, nn

from imixer.errors import check_whole
from imixer.implicit.spectral import exact_sigma


class MonotoneContraction(nn.Module):
    """F(x, u) = relu(x - a ((1 - W) x - U u - b)), whose fixed point is that of x = relu(W x + U u + b).

    1 - W = m 1 + A^T A + B - B^T has a symmetric part of at least m, whatever A and B are. With L its spectral norm and
    a = m / L^2, F contracts by sqrt(1 - m^2 / L^2). Choose it where no ceiling is wanted: W itself may have any norm.
    Solve it with z = 0, and F's tensors from `weights()`.

    Args:
        features: Width of x.
        in_features: Width of u.
        margin: m.

    Raises:
        ValueError: If a size is below 1, or margin is not positive.

    Source: Winston & Kolter, arXiv 2006.08591, theorem 1, by forward-backward splitting.
    """

    def __init__(
        self,
        features: int,
        in_features: int,
        margin: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_whole(features=features, in_features=in_features)
        if min(features, in_features) < 1:
            raise ValueError(f"features and in_features are {features} and {in_features}; give 1 or more of each")
        if not margin > 0:
            raise ValueError(f"margin is {margin}; give a strong monotonicity above 0")
        self.margin = margin
        self.A = nn.Linear(features, features, bias=False, device=device, dtype=dtype)
        self.B = nn.Linear(features, features, bias=False, device=device, dtype=dtype)
        self.U = nn.Linear(in_features, features, device=device, dtype=dtype)

    def weights(self) -> list[Tensor]:
        """Return what F depends on besides x and u: 1 - W, U, b, and the step a."""
        A, B = self.A.weight, self.B.weight
        monotone = self.margin * torch.eye(len(A), dtype=A.dtype, device=A.device) + A.T @ A + B - B.T
        # The fixed point does not depend on the step.
        step = self.margin / exact_sigma(monotone.detach()) ** 2
        return [monotone, self.U.weight, self.U.bias, step.to(A.dtype)]

    def lipschitz_bound(self) -> float:
        """Return sqrt(1 - m^2 / L^2)."""
        step = self.weights()[-1]
        return float((1 - self.margin * step.detach()).clamp_min(0).sqrt())

    def forward(self, x: Tensor, u: Tensor, monotone: Tensor, U: Tensor, b: Tensor, step: Tensor) -> Tensor:
        """Take a step of the splitting.

        Args:
            x: States (B, features).
            u: Inputs (B, in_features).
            monotone: 1 - W, the first of `weights()`.
            U: How u enters, the second.
            b: Bias, the third.
            step: a, the last.

        Returns:
            The next states (B, features).
        """
        return torch.relu(x - step * (x @ monotone.T - u @ U.T - b))
