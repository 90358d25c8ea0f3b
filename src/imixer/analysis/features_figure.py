"""Feature maps of the fixed point iterations, drawn."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from imixer.analysis.features import Features
from imixer.analysis.print_figure import DOUBLE, SMALL, draw_signed, explain_signed, label_row, print_figure
from imixer.escaping import for_figure

_LARGEST, _SMALLEST = 0.85, 0.5  # inches, of a map
_LONGEST = 14  # letters below the image


def draw_features(found: Features, path: Path, channels: int = 5) -> None:
    """A row per channel: H(x^a) for a = 0 to n, then by how much each iteration changed it. On the left, the image.

    The maps of a row share a scale, whose ends stand on its left. Each change has its own, or later ones would be
    blank; its ends stand below it, in per cent of the row's.

    Args:
        found: What `features_at` gave.
        path: PNG to write. The PDF lies beside it.
        channels: How many, the most varied over the tokens first.
    """
    chosen = found.channels(channels)
    n = found.n_iter
    ratios = [*[1.0] * (n + 2), 0.1, *[1.0] * n]  # the image, the maps, a space, the changes
    height, width = found.maps.shape[-2:]
    side = min(_LARGEST, max(_SMALLEST, (DOUBLE - 0.8) / sum(ratios)))
    figure_height = len(chosen) * (side * min(height / width, 2.0) + 0.16) + 0.55
    with print_figure(path, side * sum(ratios) + 0.8, figure_height) as figure:
        grid = figure.add_gridspec(len(chosen), len(ratios), width_ratios=ratios)
        _draw_picture(figure.add_subplot(grid[0, 0]), found)
        for row, channel in enumerate(chosen):
            values = found.maps[:, channel]
            end = float(values.abs().max())
            maps = [figure.add_subplot(grid[row, 1 + a]) for a in range(n + 1)]
            changes = [figure.add_subplot(grid[row, 3 + n + a]) for a in range(n)]
            label_row(maps[0], f"channel {channel}\n±{end:.2g}")
            for a, (axes, value) in enumerate(zip(maps, values, strict=True)):
                draw_signed(axes, value, end)
                if row == 0:
                    axes.set_title(f"$H(x^{{{a}}})$", fontsize=7, pad=3)
            for a, (axes, value) in enumerate(zip(changes, values.diff(dim=0), strict=True)):
                largest = float(value.abs().max())
                draw_signed(axes, value, largest)
                axes.set_xlabel(_per_cent(largest / end if end else 0.0), fontsize=SMALL, labelpad=1.5)
                if row == 0:
                    axes.set_title(rf"$x^{{{a}}} \to x^{{{a + 1}}}$", fontsize=7, pad=3)
        explain_signed(figure, r"$x^a \to x^{a+1}$: the change $H(x^{a+1}) - H(x^a)$, in % of the row's ends")


def _draw_picture(axes: Axes, found: Features) -> None:
    options: Any = dict(cmap="gray") if found.picture.shape[-1] == 1 else {}
    axes.imshow(found.picture.numpy(), vmin=0, vmax=1, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"block {found.block}", fontsize=7, pad=3)
    axes.set_xlabel(for_figure(found.name, _LONGEST), fontsize=SMALL, labelpad=1.5)


def _per_cent(share: float) -> str:
    return f"±{100 * share:.{2 if share >= 0.01 else 1}g} %"
