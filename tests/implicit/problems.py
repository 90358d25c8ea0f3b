"""One table of problems x = z + F(x, *tensors) and one of solvers, for every test of solvers and gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imixer.implicit import Contraction
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard


@dataclass(frozen=True)
class Problem:
    """Attributes:
    rate: What Picard's error shrinks by in a step, at most; above 1 it diverges.
    answer: The solution, where it is known.
    """

    F: Callable[..., Tensor]
    z: Tensor
    tensors: tuple[Tensor, ...]
    rate: float
    answer: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.z, *self.tensors

    def gap(self, x: Tensor) -> Tensor:
        return (self.z + self.F(x, *self.tensors) - x).abs().max()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def linear(eigenvalues: list[float]) -> Problem:
    n = len(eigenvalues)
    Q = torch.linalg.qr(randn(n, n, seed=1))[0]
    A = leaf(Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.T)
    b, z = leaf(randn(n)), randn(3, n, seed=2)
    answer = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - A, (z + b).T).T.detach()
    return Problem(lambda x, A, b: x @ A.T + b, leaf(z), (A, b), max(map(abs, eigenvalues)), answer)


def tanh() -> Problem:
    W1, W2, b = leaf(0.25 * randn(5, 4)), leaf(0.25 * randn(4, 5, seed=1)), leaf(randn(4, seed=2))
    rate = (torch.linalg.matrix_norm(W1, 2) * torch.linalg.matrix_norm(W2, 2)).item()
    return Problem(lambda x, W1, W2, b: (x.tanh() @ W1.T).tanh() @ W2.T + b, leaf(randn(3, 4)), (W1, W2, b), rate)


def gelu() -> Problem:
    """The contraction of iMLP, over (samples, channels, tokens)."""
    torch.manual_seed(0)
    block = Contraction(4, 6, coeff=0.7).double().eval()
    with torch.no_grad():
        for weight in (block.fc1.weight, block.fc2.weight):
            weight.mul_(10)
    weights = tuple(leaf(W) for W in block.weights())

    return Problem(lambda x, *tensors: block(x, list(tensors)), leaf(randn(3, 2, 4)), weights, (0.7 * 1.129) ** 2)


def scalar() -> Problem:
    a = torch.tensor([0.1, -0.5, 0.7], dtype=torch.float64)
    return Problem(lambda x, a: a.sum() * x.sin(), leaf(randn(4)), (leaf(a),), 0.3)


def image() -> Problem:
    kernel = randn(2, 2, 3, 3, seed=3)
    kernel = leaf(0.5 * kernel / kernel.abs().sum((1, 2, 3), keepdim=True))
    z = leaf(randn(2, 2, 3, 4))
    return Problem(lambda x, kernel: torch.nn.functional.conv2d(x, kernel, padding=1).tanh(), z, (kernel,), 0.6)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "linear": lambda: linear([0.5, -0.4, 0.3, 0.1]),
    "tanh": tanh,
    "gelu": gelu,
    "scalar": scalar,
    "image": image,
    "slow": lambda: linear([0.95, -0.8, 0.1]),
    "overshooting": lambda: linear([-1.8, -0.5, 0.3]),
}
CONTRACTIVE = [name for name in PROBLEMS if name != "overshooting"]

TIGHT = dict(rtol=1e-13, atol=1e-14, max_steps=3000)
TO_TOLERANCE = {
    "picard": Picard(**TIGHT),
    "damped": Picard(damping=0.6, **TIGHT),
    "anderson": Anderson(**TIGHT),
    "broyden": Broyden(**TIGHT),
}


def solver(name: str, problem: Problem):
    """By name; fixed iterations as many as the problem needs."""
    if name == "fixed":
        return FixedIterations(math.ceil(math.log(1e-13) / math.log(problem.rate)) if problem.rate < 1 else 300)
    return TO_TOLERANCE[name]


SOLVERS = ["fixed", *TO_TOLERANCE]
EVERY = [(s, p) for p in PROBLEMS for s in SOLVERS]
EVERY_SOLVED = [(s, p) for s, p in EVERY if p in CONTRACTIVE or s not in ("fixed", "picard")]
