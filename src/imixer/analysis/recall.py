"""How well an associative memory recalls images: stored, corrupted, retrieved."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imixer.analysis.recall_figures import draw_recall
from imixer.data.config import DataConfig
from imixer.data.digits import open_digits
from imixer.data.loading import find_images, load_image
from imixer.errors import InputError
from imixer.hopfield.memory import AssociativeMemory, Retrieval, binarised, overlaps
from imixer.hopfield.memory_kinds import BINARY
from imixer.training.run_directory import check_out, create_run

RETRIEVED = 0.95  # cosine with the own pattern
MASKS = ("none", "top", "bottom", "left", "right")


@dataclass(frozen=True)
class Recall:
    """What a memory made of its queries.

    Attributes:
        memory: The memory.
        patterns: What it was given to store, (K, H, W), from -1 (black) to 1 (white).
        names: Name of each pattern.
        own: Pattern each query was made from, (B,).
        before, after: Cosine (B,) of the query, and of what was retrieved, with that pattern.
        retrieved: Whether that pattern is the nearest of all to what was retrieved, and the cosine 0.95 or more, (B,).
        looked_up: Whether it is the nearest to the query, in Euclidean distance over the known pixels, (B,).
        retrieval: The way there.
    """

    memory: AssociativeMemory
    patterns: Tensor
    names: Tuple[str, ...]
    own: Tensor
    before: Tensor
    after: Tensor
    retrieved: Tensor
    looked_up: Tensor
    retrieval: Retrieval

    @property
    def verdict(self) -> str:
        """Whether the energy fell at every step, and whether it had to."""
        if not self.retrieval.falls:
            return f"violated: the energy rose by up to {self.retrieval.largest_rise:.3g}"
        if self.memory.kind == "hierarchical":
            return "observed: the energy never rose; with two hidden layers that is not guaranteed"
        return "guaranteed: one hidden layer, convex Lagrangians, symmetric couplings; the energy never rose"


def recall(
    images: Sequence[str] = (),
    *,
    memory: str = "modern",
    patterns: Optional[int] = None,
    noise: Optional[float] = None,
    mask: str = "none",
    queries: int = 6,
    steps: int = 50,
    size: int = 32,
    seed: int = 0,
    out: Optional[str] = None,
    **options: Any,
) -> Tuple[Recall, Path]:
    """Store images, corrupt some, retrieve them; write `recall.png`, `recall.csv` and `recall.json`.

    Args:
        images: Files or folders to store, as gray squares. Default: handwritten digits of 8 x 8 pixels.
        memory: Kind of memory. Those of +-1 store +1 where a pixel is above the image's mean.
        patterns: How many to store. Default: 20 digits, or all images.
        noise: Share of the pixels whose sign changes, of binary kinds; of the others the standard deviation of Gaussian
            noise, black to white being 1. Default: 0.3, or 0 with a mask.
        mask: Half that is hidden: `none`, `top`, `bottom`, `left` or `right`. The other is clamped if it has no noise.
        queries: How many to retrieve.
        steps: Largest number of steps.
        size: Side in pixels to which `images` are resized.
        seed: Of the choice of patterns and of the noise.
        out: Directory to write. Default: the next free `runs/recall-<memory>-<number>`.
        **options: Of the memory.

    Raises:
        InputError: If anything given is impossible.
    """
    noise = (0.0 if mask != "none" else 0.3) if noise is None else noise
    counts = {"patterns": patterns, "queries": queries, "steps": steps, "size": size}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; give 1 or more")
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    most = 1.0 if memory in BINARY else math.inf
    if not 0 <= noise <= most:
        what = "a share of flipped pixels from 0 to 1" if memory in BINARY else "a standard deviation of 0 or more"
        raise InputError(f"noise is {noise}; give {what}")
    check_out(out)
    generator = torch.Generator().manual_seed(seed)
    if images:
        stored, names = image_patterns(images, size, patterns)
    else:
        stored, names = digit_patterns(20 if patterns is None else patterns, generator)
    try:
        built = AssociativeMemory(stored, memory, binarise=memory in BINARY, **options)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(str(error)) from error
    stored = binarised(stored) if memory in BINARY else stored
    own = torch.randperm(len(stored), generator=generator)[torch.arange(queries) % len(stored)]
    known = known_half(mask, tuple(stored.shape[1:]))
    query = corrupt(stored[own], noise, memory in BINARY, generator)
    found = retrieve(built, stored, own, query, known, clamp=noise == 0, steps=steps, names=names)
    folder = create_run(out, "recall", memory).path
    settings = dict(memory=memory, options=built.options, patterns=len(stored), noise=noise, mask=mask, seed=seed)
    _write(found, settings, folder)
    draw_recall(found, folder / "recall.png")
    return found, folder


def digit_patterns(count: int, generator: torch.Generator) -> Tuple[Tensor, Tuple[str, ...]]:
    """Handwritten digits (count, 8, 8) from -1 to 1, drawn at random, and their names.

    They stay different when binarised, which a few of the 1,437 do not.

    Raises:
        InputError: If there are not as many.
    """
    pixels, labels, places = _digits()
    if count > len(places):
        raise InputError(f"patterns is {count}; there are {len(places)} different digits to draw from")
    chosen = places[torch.randperm(len(places), generator=generator)[:count]]
    return pixels[chosen], tuple(f"a {labels[int(i)]}" for i in chosen)


@lru_cache(maxsize=1)
def _digits() -> Tuple[Tensor, List[int], Tensor]:
    """Pixels (n, 8, 8) and labels of the training digits, and the places of those that differ when binarised."""
    items = open_digits(DataConfig()).train
    pairs = [items[i] for i in range(len(items))]  # type: ignore[arg-type]  # torch's Dataset promises no length
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in pairs])).float() / 127.5 - 1
    _, group = binarised(pixels).flatten(1).unique(dim=0, return_inverse=True)
    first = {int(g): i for i, g in reversed(list(enumerate(group)))}
    return pixels, [label for _, label in pairs], torch.tensor(sorted(first.values()))


def image_patterns(paths: Sequence[str], size: int, count: Optional[int] = None) -> Tuple[Tensor, Tuple[str, ...]]:
    """Image files as gray squares (K, size, size) from -1 (black) to 1 (white), and their names.

    Args:
        paths: Files or folders.
        size: Side in pixels.
        count: Take the first so many. Default: all.

    Raises:
        InputError: If one cannot be read, or there are not as many.
    """
    files = find_images(paths)
    if count is not None and count > len(files):
        raise InputError(f"patterns is {count}; there are {len(files)} images")
    files = files[:count]
    squares = [load_image(file, 1).resize((size, size), Image.Resampling.BICUBIC) for file in files]
    pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    return pixels.float() / 127.5 - 1, tuple(file.name for file in files)


def corrupt(patterns: Tensor, noise: float, binary: bool, generator: torch.Generator) -> Tensor:
    """Patterns (B, *shape) with noise.

    Args:
        patterns: From -1 to 1.
        noise: If binary, the share of pixels whose sign changes, rounded to whole ones. Otherwise the standard
            deviation of Gaussian noise, in units of the range from -1 to 1.
        binary: Which of the two.
        generator: Of the noise.
    """
    if not binary:
        return patterns + 2 * noise * torch.randn(patterns.shape, generator=generator)
    values = patterns.flatten(1)
    order = torch.rand(values.shape, generator=generator).argsort(1)
    flipped = order[:, : round(noise * values.shape[1])]
    return values.scatter(1, flipped, -values.gather(1, flipped)).view_as(patterns)


def known_half(mask: str, shape: Tuple[int, ...]) -> Tensor:
    """Mask (H, W) of the pixels that are not hidden.

    Args:
        mask: Half that is hidden: `top`, `bottom`, `left`, `right`, or `none`.
        shape: (H, W).
    """
    height, width = shape
    known = torch.ones(shape, dtype=torch.bool)
    hidden = {
        "none": known[:0],
        "top": known[: height // 2],
        "bottom": known[height // 2 :],
        "left": known[:, : width // 2],
        "right": known[:, width // 2 :],
    }
    if mask not in hidden:
        raise InputError(f"mask is {mask!r}; choose one of {', '.join(hidden)}")
    hidden[mask][:] = False
    return known


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
    """Retrieve queries, and compare with the patterns they were made from.

    Args:
        memory: The memory.
        patterns: What it was given to store, (K, *shape).
        own: Pattern of each query, (B,).
        query: (B, *shape).
        known: Pixels that are not hidden, `shape` or (B, *shape). The others start at 0.
        clamp: Hold the known pixels, if some are hidden.
        steps: Largest number of steps.
        names: Name of each pattern. Default: its number.
    """
    query = torch.where(known, query, 0.0)
    found = memory.retrieve(query, steps=steps, known=known if clamp and not known.all() else None)
    before, after = overlaps(query, patterns), overlaps(found.retrieved, patterns)
    each = torch.arange(len(own))
    return Recall(
        memory=memory,
        patterns=patterns,
        names=tuple(names) or tuple(map(str, range(len(patterns)))),
        own=own,
        before=before[each, own],
        after=after[each, own],
        retrieved=(after.argmax(1) == own) & (after[each, own] >= RETRIEVED),
        looked_up=nearest(query, patterns, known) == own,
        retrieval=found,
    )


def nearest(query: Tensor, patterns: Tensor, known: Tensor) -> Tensor:
    """Index (B,) of the pattern (K, *shape) nearest to each query (B, *shape), in distance over the known pixels."""
    weight = known.expand(query.shape).flatten(1).to(query)
    q, p = query.flatten(1) * weight, patterns.flatten(1)
    return ((weight @ p.square().T) - 2 * q @ p.T).argmin(1)


def share(right: Tensor) -> Tuple[float, float]:
    """Share of true ones, and how uncertain it is: the standard deviation given a uniform prior, never 0."""
    n, k = len(right), int(right.sum())
    return k / n, math.sqrt((k + 1) * (n - k + 1) / (n + 3)) / (n + 2)


def _write(found: Recall, settings: Dict[str, Any], folder: Path) -> None:
    rows: List[Dict[str, Any]] = []
    way = found.retrieval
    for i, own in enumerate(found.own.tolist()):
        steps = int(way.steps[i])
        rows.append(
            {
                "query": i,
                "pattern": own,
                "name": found.names[own],
                "overlap_before": round(float(found.before[i]), 6),
                "overlap_after": round(float(found.after[i]), 6),
                "retrieved": bool(found.retrieved[i]),
                "nearest_to_query": bool(found.looked_up[i]),
                "steps": steps,
                "converged": bool(way.converged[i]),
                "energy_before": float(way.energies[0, i]),
                "energy_after": float(way.energies[steps, i]),
            }
        )
    with (folder / "recall.csv").open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    p, uncertainty = share(found.retrieved)
    summary = {
        **settings,
        "retrieved_share": p,
        "retrieved_share_uncertainty": uncertainty,
        "look_up_share": share(found.looked_up)[0],
        "energy": found.verdict,
        "energies": way.energies.T.tolist(),
        "queries": rows,
    }
    (folder / "recall.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
