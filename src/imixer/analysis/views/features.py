"""Write down and show feature maps of one image: `imixer analyze features`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from imixer.analysis.analyze import Analysis, AnalysisFigure
from imixer.errors import InputError
from imixer.escaping import for_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from imixer.analysis.features import Features
    from imixer.training.finished_run import FinishedRun


def measure(
    finished: FinishedRun,
    *,
    image: int | str = 0,
    block: int | None = None,
    n_iter: int | None = None,
    data: str | None = None,
) -> Features:
    """Follow one image through the iterations of one block of a run.

    Args:
        finished: The run.
        image: Number of a held-out image, or an image file.
        block: Number of the block, from 0. Default: the last.
        n_iter: Iterations to look at. Default: as trained.
        data: Where the run's data lie now. Default: where they lay.
    """
    from imixer.analysis.features import features_at
    from imixer.training.finite_checks import require_finite_outputs

    name, pixels = load_one(finished, image, data)
    require_finite_outputs(finished.model, pixels[None].to(finished.device), finished.name)
    return features_at(finished.model, pixels.to(finished.device), block=block, n_iter=n_iter, name=name)


def load_one(finished: FinishedRun, image: int | str, data: str | None) -> tuple[str, Tensor]:
    """Return the name of an image, and the image as the model takes it.

    Args:
        finished: The run.
        image: Number of a held-out image, or an image file.
        data: Where the run's data lie now. Default: where they lay.

    Raises:
        InputError: If the run gives an image no class, there is no such image, data are given beside a file, or they
            are not there.
    """
    from imixer.data.sources.decoding import pixel_format
    from imixer.data.sources.image_files import load_image

    finished.require_classes()
    if isinstance(image, str):
        if data is not None:
            raise InputError(f"data is {data}, which is not looked at where image is a file; leave one out")
        read = load_image(image, finished.input_size[0], pixel_format(finished.config.data))
        return Path(image).name, finished.transform(read)
    val = finished.data(data).val
    total = len(val)
    if not 0 <= image < total:
        raise InputError(f"image is {image}; give 0 to {total - 1}, or a file")
    return f"held-out {image}", finished.transform(val[image][0])


def numbers(features: Features) -> dict[str, Any]:
    """Collect what is written as JSON."""
    return {
        "image": features.name,
        "block": features.block,
        "n_iter": features.n_iter,
        "changes_of_x": features.changes_of_x.tolist(),
        "changes_of_maps": features.changes_of_maps.tolist(),
    }


def table(features: Features) -> Table:
    """Make the table of the screen, a row per iteration."""
    made = Table(title=f"{features.name}, block {features.block}: change in % of the last", title_justify="left")
    for name in ("iteration", "x", "H(x)"):
        made.add_column(name, justify="right")
    for a, (x, maps) in enumerate(zip(features.changes_of_x, features.changes_of_maps, strict=True)):
        made.add_row(f"{a} -> {a + 1}", f"{100 * float(x):.3g}", f"{100 * float(maps):.3g}")
    return made


def show(features: Features, console: Console) -> None:
    """Print the table, and what its columns mean."""
    console.print(table(features))
    console.print("norms over all channels; H(x): what the block adds to its tokens")


_LARGEST, _SMALLEST = 0.85, 0.5  # inches, of a map
_LONGEST = 14  # letters below the image


def draw(features: Features, channels: int = 4) -> Figure:
    """Draw two rows per channel, x^a and H(x^a) for a = 0 to n, then by how much each iteration changed them.

    Of more than 8 values of a, 8 are drawn, evenly spread, and by how much the iterations between them changed. The
    pictures of a row share a scale, whose ends stand on its left. Each change has its own, or later ones would be
    blank; its ends stand below it, in per cent of the row's. On the left of all, the image.

    Args:
        features: What `measure` returned.
        channels: How many, the most varied over the tokens first.
    """
    from imixer.analysis.plotting import draw_signed, explain_signed, label_row
    from imixer.plotting import DOUBLE, SMALL, print_figure

    chosen = features.channels(channels)
    n, shown = len(features.shown) - 1, list(features.shown)
    ratios = [*[1.0] * (n + 2), 0.1, *[1.0] * n]  # the image, the pictures, a space, the changes
    side = min(_LARGEST, max(_SMALLEST, (DOUBLE - 0.8) / sum(ratios)))
    rows: list[tuple[str, Tensor]] = []
    for channel in chosen:
        rows.append((f"channel {channel}\n$x^a$", features.states[shown, channel]))
        rows.append((f"channel {channel}\n$H(x^a)$", features.maps[shown, channel]))
    heights = [min(max(values.shape[1] / values.shape[2], 0.25), 2.0) for _, values in rows]
    figure_height = side * sum(heights) + 0.19 * len(rows) + 0.7
    with print_figure(side * sum(ratios) + 0.8, figure_height) as figure:
        grid = figure.add_gridspec(len(rows), len(ratios), width_ratios=ratios, height_ratios=heights)
        _draw_picture(figure.add_subplot(grid[0:2, 0]), features)
        for row, (label, values) in enumerate(rows):
            end = float(values.abs().max())
            pictures = [figure.add_subplot(grid[row, 1 + a]) for a in range(n + 1)]
            changes = [figure.add_subplot(grid[row, 3 + n + a]) for a in range(n)]
            label_row(pictures[0], f"{label}\n±{end:.2g}")
            for a, axes, value in zip(shown, pictures, values, strict=True):
                draw_signed(axes, value, end)
                if row == 0:
                    axes.set_title(f"$a = {a}$", fontsize=7, pad=3)
            for between, axes, value in zip(pairwise(shown), changes, values.diff(dim=0), strict=True):
                largest = float(value.abs().max())
                draw_signed(axes, value, largest)
                axes.set_xlabel(_per_cent(largest / end if end else 0.0), fontsize=SMALL, labelpad=1.5)
                if row == 0:
                    axes.set_title(r"${} \to {}$".format(*between), fontsize=7, pad=3)
            if values.shape[1] == 1:  # a row of numbers, of which each is a stripe
                for axes in (*pictures, *changes):
                    axes.set_aspect("auto")
        explain_signed(figure, *_explanations(features))
    return figure


def _explanations(features: Features) -> list[str]:
    states, maps = features.explanations
    return [
        states.replace("x^a", "$x^a$"),
        maps.replace("H(x^a)", "$H(x^a)$").replace("after a ", "after $a$ "),
        r"$a \to b$: the change, in % of the ends of its row",
    ]


def _draw_picture(axes: Axes, features: Features) -> None:
    from imixer.plotting import SMALL

    options: Any = dict(cmap="gray") if features.picture.shape[-1] == 1 else {}
    axes.imshow(features.picture.numpy(), vmin=0, vmax=1, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"block {features.block}", fontsize=7, pad=3)
    axes.set_xlabel(for_figure(features.name, _LONGEST), fontsize=SMALL, labelpad=1.5)


def _per_cent(share: float) -> str:
    return f"±{100 * share:.{2 if share >= 0.01 else 1}g} %"


ANALYSIS = Analysis(
    name="features",
    summary="what each iteration of one block makes of one image, as feature maps",
    measure=measure,
    numbers=numbers,
    show=show,
    drawings=(AnalysisFigure("features", "Features", draw, for_print=True),),
)
