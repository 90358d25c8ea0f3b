"""Evaluations of F that `solve(start=)` saves on sequences of related problems. Counts, so any machine gives the same.

    python benchmarks/warm_start.py [--markdown FILE]

F(x) = tanh(x W), W with norm 0.9, 64 samples of 64 numbers; solvers go to a relative 1e-5. Of frames each differs from
the last by 5 % of its size. Of training steps each moves W by SGD, on one
batch that comes again, its norm held at 0.9. Test-time n is one model asked for n = 2, 4, 8 and 16 fixed
iterations in turn.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from imixer.implicit import Anderson, FixedIterations, Picard, solve
from imixer.implicit.solvers import Solver

LENGTH = 20
SOLVERS: dict[str, Solver] = {"picard": Picard(rtol=1e-5, atol=0.0), "anderson": Anderson(rtol=1e-5, atol=0.0)}


def F(x: Tensor, W: Tensor) -> Tensor:
    return (x @ W).tanh()


def problem() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(64, 64), 0.9 * torch.linalg.qr(torch.randn(64, 64))[0]


@torch.no_grad()
def frames(solver: Solver, warm: bool) -> int:
    z, W = problem()
    x, evaluations = None, 0
    for _ in range(LENGTH):
        solution = solve(F, z, W, solver=solver, start=x if warm else None)
        x, evaluations = solution.value, evaluations + solution.n_evaluations
        z = (z + 0.05 * torch.randn(64, 64)) / (1 + 0.05**2) ** 0.5
    return evaluations


def training(solver: Solver, warm: bool) -> int:
    z, W = problem()
    W.requires_grad_()
    target = torch.randn(64, 64)
    x, evaluations = None, 0
    for _ in range(LENGTH):
        solution = solve(F, z, W, solver=solver, gradient="implicit", start=x if warm else None)
        (gradient,) = torch.autograd.grad((solution.value - target).square().mean(), W)
        with torch.no_grad():
            W -= gradient
            W *= (0.9 / torch.linalg.matrix_norm(W, 2)).clamp_max(1)
        x, evaluations = solution.value.detach(), evaluations + solution.n_evaluations
    return evaluations


@torch.no_grad()
def test_time(warm: bool) -> int:
    z, W = problem()
    x, done, evaluations = None, 0, 0
    for n in (2, 4, 8, 16):
        solution = solve(F, z, W, solver=FixedIterations(n - done if warm else n), start=x if warm else None)
        x, done, evaluations = solution.value, n, evaluations + solution.n_evaluations
    return evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    counts = []
    for what, run in (("20 frames", frames), ("20 training steps", training)):
        counts += [(what, name, run(solver, False), run(solver, True)) for name, solver in SOLVERS.items()]
    counts.append(("test-time n", "fixed", test_time(False), test_time(True)))
    lines = ["| sequence | solver | from z | from the last solution | saved |", "|---|---|---|---|---|"]
    lines += [f"| {what} | {name} | {cold} | {warm} | {1 - warm / cold:.0%} |" for what, name, cold, warm in counts]
    print("\n".join(lines))
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
