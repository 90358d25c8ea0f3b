"""Measure how much each kind of memory holds, against load and noise, beside a look-up of the nearest pattern."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from imixer.analysis.recall.images import MASKS, add_noise, digit_patterns, known_half
from imixer.analysis.recall.measure import retrieve
from imixer.data.randomness import check_seed
from imixer.errors import InputError
from imixer.hopfield.memory import AssociativeMemory, binarised
from imixer.hopfield.memory_kinds import Kind

LOADS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
FLIPS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
SIGMAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
LOAD_OF_NOISE = 20
FLIP_OF_LOAD = 0.2
SIGMA_OF_LOAD = 0.3
QUERIES = 100
DRAWS = 5
LOOK_UP = "nearest neighbour"

_BINARY: dict[str, tuple[Kind, dict[str, Any]]] = {
    "classical": ("classical", {}),
    "polynomial, order 4": ("polynomial", {"order": 4}),
    "polynomial, order 10": ("polynomial", {"order": 10}),
    "exponential": ("exponential", {}),
    "modern": ("modern", {}),
}
_GRAY: dict[str, tuple[Kind, dict[str, Any]]] = {
    "modern": ("modern", {}),
    "modern, by distance": ("modern", {"similarity": "distance"}),
    "hierarchical, 400": ("hierarchical", {"primitives": 400}),
}
SETS = {"random signs": _BINARY, "digits, binary": _BINARY, "digits, gray": _GRAY}


@dataclass(frozen=True)
class RecallShare:
    """Hold the share of queries that one memory retrieves under one condition.

    Attributes:
        patterns: Set of patterns, a name in `SETS`.
        varied: What is varied: `load`, `noise` or `half hidden`.
        label: Name of x.
        x: Number of stored patterns, or noise.
        setting: What is held fixed.
        memory: Kind and options of the memory, or the look-up.
        mean, std: Share retrieved, over the draws of patterns and noise.
        draws: Number of draws.
        energy_decreases: Whether the energy rose in no step of any query.
    """

    patterns: str
    varied: str
    label: str
    x: float
    setting: str
    memory: str
    mean: float
    std: float
    draws: int
    energy_decreases: bool


def check_draws(draws: int, seed: int) -> None:
    """Check the number of draws, and the seed of the first.

    Args:
        draws: Number of draws.
        seed: Seed of the first draw.

    Raises:
        InputError: If draws is below 1, or seed is negative or 2**62 or more.
    """
    if draws < 1:
        raise InputError(f"draws is {draws}; give 1 or more")
    check_seed(seed)


def measure_memories(*, seed: int = 0, draws: int = DRAWS, loads: tuple[int, ...] = LOADS) -> list[RecallShare]:
    """Measure the share of queries that each kind of memory retrieves.

    Each draw takes new patterns and new noise, and retrieves 100 queries, made from the stored patterns in turn. A
    query counts as retrieved if its own pattern is the nearest of all to what was retrieved, with a cosine of 0.95 or
    more.

    Args:
        seed: Seed of the first draw.
        draws: Number of draws, over which mean and standard deviation are taken.
        loads: Numbers of patterns to store. Noise is varied at a load of 20.

    Raises:
        InputError: If draws is below 1, or seed is negative or 2**62 or more.
    """
    check_draws(draws, seed)
    measured: dict[tuple[str, str, str, float, str, str], list[tuple[float, bool]]] = {}
    units = [(name, draw, load) for name in SETS for draw in range(draws) for load in loads]
    for name, draw, load in _with_progress(units):
        for condition, value in _measure(name, seed + draw, load):
            measured.setdefault((name, *condition), []).append(value)
    shares = []
    for key, values in measured.items():
        of_draws = [value for value, _ in values]
        std = stdev(of_draws) if draws > 1 else 0.0
        shares.append(
            RecallShare(
                *key,
                mean=fmean(of_draws),
                std=std,
                draws=draws,
                energy_decreases=all(energy_decreases for _, energy_decreases in values),
            )
        )
    order = ("load", "noise", "half hidden")
    return sorted(shares, key=lambda share: (list(SETS).index(share.patterns), order.index(share.varied)))


class _Condition(NamedTuple):
    """A condition under which all memories of a set are measured; the first four are those of a `RecallShare`."""

    varied: str
    label: str
    x: float
    setting: str
    noise: float
    known: Tensor


_Key = tuple[str, str, float, str, str]


def _measure(name: str, seed: int, load: int) -> Iterator[tuple[_Key, tuple[float, bool]]]:
    """Measure all conditions at one load, of one draw."""
    binary = name != "digits, gray"
    generator = torch.Generator().manual_seed(seed)
    patterns = _patterns(name, load, generator)
    own = torch.arange(QUERIES) % load
    noise = FLIP_OF_LOAD if binary else SIGMA_OF_LOAD
    corruption = f"{noise:.0%} of the signs flipped" if binary else f"noise of {noise:.0%} of the range"
    whole = known_half("none", (8, 8))
    # Another half in each round through the patterns.
    halves = torch.stack([known_half(MASKS[1 + (i // load + i % load) % 4], (8, 8)) for i in range(QUERIES)])
    conditions = [
        _Condition("load", "patterns stored", load, corruption, noise, whole),
        _Condition("half hidden", "patterns stored", load, "one half hidden, the other clamped", 0.0, halves),
    ]
    if load == LOAD_OF_NOISE:
        label = "share of signs flipped" if binary else "standard deviation of the noise (black to white: 1)"
        for level in FLIPS if binary else SIGMAS:
            conditions.append(_Condition("noise", label, level, f"{load} patterns stored", level, whole))
    queries = [add_noise(patterns[own], condition.noise, binary, generator) for condition in conditions]
    for memory, (kind, options) in SETS[name].items():
        built = AssociativeMemory(patterns, kind, **options)
        for condition, query in zip(conditions, queries, strict=True):
            recalled = retrieve(built, patterns, own, query, condition.known)
            key = (condition.varied, condition.label, condition.x, condition.setting)
            yield (*key, memory), (_share(recalled.retrieved), recalled.retrieval.energy_decreases)
            if memory == "modern":
                yield (*key, LOOK_UP), (_share(recalled.looked_up), True)


def _patterns(name: str, count: int, generator: torch.Generator) -> Tensor:
    if name == "random signs":
        return torch.randint(0, 2, (count, 8, 8), generator=generator) * 2.0 - 1.0
    digits, _ = digit_patterns(count, generator)
    return binarised(digits) if name == "digits, binary" else digits


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def _with_progress(units: list[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
    """Pass the units on, behind a bar on a terminal, otherwise with a line per draw."""
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True) if console.is_terminal else nullcontext() as bar:
        task = bar.add_task("recalling", total=len(units)) if bar is not None else None
        before = None
        for i, unit in enumerate(units):
            name, draw, _ = unit
            if bar is None and (name, draw) != before:
                print(f"recalling {name}, draw {draw + 1} ({i / len(units):.0%} done)", file=sys.stderr, flush=True)
            before = (name, draw)
            yield unit
            if bar is not None and task is not None:
                bar.update(task, advance=1, description=f"recalling {name}, draw {draw + 1}")
