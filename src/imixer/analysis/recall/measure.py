"""Measure how well an associative memory recalls images: stored, corrupted, retrieved."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imixer.hopfield.memory import AssociativeMemory, Retrieval, overlaps

RETRIEVED = 0.95  # cosine with the own pattern, from which on a query counts as retrieved


@dataclass(frozen=True)
class Recall:
    """Hold what a memory made of its queries.

    Attributes:
        memory: The memory.
        patterns: Patterns that it was given to store, (K, H, W), from -1 (black) to 1 (white).
        names: Name of each pattern.
        own: Number of the pattern that each query was made from, its own pattern, (B,).
        before: Cosine of each query with its own pattern, (B,).
        after: Cosine of what each query retrieved with its own pattern, (B,).
        retrieved: Whether the own pattern is the nearest of all to what was retrieved, with a cosine of 0.95 or more,
            (B,).
        looked_up: Whether the own pattern is the nearest to the query, by Euclidean distance over the known pixels:
            what a look-up without a memory achieves, (B,).
        retrieval: States and energies on the way.
    """

    memory: AssociativeMemory
    patterns: Tensor
    names: tuple[str, ...]
    own: Tensor
    before: Tensor
    after: Tensor
    retrieved: Tensor
    looked_up: Tensor
    retrieval: Retrieval

    @property
    def verdict(self) -> str:
        """Sentence on whether the energy fell at every step, and whether it had to."""
        if not self.retrieval.energy_decreases:
            return f"violated: the energy rose by up to {self.retrieval.largest_rise:.3g}"
        if self.memory.kind == "hierarchical":
            return "observed: the energy never rose; with two hidden layers that is not guaranteed"
        return "guaranteed: one hidden layer, convex Lagrangians, symmetric couplings; the energy never rose"


def retrieve(
    memory: AssociativeMemory,
    patterns: Tensor,
    own: Tensor,
    query: Tensor,
    known: Tensor,
    *,
    clamp: bool = True,
    steps: int = 50,
    names: Sequence[str] = (),
) -> Recall:
    """Retrieve queries, and compare what comes back with the patterns they were made from.

    Args:
        memory: The memory.
        patterns: Patterns that it was given to store, (K, *shape).
        own: Number of each query's own pattern, (B,).
        query: Queries (B, *shape).
        known: Whether a pixel is not hidden, `shape` or (B, *shape). Hidden ones start at 0.
        clamp: Whether to hold the known pixels, if some are hidden.
        steps: Largest number of steps.
        names: Name of each pattern. Default: its number.
    """
    query = torch.where(known, query, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of patterns that merge: the tables tell of every query
        retrieval = memory.retrieve(query, steps=steps, known=known if clamp and not known.all() else None)
    before, after = overlaps(query, patterns), overlaps(retrieval.retrieved, patterns)
    each = torch.arange(len(own))
    return Recall(
        memory=memory,
        patterns=patterns,
        names=tuple(names) or tuple(map(str, range(len(patterns)))),
        own=own,
        before=before[each, own],
        after=after[each, own],
        retrieved=(after.argmax(1) == own) & (after[each, own] >= RETRIEVED),
        looked_up=nearest_pattern(query, patterns, known) == own,
        retrieval=retrieval,
    )


def nearest_pattern(query: Tensor, patterns: Tensor, known: Tensor) -> Tensor:
    """Return the number (B,) of the pattern (K, *shape) nearest to each query (B, *shape) over the known pixels."""
    weight = known.expand(query.shape).flatten(1).to(query)
    q, p = query.flatten(1) * weight, patterns.flatten(1)
    return ((weight @ p.square().T) - 2 * q @ p.T).argmin(1)


def share_with_error(right: Tensor) -> tuple[float, float]:
    """Return the share of true entries (N,), and its standard deviation given a uniform prior, which is never 0."""
    n, k = len(right), int(right.sum())
    return k / n, math.sqrt((k + 1) * (n - k + 1) / (n + 3)) / (n + 2)
