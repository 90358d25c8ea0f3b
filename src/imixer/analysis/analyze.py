"""What all measurements of a run have in common: measure, write down, draw, show. Free of torch until one is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from rich.console import Console

from imixer.errors import InputError
from imixer.progress import announce
from imixer.writing import check_output_folder, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Measurement = TypeVar("_Measurement")


@dataclass(frozen=True)
class AnalysisFigure(Generic[_Measurement]):
    """Name a figure of a measurement, and draw it.

    Args:
        name: Name of its file, without a suffix.
        title: What it shows, for reports.
        draw: From the measurement to the figure.
        for_print: Whether the figure is a `print_figure`, to be saved as PNG and PDF; otherwise as PNG only.
    """

    name: str
    title: str
    draw: Callable[[_Measurement], Figure]
    for_print: bool = False


@dataclass(frozen=True)
class Analysis(Generic[_Measurement]):
    """Describe a measurement of a trained run: how to make it, write it down and show it.

    Write one for whatever should be measured by a command, in a module of `imixer.analysis.views`, and list it in
    `imixer.analysis.registry`. Such a module is imported to print a command's help. It therefore imports torch,
    matplotlib and the module that measures inside its functions.

    Args:
        name: Name on the command line, and of the JSON file.
        summary: What the command line's help says that it measures.
        measure: From a `FinishedRun` to the measurement. Its keyword-only parameters are options of the command, whose
            help is taken from its docstring. It raises InputError if the run does not allow the measurement.
        numbers: From the measurement to what is written as JSON. Numbers that are not finite become null.
        show: Prints the measurement.
        drawings: The figures.
        check: Takes the options and raises InputError if they are impossible, before any run is loaded.
        judge: From the measurement, and keyword-only options that are not passed to `measure`, to a line that says
            which requirement it fails, or to None.
        compare: The same measurement of several runs side by side; its `measure` takes a sequence of them.
        beside_run: Whether the JSON file lies in the run's directory and not in its folder `analysis`.
    """

    name: str
    summary: str
    measure: Callable[..., _Measurement]
    numbers: Callable[[_Measurement], dict[str, Any]]
    show: Callable[[_Measurement, Console], None]
    drawings: tuple[AnalysisFigure[_Measurement], ...] = ()
    check: Callable[..., object] | None = None
    judge: Callable[..., str | None] | None = None
    compare: Analysis[Any] | None = None
    beside_run: bool = False


def analyze(
    analysis: Analysis[_Measurement],
    path: str,
    *,
    device: str = "auto",
    checkpoint: Literal["last", "best"] = "last",
    **options: Any,
) -> tuple[_Measurement, list[Path]]:
    """Measure a run, and write numbers and figures into its outputs, over those of an earlier time.

    Args:
        analysis: What to measure.
        path: The run's directory.
        device: `cpu`, `cuda` or `auto`.
        checkpoint: Whose weights to measure: those of the `last` epoch, or of the `best`.
        **options: Options of the measurement.

    Returns:
        The measurement, and the files that were written.

    Raises:
        InputError: If run or data are not there, the model or what it makes of the images is not finite, or the run
            does not allow the measurement.
    """
    from imixer.training.finished_run import load_run

    run = load_run(path, device, checkpoint)
    outputs = run.make_outputs()
    folder = outputs.path if analysis.beside_run else outputs.analysis
    check_output_folder(folder, f"analyze {analysis.name}")
    announce(f"measuring {analysis.name} of {run.name}")
    measurement = analysis.measure(run, **options)
    return measurement, write(analysis, measurement, folder)


def compare_runs(
    analysis: Analysis[_Measurement],
    paths: Sequence[str],
    *,
    device: str = "auto",
    checkpoint: Literal["last", "best"] = "last",
    out: str | None = None,
    **options: Any,
) -> tuple[_Measurement, list[Path]]:
    """Measure several runs side by side, and write numbers and figures over those of an earlier time.

    Args:
        analysis: What to measure: the `compare` of an `Analysis`.
        paths: The runs' directories.
        device: `cpu`, `cuda` or `auto`.
        checkpoint: Whose weights to measure: those of the `last` epoch, or of the `best`.
        out: Folder to write into; made if it does not exist. Default: the folder `analysis` of the first run.
        **options: Options of the measurement.

    Returns:
        The measurement, and the files that were written.

    Raises:
        InputError: If runs or data are not there, the runs do not allow the measurement, or `out` cannot be made.
    """
    from imixer.training.finished_run import load_run

    if out is not None:
        check_output_folder(Path(out), "out")
    runs = [load_run(path, device, checkpoint) for path in paths]
    folder = runs[0].make_outputs().analysis if out is None else Path(out)
    announce(f"measuring {analysis.name} of {len(runs)} runs")
    measurement = analysis.measure(runs, **options)
    return measurement, write(analysis, measurement, folder)


def write(analysis: Analysis[_Measurement], measurement: _Measurement, folder: Path) -> list[Path]:
    """Write the numbers of a measurement, then its figures.

    Args:
        analysis: What was measured.
        measurement: What came out.
        folder: Folder to write into; made if it does not exist.

    Returns:
        The files. A figure that could not be drawn is left out, and a warning says so.

    Raises:
        InputError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: the folder {folder} cannot be made, {error.strerror}; give another") from error
    files = [folder / f"{analysis.name}.json"]
    write_json(files[0], analysis.numbers(measurement), non_finite="null")
    if analysis.drawings:
        announce(f"drawing {analysis.name}")
    for drawing in analysis.drawings:
        files += _save(drawing, measurement, folder / f"{drawing.name}.png")
    return files


def _save(drawing: AnalysisFigure[_Measurement], measurement: _Measurement, png: Path) -> list[Path]:
    from imixer.plotting import drawn, save_figure, save_print_figure

    save = save_print_figure if drawing.for_print else save_figure
    if not drawn(png, lambda path: save(drawing.draw(measurement), path)):
        return []
    return [png, png.with_suffix(".pdf")] if drawing.for_print else [png]
