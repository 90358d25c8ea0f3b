"""Measure the contraction of a trained run's blocks once, and keep it in the run directory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imixer.errors import InputError
from imixer.reading import read_json
from imixer.training.run.directory import RunDirectory
from imixer.verdict import Verdict
from imixer.writing import write_json

IMAGES = 16  # as many as the paper's figures take
_MEASURED = {"measurement": 1, "images": IMAGES}  # raise the number where the same run would give other values
_SEVERITY: tuple[Verdict, ...] = ("guaranteed", "observed", "undecided", "violated")


@dataclass(frozen=True)
class TrainedContraction:
    """The contraction of the worst block of one or several runs.

    Args:
        bound: Bound of the Lipschitz constant of F, by its matrices and activations. Infinite where none is known.
        norm: Largest Jacobian norm of F at the images' fixed points. Infinite if it overflows.
        found: Share of the fixed points that the solver found, in the block where it is smallest.
        residual: ||x - G(v) - F(x)|| / ||x|| that the run's own iterations leave over the images.
        verdict: Whether F is a contraction: `guaranteed` by the bound, `observed` on the images, `undecided` where the
            search for a fixed point came to no end, or `violated`.
    """

    bound: float
    norm: float
    found: float
    residual: float
    verdict: Verdict


def measure_contraction(path: Path) -> TrainedContraction:
    """Measure the contraction of a finished run on evenly spread held-out images, or read what was measured alike.

    Args:
        path: The run directory of an iMixer.

    Raises:
        InputError: If the data are missing, the model has no inverse, or the earlier measurement is damaged.
    """
    file = RunDirectory(path).analysis / "trained_contraction.json"
    if file.is_file() and (numbers := read_measured(file, _MEASURED)) is not None:
        return _contraction(file, numbers)
    from imixer.analysis.contraction import contraction_along_depth
    from imixer.analysis.images import held_out_images
    from imixer.training.finished_run import load_run
    from imixer.training.monitor import convergence

    finished = load_run(str(path))
    images = held_out_images(finished, IMAGES)
    residuals = [row["residual"] for row in convergence(finished.model, images)]
    blocks = contraction_along_depth(finished.model, images)
    measured = TrainedContraction(
        bound=_largest([block.certificate.worst.bound for block in blocks]),
        norm=_largest([float(block.norms.max()) for block in blocks]),
        found=min(float(block.certificate.data.converged.all(-1).double().mean()) for block in blocks),
        residual=_largest(residuals),
        verdict=max((block.verdict for block in blocks), key=_SEVERITY.index),
    )
    file.parent.mkdir(exist_ok=True)
    write_json(file, _MEASURED | asdict(measured), non_finite="null")  # a bound may be infinite
    return measured


def worst_contraction(measured: Sequence[TrainedContraction]) -> TrainedContraction | None:
    """Return the worst contraction over several runs. None without a run.

    Args:
        measured: The contraction of each run.
    """
    if not measured:
        return None
    return TrainedContraction(
        bound=max(each.bound for each in measured),
        norm=max(each.norm for each in measured),
        found=min(each.found for each in measured),
        residual=max(each.residual for each in measured),
        verdict=max((each.verdict for each in measured), key=_SEVERITY.index),
    )


def _largest(values: Sequence[float]) -> float:
    """Return the largest value; infinity if one of them is not a number, as after an overflow."""
    return math.inf if any(math.isnan(value) for value in values) else max(values)


def read_measured(file: Path, alike: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the numbers of an earlier measurement of a run. None if it was made otherwise, or by an earlier version.

    Args:
        file: The JSON file.
        alike: How it is measured now, which the file has beside its numbers.

    Raises:
        InputError: If the file is damaged.
    """
    numbers = read_json(file)
    return numbers if all(numbers.pop(name, None) == value for name, value in alike.items()) else None


def _contraction(file: Path, numbers: Mapping[str, Any]) -> TrainedContraction:
    fields: dict[str, Any] = {name: math.inf if value is None else value for name, value in numbers.items()}
    try:
        return TrainedContraction(**fields)
    except TypeError as error:
        raise InputError(f"{file} is damaged; remove it, and it is measured again") from error
