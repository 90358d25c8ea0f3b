"""What `imixer analyze` does with a run, whatever it measures: measure, write down, draw."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from imixer.plotting import drawn
from imixer.progress import announce
from imixer.training.finished_run import load_run
from imixer.writing import json_text, write_text

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
    numbers: Callable[[_Found], dict[str, Any]]
    draw: Callable[[_Found, Path], None]
    show: Callable[[_Found, Console], None]


def analyze(analysis: Analysis[_Found], path: str, *, device: str = "auto", **options: Any) -> tuple[_Found, Path]:
    """Measure a run; write `<name>.json` and `<name>.png` into its `analysis` folder, over those of an earlier time.

    Args:
        analysis: What to measure.
        path: The run's directory.
        device: `cpu`, `cuda` or `auto`.
        options: Of the measurement.

    Returns:
        What was found, and the folder.

    Raises:
        InputError: If run or data are not there, the model or what it makes of the images is not finite, or the run
            does not allow the measurement.
    """
    finished = load_run(path, device)
    announce(f"measuring {analysis.name} of {finished.directory.path}")
    found = analysis.measure(finished, **options)
    folder = finished.directory.analysis
    folder.mkdir(exist_ok=True)
    write_numbers(analysis.numbers(found), folder / f"{analysis.name}.json")
    announce(f"drawing {analysis.name}")
    drawn(folder / f"{analysis.name}.png", lambda path: analysis.draw(found, path))
    return found, folder


def write_numbers(numbers: dict[str, Any], file: Path) -> None:
    """Write what was found as JSON, which lacks numbers that are not finite: they become null."""
    write_text(file, json_text(numbers, non_finite="null"))
