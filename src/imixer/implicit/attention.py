"""Self-attention that is Lipschitz, with a ceiling. N: tokens, D: features, H: heads, Y = D / H."""

import math

import torch
from torch import Tensor, nn

from imixer.dtypes import at_least_float32
from imixer.errors import check_whole


class L2Attention(nn.Module):
    """F(x) = [P_h x A_h V_h]_h W_O, which attends by distance: P_h = softmax(-||Q_h (x_i - x_j)||^2 / sqrt(Y)).

    A_h = Q_h^T Q_h / sqrt(Y). Choose it for an F in which tokens attend to each other: attention by scalar products has
    no Lipschitz constant, however small its matrices are. What it gives is divided by max(1, bound / coeff). The bound
    is of the whole image of N tokens, for any input, and loose: it grows as sqrt(N) log N.

    Args:
        features: D.
        num_heads: H, a divisor of D.
        tokens: The most tokens that it may be given, N.
        coeff: Ceiling c of the Lipschitz constant. Must be positive.
        detach_sigma: Keep the gradient from going through the bound, so that the matrices can come below the ceiling
            again.

    Raises:
        ValueError: If a size is below 1, the heads do not divide the features, or coeff is not positive.

    Source: Kim, Papamakarios & Mnih, arXiv 2006.04710, theorem 3.2: sqrt(N / Y) (4 phi^-1(N - 1) + 1) times the norms
    of the matrices, with phi(x) = x e^(x + 1), and section 4 for the division.
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        tokens: int,
        *,
        coeff: float = 0.9,
        detach_sigma: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_whole(features=features, num_heads=num_heads, tokens=tokens)
        if min(features, num_heads, tokens) < 1 or features % num_heads:
            raise ValueError(
                f"features, num_heads and tokens are {features}, {num_heads} and {tokens}; give 1 or more of each, and "
                "a number of heads that divides the features"
            )
        if not 0 < coeff < math.inf:
            raise ValueError(f"coeff is {coeff}; the ceiling of the Lipschitz constant must be above 0")
        self.tokens, self.coeff, self.detach_sigma = tokens, coeff, detach_sigma
        width, std = features // num_heads, features**-0.5

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(*shape, device=device, dtype=dtype))

        self.query = drawn(num_heads, width, features)
        self.value = drawn(num_heads, width, features)
        self.out = drawn(features, features)

    def sigma(self) -> Tensor:
        """Bound the Lipschitz constant before the division, by the matrices and the number of tokens."""
        Q, V, W = (at_least_float32(weight) for weight in (self.query, self.value, self.out))
        # A_h scales as the square of Q_h, and so must the bound: where tokens lie far apart, each attends to itself.
        norms = torch.linalg.matrix_norm(Q, 2) ** 2 * torch.linalg.matrix_norm(V, 2)
        spread = math.sqrt(self.tokens / Q.shape[1]) * (4 * _inverse_phi(self.tokens - 1) + 1)
        return spread * torch.linalg.vector_norm(norms) * torch.linalg.matrix_norm(W, 2)

    def lipschitz_bound(self) -> float:
        """Return the Lipschitz constant that the layer has at most."""
        return min(float(self.sigma().detach()), self.coeff)

    def weights(self) -> list[Tensor]:
        """Return what F depends on besides x: Q, V, and W_O divided."""
        sigma = self.sigma()
        sigma = sigma.detach() if self.detach_sigma else sigma
        return [self.query, self.value, (self.out / torch.clamp(sigma / self.coeff, min=1.0)).to(self.out.dtype)]

    def forward(
        self, x: Tensor, query: Tensor | None = None, value: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: Tokens (B, N, D).
            query: Q (H, Y, D), the first of `weights()`. Default: compute all three now.
            value: V (H, Y, D), the second.
            out: W_O (D, D), divided, the third.

        Returns:
            (B, N, D).

        Raises:
            ValueError: If there are more tokens than the bound knows of.
        """
        if x.dim() != 3 or x.shape[1] > self.tokens:
            raise ValueError(f"x is {tuple(x.shape)}; give (B, N, D) with at most {self.tokens} tokens, or set tokens")
        if query is None or value is None or out is None:
            query, value, out = self.weights()
        scale = query.shape[1] ** -0.5
        q = torch.einsum("bnd,hyd->bhny", x, query)
        # The square of q_i itself shifts a whole row.
        scores = scale * (2 * q @ q.mT - q.square().sum(-1)[:, :, None, :])
        attended = scores.softmax(-1) @ q
        heads = torch.einsum("bhny,hyd,hvd->bnhv", scale * attended, query, value)
        return heads.flatten(2) @ out.T

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        heads, _, features = self.query.shape
        return f"{features}, num_heads={heads}, tokens={self.tokens}, coeff={self.coeff}"


def _inverse_phi(y: float) -> float:
    """Solve x e^(x + 1) = y for x, rounded up."""
    x = math.log1p(y)
    for _ in range(50):  # Newton's method, which comes from above: the function is convex
        if x <= 0:
            return 0.0
        x -= (x * math.exp(x + 1) - y) / ((x + 1) * math.exp(x + 1))
    return x * (1 + 1e-12)
