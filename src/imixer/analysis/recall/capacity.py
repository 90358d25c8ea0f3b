"""Measure how many random patterns a memory holds, against their length and against theory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

import torch
from torch import Tensor

from imixer.analysis.recall.study import check_draws
from imixer.hopfield.memory import AssociativeMemory
from imixer.hopfield.memory_kinds import Kind
from imixer.progress import announce

BIT_ERROR = 0.0036  # of Krotov & Hopfield, at which the energy of order 2 holds 0.138 N patterns
TESTED = 32  # patterns whose bits are tried
_CHUNK = 256  # states at once
_ROWS = 8  # of patterns, whose errors are averaged
_HALVINGS = 8


@dataclass(frozen=True)
class _Memory:
    kind: Kind
    options: dict[str, Any]
    lengths: tuple[int, ...]
    theory: Callable[[int], float]


def _polynomial(order: int) -> Callable[[int], float]:
    """Return the patterns that an energy of an order, rectified, holds in theory, by N.

    The crosstalk of K random patterns at a bit is normal, of variance K (2 n - 3)!! N^(n - 1) / 2 beside a signal of
    N^(n - 1). Without the rectification there is no 1/2.
    """
    quantile = NormalDist().inv_cdf(1 - BIT_ERROR)
    double_factorial = math.prod(range(2 * order - 3, 0, -2))
    return lambda N: 2 * N ** (order - 1) / (double_factorial * quantile**2)


MEMORIES: dict[str, _Memory] = {
    **{
        f"order {order}": _Memory("polynomial", {"order": order}, (12, 16, 24, 32, 48), _polynomial(order))
        for order in (2, 3, 4)
    },
    "exponential": _Memory("exponential", {}, (8, 10, 12, 14, 16), lambda N: 2 ** (N / 2)),
}


@dataclass(frozen=True)
class Capacity:
    """Hold how many random patterns of one length a memory holds.

    Attributes:
        memory: Order of the energy, or `exponential`.
        length: Signs of a pattern, N.
        mean, std: Patterns stored when `BIT_ERROR` of their bits lie no longer in a minimum, over the draws.
        theory: Patterns in theory: for the orders Krotov & Hopfield, arXiv 1606.01164, (5), with half the variance
            since the energy is rectified; for `exponential` 2^(N/2), up to which Demircigil et al., arXiv 1702.01929,
            theorem 3, prove that no bit is wrong.
        draws: Number of draws.
    """

    memory: str
    length: int
    mean: float
    std: float
    theory: float
    draws: int


def measure_capacity(*, seed: int = 0, draws: int = 3, lengths: tuple[int, ...] | None = None) -> list[Capacity]:
    """Measure the capacity of dense memories for random signs.

    A bit counts as stored if flipping it alone does not lower the memory's energy. So what a neuron sends to itself,
    which holds any state, does not count.

    Args:
        seed: Seed of the first draw.
        draws: Number of draws.
        lengths: Lengths N of patterns. Default: those of `MEMORIES`.

    Raises:
        InputError: If draws is below 1, or seed is negative or 2**62 or more.
    """
    check_draws(draws, seed)
    measured = []
    for name, memory in MEMORIES.items():
        for N in lengths or memory.lengths:
            announce(f"storing patterns of {N} signs, {name}")
            most = [_most_stored(memory, N, seed + draw) for draw in range(draws)]
            std = stdev(most) if draws > 1 else 0.0
            measured.append(Capacity(name, N, fmean(most), std, memory.theory(N), draws))
    return measured


def _most_stored(memory: _Memory, N: int, seed: int) -> float:
    """Find by halving how many of some rows of random patterns can be stored, to 2 %."""
    generator = torch.Generator().manual_seed(seed)
    upper = math.ceil(max(4.0, min(8 * memory.theory(N), 2.0**N)))
    rows = torch.randint(0, 2, (_ROWS, upper, N), generator=generator).double() * 2 - 1
    low, high = 1.0, float(upper)
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        stored = rows[:, : max(1, round(middle))]
        if fmean(wrong_bits(patterns, memory.kind, memory.options) for patterns in stored) <= BIT_ERROR:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


@torch.no_grad()
def wrong_bits(patterns: Tensor, kind: Kind, options: dict[str, Any]) -> float:
    """Compute the share of bits of stored patterns (K, N) whose flip lowers the energy."""
    memory = AssociativeMemory(patterns, kind, **options)
    tested = patterns[:TESTED]
    flipped = tested[:, None] * (1 - 2 * torch.eye(patterns.shape[1], dtype=patterns.dtype))
    energies = torch.cat([memory.energy(part) for part in flipped.flatten(0, 1).split(_CHUNK)])
    own = memory.energy(tested).repeat_interleave(patterns.shape[1])
    falls = own - energies > 1e-12 * own.abs()  # a tie is no fall, whatever rounding says
    return float(falls.double().mean())
