"""Write down and show what a class is decided by: `imixer analyze attribution`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.analysis.views.features import load_one
from imixer.escaping import for_figure, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imixer.analysis.attribution import Attribution
    from imixer.training.finished_run import FinishedRun


def measure(
    finished: FinishedRun,
    *,
    image: int | str = 0,
    target: str | None = None,
    block: int | None = None,
    data: str | None = None,
) -> Attribution:
    """Find the tokens of one image that a class is decided by.

    Args:
        finished: The run.
        image: Number of a held-out image, or an image file.
        target: Class to explain. Default: the one that the model puts first.
        block: Number of the block, from 0. Default: the last.
        data: Where the run's data lie now. Default: where they lay.
    """
    from imixer.analysis.attribution import attribution_of
    from imixer.training.finite_checks import require_finite_outputs

    name, pixels = load_one(finished, image, data)
    pixels = pixels.to(finished.device)
    require_finite_outputs(finished.model, pixels[None], finished.name)
    return attribution_of(finished.model, pixels, finished.class_names, target=target, block=block, name=name)


def numbers(attribution: Attribution) -> dict[str, Any]:
    """Collect what is written as JSON."""
    return {
        "image": attribution.name,
        "class": attribution.class_name,
        "probability": attribution.probability,
        "predicted": attribution.predicted,
        "block": attribution.block,
        "map": attribution.map.tolist(),
    }


def show(attribution: Attribution, console: Console) -> None:
    """Print the class, its probability, and where its heaviest token lies."""
    gh, gw = attribution.map.shape
    row, column = divmod(int(attribution.map.argmax()), gw)
    class_name, predicted = one_line(attribution.class_name), one_line(attribution.predicted)
    also = "" if class_name == predicted else f", while the model says {predicted}"
    lines = [f"{one_line(attribution.name)}: {class_name}, probability {100 * attribution.probability:.1f} %{also}"]
    if attribution.map.any():
        lines.append(f"heaviest of the {gh} x {gw} tokens after block {attribution.block}: row {row}, column {column}")
    else:
        lines.append(f"no token after block {attribution.block} speaks for {class_name}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


_HEIGHT = 2.0  # inches


def draw(attribution: Attribution) -> Figure:
    """Draw the image, and over it the weight of each token.

    Args:
        attribution: What `measure` returned.
    """
    from imixer.plotting import SMALL, print_figure

    height, width = attribution.picture.shape[:2]
    options: Any = dict(cmap="gray") if attribution.picture.shape[-1] == 1 else {}
    place: Any = dict(extent=(0, width, height, 0))
    with print_figure(2 * _HEIGHT * width / height + 0.9, _HEIGHT + 0.6) as figure:
        alone, over = figure.subplots(1, 2)
        for axes in (alone, over):
            axes.imshow(attribution.picture.numpy(), vmin=0, vmax=1, interpolation="nearest", **place, **options)
            axes.set_xticks([])
            axes.set_yticks([])
        down, right = attribution.covered or (height, width)
        extent = (0, right, down, 0)
        shown = over.imshow(attribution.map.numpy(), vmin=0, vmax=1, cmap="inferno", alpha=0.6, extent=extent)
        over.set(xlim=(0, width), ylim=(height, 0))
        figure.colorbar(shown, ax=over, label="weight of a token", fraction=0.046)
        alone.set_title(for_figure(attribution.name, 30), fontsize=7, pad=3)
        title = f"{for_figure(attribution.class_name, 24)}, {100 * attribution.probability:.0f} %"
        over.set_title(title, fontsize=7, pad=3)
        over.set_xlabel(f"tokens after block {attribution.block}", fontsize=SMALL, labelpad=1.5)
    return figure


ANALYSIS = Analysis(
    name="attribution",
    summary="which parts of one image a class is decided by (Grad-CAM)",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("attribution", "Attribution", draw, for_print=True),),
)
