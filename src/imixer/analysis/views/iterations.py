"""Write down and show what a run's iterations are worth: `imixer analyze iterations`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.analysis.statistics import spread, spread_text
from imixer.tables import plus_minus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imixer.analysis.iterations import SettingResult, SettingsComparison
    from imixer.training.finished_run import FinishedRun


def measure(finished: FinishedRun, *, images: int | None = None, data: str | None = None) -> SettingsComparison:
    """Run a run's model with other numbers of iterations and to tolerances, and time it.

    Args:
        finished: The run.
        images: Held-out images to measure on, evenly spread. Default: all.
        data: Where the run's data lie now. Default: where they lay.
    """
    from imixer.analysis.images import held_out_batches, held_out_masks
    from imixer.analysis.iterations import BATCH_SIZE, compare_iterations, default_settings

    settings = default_settings(finished.model)
    take = held_out_masks if finished.config.task == "segment" else held_out_batches
    return compare_iterations(finished.model, take(finished, images, BATCH_SIZE, data), settings)


def numbers(comparison: SettingsComparison) -> dict[str, Any]:
    """Collect what is written as JSON."""
    first = comparison.results[0]
    return {
        "images": len(first.correct),
        **({} if first.miou is None else {"images_without_pixels_that_count": first.without_pixels}),
        "trained": comparison.trained,
        "device": comparison.device,
        "latency_batch_size": comparison.batch_size,
        "latency_repeats": len(first.latency),
        "settings": [_setting_numbers(result) for result in comparison.results],
    }


def _setting_numbers(result: SettingResult) -> dict[str, Any]:
    low, middle, high = result.latency_quartiles
    return {
        "n_iter": result.setting.n_iter,
        "tolerance": result.setting.tolerance,
        **({} if result.miou is None else {"miou": result.miou}),
        "accuracy": result.accuracy,
        "accuracy_standard_error": result.accuracy_error,
        "same_answer": float(result.same.double().mean()),
        "logit_change": spread(result.change),
        "evaluations_per_block": None
        if result.evaluations is None
        else [spread(block.double()) for block in result.evaluations],
        "converged": result.converged,
        "latency_ms_per_image": {"median": middle, "lower_quartile": low, "upper_quartile": high},
    }


def table(comparison: SettingsComparison) -> Table:
    """Make the table of the screen, a row per setting; that of training is bold."""
    first = comparison.results[0]
    made = Table(
        title=f"Trained with {comparison.trained}; {len(first.correct)} held-out images; latency: median and quartiles "
        f"of {len(first.latency)}, batches of {comparison.batch_size}, {comparison.device}",
        title_justify="left",
    )
    made.add_column("solved")
    masks = first.miou is not None
    for name in (
        *["mIoU %"] * masks,
        "accuracy %",
        "same answer %",
        "logit change %",
        "evaluations per block",
        "ms per image",
    ):
        made.add_column(name, justify="right")
    for result in comparison.results:
        low, middle, high = result.latency_quartiles
        own = str(result.setting) in (comparison.trained, _OWN)
        made.add_row(
            Text(str(result.setting), "bold" if own else ""),
            *([] if result.miou is None else [f"{100 * result.miou:.2f}"]),
            plus_minus(100 * result.accuracy, 100 * result.accuracy_error),
            f"{100 * float(result.same.double().mean()):.2f}",
            spread_text(100 * result.change),
            _evaluations(result),
            f"{middle:.3f} ({low:.3f}-{high:.3f})",
        )
    return made


_OWN = "as trained"  # of a solver, as `Setting` calls it


def _evaluations(result: SettingResult) -> str:
    """Write the mean evaluations of F of each block, or their one number where it is set."""
    if result.evaluations is None:
        return "-"
    means = result.evaluations.double().mean(1).tolist()
    if result.setting.tolerance is None:
        return ", ".join(dict.fromkeys(f"{mean:.0f}" for mean in means))
    return ", ".join(f"{mean:.1f}" for mean in means)


def show(comparison: SettingsComparison, console: Console) -> None:
    """Print the table, what its columns mean, which images do not count, and which tolerances were not met."""
    from imixer.analysis.iterations import MAX_STEPS

    console.print(table(comparison))
    of_what = "" if comparison.results[0].miou is None else " of pixels"
    console.print(
        f"accuracy{of_what}: +- standard error. same answer, logit change (relative, mean +- std): against the model "
        "as trained. evaluations: of F, of each block, mean over images; - where the model's own solver does not tell"
    )
    first = comparison.results[0]
    if first.without_pixels:
        console.print(
            f"{first.without_pixels} of {len(first.correct)} images have no pixel that counts, and no part in the "
            "accuracy"
        )
    for result in comparison.results:
        if result.converged is not None and result.converged < 1:
            lost = f"{1 - result.converged:.2%} of the inverses not met in {MAX_STEPS} evaluations"
            console.print(f"{result.setting}: {lost}")


def draw(comparison: SettingsComparison) -> Figure:
    """Draw accuracy with its standard error (left), and median latency with its quartiles (right).

    Both stand over the evaluations of F per block and image: n, or the mean of what a tolerance takes. The model's own
    solver, which does not tell how many it takes, is a dotted line.
    """
    from matplotlib.figure import Figure

    from imixer.analysis.plotting import style_axes
    from imixer.plotting import BLUE, ORANGE, legend_below

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    accuracy, latency = figure.subplots(1, 2)
    counted = [(result, result.evaluations) for result in comparison.results if result.evaluations is not None]
    by_number = [pair for pair in counted if pair[0].setting.tolerance is None]
    to_tolerance = [pair for pair in counted if pair[0].setting.tolerance is not None]
    for result in comparison.results:
        if result.evaluations is None:
            dotted: dict[str, Any] = dict(color="0.3", lw=1, ls=":", label=str(result.setting))
            accuracy.axhline(100 * result.accuracy, **dotted)
            latency.axhline(result.latency_quartiles[1], **dotted)
    for label, pairs, color, marker, ls in (
        ("n iterations", by_number, BLUE, "o", "-"),
        ("to a tolerance", to_tolerance, ORANGE, "s", "--"),
    ):
        if not pairs:
            continue
        results = [result for result, _ in pairs]
        style: dict[str, Any] = dict(color=color, marker=marker, ls=ls, capsize=3, label=label)
        x = [float(evaluations.double().mean()) for _, evaluations in pairs]
        shares = [100 * result.accuracy for result in results]
        accuracy.errorbar(x, shares, [100 * result.accuracy_error for result in results], **style)
        low, middle, high = zip(*(result.latency_quartiles for result in results), strict=True)
        below = [m - q for m, q in zip(middle, low, strict=True)]
        above = [q - m for m, q in zip(middle, high, strict=True)]
        latency.errorbar(x, middle, [below, above], **style)
        if pairs is to_tolerance:
            for axes, y in ((accuracy, shares), (latency, middle)):
                for x_i, y_i, result in zip(x, y, results, strict=True):
                    tolerance = f"{result.setting.tolerance:.0e}"
                    axes.annotate(tolerance, (x_i, y_i), (4, -11), textcoords="offset points", fontsize=7)
    images = len(comparison.results[0].correct)
    what = "accuracy" if comparison.results[0].miou is None else "accuracy of pixels"
    accuracy.set(ylabel=f"{what} in %", title=f"{images} held-out images, trained with {comparison.trained}")
    latency.set(ylabel="ms per image", title=f"Latency, batches of {comparison.batch_size}, {comparison.device}")
    latency.set_ylim(bottom=0)
    for axes in (accuracy, latency):
        axes.set_xlabel("evaluations of F per block")
        style_axes(axes)
        legend_below(axes, columns=3, fontsize=8)
    return figure


ANALYSIS = Analysis(
    name="iterations",
    summary="accuracy and latency against the number of iterations, and against a tolerance",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("iterations", "Iterations", draw),),
)
