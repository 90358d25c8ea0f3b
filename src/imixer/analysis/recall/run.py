"""Make a run of `imixer recall`: measure, write down, draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from imixer.analysis.recall.capacity import Capacity, measure_capacity
from imixer.analysis.recall.figures import draw_capacity, draw_memory_study, draw_recall
from imixer.analysis.recall.images import add_noise, digit_patterns, image_patterns, known_half
from imixer.analysis.recall.measure import Recall, retrieve
from imixer.analysis.recall.study import RecallShare, measure_memories
from imixer.analysis.recall.tables import write_capacity, write_memory_study, write_recall
from imixer.errors import InputError
from imixer.hopfield.memory import AssociativeMemory, binarised
from imixer.hopfield.memory_kinds import BINARY, Kind
from imixer.plotting import drawn, save_figure
from imixer.progress import announce
from imixer.training.run.directory import check_out, create_run

_SIZE = 32  # pixels
_LOUDEST = 1_000.0  # noise, beside which no pattern is heard
_MOST = {"patterns": 100_000, "queries": 10_000, "steps": 1_000_000, "size": 4_096}  # more would never end


def recall(
    images: Sequence[str] = (),
    *,
    memory: str = "modern",
    patterns: int | None = None,
    noise: float | None = None,
    mask: str = "none",
    queries: int = 6,
    steps: int = 50,
    size: int | None = None,
    seed: int = 0,
    out: str | None = None,
    **options: Any,
) -> tuple[Recall, Path]:
    """Store images, corrupt some, retrieve them; write `recall.png`, `recall.csv` and `recall.json`.

    Args:
        images: Files or folders to store, as gray squares. Default: handwritten digits of 8 x 8 pixels.
        memory: Kind of memory. Kinds of +-1 store +1 where a pixel is above the image's mean.
        patterns: Number of images to store. Default: 20 digits, or all images.
        noise: Of kinds of +-1, the share of pixels whose sign changes. Of others, the standard deviation of Gaussian
            noise, black to white being 1. Default: 0.3, or 0 with a mask.
        mask: Half that is hidden: `none`, `top`, `bottom`, `left` or `right`. The other is clamped if it has no noise.
        queries: Number of images to retrieve.
        steps: Largest number of steps.
        size: Side in pixels that `images` are resized to. Default: 32.
        seed: Seed of the choice of patterns and of the noise.
        out: Folder to make. Default: the next free `runs/recall-<memory>-<number>`.
        **options: Options of the memory, see `AssociativeMemory`.

    Returns:
        What was recalled, and the folder.

    Raises:
        InputError: If a number is out of range, size is given without images, the memory, mask or an option of the
            memory is unknown, an image cannot be read, there are fewer images than patterns, what is retrieved is not
            finite, or `out` exists.
    """
    noise = (0.0 if mask != "none" else 0.3) if noise is None else noise
    counts = {"patterns": patterns, "queries": queries, "steps": steps, "size": size}
    for name, value in counts.items():
        if value is not None and not 1 <= value <= _MOST[name]:
            raise InputError(f"{name} is {value}; give 1 or more, at most {_MOST[name]:,}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; give 0 or more, below 2**63")
    if size is not None and not images:
        raise InputError(f"size is {size}, and no image is given: digits are of 8 x 8 pixels; leave it out")
    if not 0 <= noise <= (1.0 if memory in BINARY else _LOUDEST):
        gray = f"a standard deviation from 0 to {_LOUDEST:,.0f}"
        what = "a share of flipped pixels from 0 to 1" if memory in BINARY else gray
        raise InputError(f"noise is {noise}; give {what}")
    check_out(out)
    generator = torch.Generator().manual_seed(seed)
    if images:
        stored, names = image_patterns(images, size or _SIZE, patterns)
    else:
        stored, names = digit_patterns(20 if patterns is None else patterns, generator)
    try:
        built = AssociativeMemory(stored, cast(Kind, memory), binarise=memory in BINARY, **options)
    except ValueError as error:
        raise InputError(str(error)) from error
    stored = binarised(stored) if memory in BINARY else stored
    own = torch.randperm(len(stored), generator=generator)[torch.arange(queries) % len(stored)]
    known = known_half(mask, tuple(stored.shape[1:]))
    query = add_noise(stored[own], noise, memory in BINARY, generator)
    announce(f"retrieving {len(query):,} of {len(stored):,} images")
    recalled = retrieve(built, stored, own, query, known, clamp=noise == 0, steps=steps, names=names)
    _require_finite(recalled)
    folder = create_run(out, "recall", memory).path
    settings = dict(memory=memory, options=built.options, patterns=len(stored), noise=noise, mask=mask, seed=seed)
    write_recall(recalled, settings, folder)
    drawn(folder / "recall.png", lambda path: save_figure(draw_recall(recalled), path))
    return recalled, folder


def _require_finite(recalled: Recall) -> None:
    """Raise InputError if the energy or a retrieved image of a query is not finite."""
    retrieval = recalled.retrieval
    for i, steps in enumerate(retrieval.steps.tolist()):
        finite = retrieval.energies[: int(steps) + 1, i].isfinite()
        if not finite.all():
            raise InputError(
                f"the energy of query {i + 1} is not finite from step {int((~finite).int().argmax())} on; "
                "give a smaller --order or --beta"
            )
        if not retrieval.retrieved[i].isfinite().all():
            raise InputError(f"what query {i + 1} retrieves is not finite; give a smaller --order or --beta")


def compare_memories(*, out: str | None = None, **options: Any) -> tuple[list[RecallShare], Path]:
    """Measure all kinds of memories, and write `recall.png`, `recall.md`, `recall.csv` and `recall.json`.

    Args:
        out: Folder to make. Default: the next free `runs/recall-study-<number>`.
        **options: Options of `measure_memories`.

    Returns:
        What was measured, and the folder.

    Raises:
        InputError: If `out` exists, or seed or draws is out of range.
    """
    check_out(out)
    shares = measure_memories(**options)
    folder = create_run(out, "recall", "study").path
    write_memory_study(shares, folder)
    drawn(folder / "recall.png", lambda path: save_figure(draw_memory_study(shares), path, dpi=110))
    return shares, folder


def recall_capacity(*, out: str | None = None, **options: Any) -> tuple[list[Capacity], Path]:
    """Measure how many patterns dense memories hold; write `recall.png`, `recall.md`, `recall.csv` and `recall.json`.

    Args:
        out: Folder to make. Default: the next free `runs/recall-capacity-<number>`.
        **options: Options of `measure_capacity`.

    Returns:
        What was measured, and the folder.

    Raises:
        InputError: If `out` exists, or seed or draws is out of range.
    """
    check_out(out)
    capacities = measure_capacity(**options)
    folder = create_run(out, "recall", "capacity").path
    write_capacity(capacities, folder)
    drawn(folder / "recall.png", lambda path: save_figure(draw_capacity(capacities), path))
    return capacities, folder
