"""Draw images with their masks, true and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from imixer.data.image_data import IGNORED
from imixer.data.sources.masks import background_class, overlay
from imixer.escaping import for_figure
from imixer.plotting import save_figure

_PER_LINE = 2  # images
_MANY_CLASSES = 24  # of which a legend has no room


@dataclass(frozen=True)
class MaskPanel:
    """An image with its predicted mask, and the true one if it is known.

    Args:
        image: The image.
        predicted: The predicted class of each pixel (height, width).
        truth: The true class of each pixel, `IGNORED` where it counts for nothing. None: it is not known.
        title: The name of the image, and how well it was predicted.
    """

    image: Image.Image
    predicted: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    title: str


def _shade(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def draw_masks(
    panels: Sequence[MaskPanel],
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    path: Path,
    heading: str = "",
) -> None:
    """Draw each image beside its true mask, if any is known, and its predicted one, as colours over the image.

    The background is left bare; `background_class` finds it. The legend has all other classes that are there.

    Args:
        panels: The images, in the order to draw them in.
        class_names: The names of the classes.
        palette: The colour of each class.
        path: The PNG to write.
        heading: The title of the figure.
    """
    bare = background_class(class_names, palette)
    wide = 3 if any(panel.truth is not None for panel in panels) else 2
    lines = -(-len(panels) // _PER_LINE)
    per_line = min(_PER_LINE, len(panels))
    figure = Figure(figsize=(1.9 * wide * per_line, 2.15 * lines + 0.9), layout="constrained")
    cells = figure.subplots(lines, wide * per_line, squeeze=False)
    for axes in cells.ravel():
        axes.set_axis_off()
    for number, panel in enumerate(panels):
        line, place = divmod(number, per_line)
        own = cells[line, place * wide : (place + 1) * wide]
        own[0].imshow(panel.image, cmap="gray" if panel.image.mode == "L" else None, vmin=0, vmax=255)
        own[0].set_title(for_figure(panel.title, 34), fontsize=8, loc="left")
        if panel.truth is not None:
            own[1].imshow(overlay(panel.image, panel.truth, palette, bare))
            own[1].set_title("true", fontsize=8)
        own[-1].imshow(overlay(panel.image, panel.predicted, palette, bare))
        own[-1].set_title("predicted", fontsize=8)
    there = sorted(
        {
            int(value)
            for panel in panels
            for mask in (panel.truth, panel.predicted)
            if mask is not None
            for value in np.unique(mask)
            if value not in (bare, IGNORED)
        }
    )
    if 0 < len(there) <= _MANY_CLASSES:
        handles = [Patch(color=_shade(palette[value]), label=for_figure(class_names[value], 20)) for value in there]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=8, frameon=False
        )
    if heading:
        figure.suptitle(heading, fontsize=10)
    save_figure(figure, path, dpi=110)
