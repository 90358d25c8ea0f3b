"""What `imixer analyze` does with a run, whatever it measures: measure, write down, draw."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Generic, Tuple, TypeVar

from rich.console import Console

from imixer.training.reload import reload

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Analysis(Generic[_Found]):
    """A measurement of trained runs.

    Args:
        name: What the command line calls it, and its files are called after.
        measure: From a run, and options of its own, to what is found. Raises InputError if the run does not allow it.
        numbers: What was found, for JSON.
        draw: Draws what was found into a PNG.
        show: Prints what was found.
    """

    name: str
    measure: Callable[..., _Found]
    numbers: Callable[[_Found], Dict[str, Any]]
    draw: Callable[[_Found, Path], None]
    show: Callable[[_Found, Console], None]


def analyze(analysis: Analysis[_Found], path: str, *, device: str = "auto", **options: Any) -> Tuple[_Found, Path]:
    """Measure a run; write `<name>.json` and `<name>.png` into its `analysis` folder, over those of an earlier time.

    Args:
        analysis: What to measure.
        path: The run's directory.
        device: `cpu`, `cuda` or `auto`.
        options: Of the measurement.

    Returns:
        What was found, and the folder.

    Raises:
        InputError: If run or data are not there, or the run does not allow the measurement.
    """
    reloaded = reload(path, device)
    found = analysis.measure(reloaded, **options)
    folder = reloaded.run.analysis
    folder.mkdir(exist_ok=True)
    write_numbers(analysis.numbers(found), folder / f"{analysis.name}.json")
    analysis.draw(found, folder / f"{analysis.name}.png")
    return found, folder


def write_numbers(numbers: dict[str, Any], file: Path) -> None:
    """Write what was found as JSON, which lacks numbers that are not finite: they become null."""
    file.write_text(json.dumps(_finite(numbers), indent=2), encoding="utf-8")


def _finite(value: Any) -> Any:
    """Numbers that are not finite, which JSON lacks, as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
