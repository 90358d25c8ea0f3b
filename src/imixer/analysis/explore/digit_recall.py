"""Spoil a handwritten digit, and let an associative memory bring it back while its energy falls.

All numbers are plain Python ones, ready for JSON. A picture is a list of 64 pixels, row by row, from -1 (black) to 1
(white).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from imixer.analysis.recall.images import MASKS, add_noise, digit_patterns, known_half
from imixer.analysis.recall.measure import RETRIEVED
from imixer.errors import InputError, did_you_mean
from imixer.hopfield.memory import AssociativeMemory, binarised, overlaps
from imixer.hopfield.memory_kinds import BINARY, Kind
from imixer.verdict import Verdict

Motion = Literal["steps", "slow"]

SIDE = 8
MOST_STORED = 200
_MOST_STEPS = 60
_FRACTION = 0.2  # of a step, of the motion `slow`
_REST = 1e-3  # largest change of a pixel, in a whole step, that counts as rest
_LARGEST_PIXEL = 10.0
_SHOWN_DIGITS = 4  # significant, of a pixel
_ROUNDING = 1e-9  # of the energy, in float64


@dataclass(frozen=True)
class StoredDigits:
    """The digits that a memory stores.

    Args:
        pictures: The pictures, as the memory stores them.
        names: What each shows, such as `a 7`.
        binary: Whether the memory stores black and white alone.
    """

    pictures: list[list[float]]
    names: tuple[str, ...]
    binary: bool


@dataclass(frozen=True)
class SpoiltDigit:
    """A picture that was spoilt.

    Args:
        picture: The picture. Hidden pixels are 0.
        known: Whether each pixel is not hidden.
    """

    picture: list[float]
    known: list[bool]


@dataclass(frozen=True)
class DigitRecall:
    """The way of a memory from a picture to where it rests.

    Args:
        frames: The pictures on the way, that of the start first.
        energies: The energy of each.
        converged: Whether it came to rest.
        nearest: Number of the stored digit that is nearest to the last picture, by the cosine.
        name: What that digit shows.
        overlap: The cosine with it.
        retrieved: Whether that digit came back: a cosine of 0.95 or more.
        verdict: Whether the energy had to fall and did (`guaranteed`), fell (`observed`), or rose (`violated`).
    """

    frames: list[list[float]]
    energies: list[float]
    converged: bool
    nearest: int
    name: str
    overlap: float
    retrieved: bool
    verdict: Verdict


def stored_digits(kind: str, stored: int) -> StoredDigits:
    """List the digits that a memory of some kind stores: the first of one random order, so that more include fewer.

    Args:
        kind: Kind of memory, see `AssociativeMemory`.
        stored: Number of digits.

    Raises:
        InputError: If the kind is unknown or the number out of range.
    """
    memory, names = _memory(kind, stored)
    return StoredDigits([_listed(each) for each in memory.patterns], names, kind in BINARY)


def spoil_digit(
    picture: Sequence[float], *, kind: str = "modern", noise: float = 0.2, mask: str = "none", seed: int = 0
) -> SpoiltDigit:
    """Add noise to a picture, and hide half of it.

    Args:
        picture: The picture.
        kind: Kind of memory. For those of black and white, noise flips pixels.
        noise: Share of pixels flipped, or standard deviation of Gaussian noise, black to white being 1.
        mask: Half to hide: `none`, `top`, `bottom`, `left` or `right`.
        seed: Seed of the noise.

    Raises:
        InputError: If an argument is out of range or unknown.
    """
    _require_kind(kind)
    if not 0 <= noise <= 1:
        raise InputError(f"noise is {noise}; give 0 to 1")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; give 0 or more, below 2**63")
    if mask not in MASKS:
        raise InputError(f"mask is {mask!r}; choose one of {', '.join(MASKS)}")
    pixels, binary = _tensor(picture), kind in BINARY
    pixels = binarised(pixels) if binary else pixels
    known = known_half(mask, (SIDE, SIDE))
    spoilt = add_noise(pixels, noise, binary, torch.Generator().manual_seed(seed))
    return SpoiltDigit(_listed(torch.where(known, spoilt[0], 0.0)), known.flatten().tolist())


@torch.no_grad()
def recall_digit(
    picture: Sequence[float],
    known: Sequence[bool] | None = None,
    *,
    kind: str = "modern",
    stored: int = 20,
    motion: str = "slow",
) -> DigitRecall:
    """Let the energy of a memory of digits fall from a picture, until it rests.

    Args:
        picture: The picture. Hidden pixels are only a start; 0 is a neutral one.
        known: Whether each pixel is held as it is. Default: none is.
        kind: Kind of memory, see `AssociativeMemory`.
        stored: Number of digits it stores.
        motion: `steps` of the memory, each to where the visible neurons would rest; or `slow`, a fifth of the way each,
            close to the flow in continuous time.

    Raises:
        InputError: If an argument is out of range or unknown, every pixel is known, or the energy is not finite.

    Source: paper (32) in the adiabatic limit, for `slow`; see `AssociativeMemory` for the steps.
    """
    if motion not in get_args(Motion):
        raise InputError(f"motion is {motion!r}; choose {' or '.join(get_args(Motion))}")
    memory, names = _memory(kind, stored)
    query, held = _tensor(picture), _mask(known)
    x = start = memory.to_visible(query)
    fixed = memory.to_visible(held[None].to(query)) > 0.5
    states, energies, converged = [memory.read({"visible": x})], [float(memory.energy(x))], False
    while not converged and len(states) <= _MOST_STEPS:
        target = torch.where(fixed, start, memory.update(x))
        # where pixels are saturated, they do not tell that the neurons still move
        converged = float((memory.read({"visible": target}) - states[-1]).abs().max()) <= _REST
        if not converged:
            x = target if motion == "steps" else torch.lerp(x, target, _FRACTION)
            states.append(memory.read({"visible": x}))
            energies.append(float(memory.energy(x)))
            _require_finite(energies, kind)
    cosines = overlaps(states[-1], memory.patterns)[0]
    nearest = int(cosines.argmax())
    return DigitRecall(
        frames=[_listed(state[0]) for state in states],
        energies=energies,
        converged=converged,
        nearest=nearest,
        name=names[nearest],
        overlap=round(float(cosines[nearest]), 4),
        retrieved=float(cosines[nearest]) >= RETRIEVED,
        verdict=_verdict(energies, kind, motion),
    )


def _require_finite(energies: Sequence[float], kind: str) -> None:
    if not math.isfinite(energies[-1]):
        raise InputError(f"the energy of the {kind} memory is not finite after {len(energies) - 1} steps; draw less")


def _verdict(energies: Sequence[float], kind: str, motion: str) -> Verdict:
    allowed = _ROUNDING * max(map(abs, energies))
    if any(after > before + allowed for before, after in pairwise(energies)):
        return "violated"
    # Theory speaks of whole steps, of one hidden layer.
    return "guaranteed" if motion == "steps" and kind != "hierarchical" else "observed"


@lru_cache(maxsize=8)
def _memory(kind: str, stored: int) -> tuple[AssociativeMemory, tuple[str, ...]]:
    _require_kind(kind)
    if not 1 <= stored <= MOST_STORED:
        raise InputError(f"stored is {stored}; give 1 to {MOST_STORED} digits")
    patterns, names = digit_patterns(stored, torch.Generator().manual_seed(0))
    memory = AssociativeMemory(patterns.double(), cast(Kind, kind), binarise=kind in BINARY)
    return memory.requires_grad_(False), names


def _require_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        known = get_args(Kind)
        raise InputError(f"kind is {kind!r}; choose one of {', '.join(known)}{did_you_mean(kind, known, 1)}")


def _tensor(picture: Sequence[float]) -> Tensor:
    """Return a picture as (1, 8, 8)."""
    if len(picture) != SIDE**2:
        raise InputError(f"the picture has {len(picture)} pixels; give {SIDE**2}, row by row")
    for value in picture:
        if type(value) not in (int, float) or not -_LARGEST_PIXEL <= value <= _LARGEST_PIXEL:
            raise InputError(f"a pixel is {value}; give numbers from -1 (black) to 1 (white), at most {_LARGEST_PIXEL}")
    return torch.tensor(picture, dtype=torch.float64).view(1, SIDE, SIDE)


def _mask(known: Sequence[bool] | None) -> Tensor:
    if known is None:
        return torch.zeros(SIDE, SIDE, dtype=torch.bool)
    if len(known) != SIDE**2 or not all(type(value) is bool for value in known):
        raise InputError(f"known holds {len(known)} values; give {SIDE**2} of true and false, row by row")
    if all(known):
        raise InputError("known holds every pixel, which leaves nothing to retrieve; free some pixels")
    return torch.tensor(known).view(SIDE, SIDE)


def _listed(picture: Tensor) -> list[float]:
    return [float(f"{value:.{_SHOWN_DIGITS}g}") for value in picture.flatten().tolist()]
