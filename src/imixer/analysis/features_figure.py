"""Feature maps of the fixed point iterations, drawn."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from imixer.analysis.features import Features
from imixer.analysis.print_figure import DOUBLE, SMALL, draw_signed, explain_signed, label_row, print_figure
from imixer.escaping import for_figure

_LARGEST, _SMALLEST = 0.85, 0.5  # inches, of a map
_LONGEST = 14  # letters below the image


def draw_features(found: Features, path: Path, channels: int = 4) -> None:
    """Draw two rows per channel, x^a and H(x^a) for a = 0 to n, then by how much each iteration changed them.

    The pictures of a row share a scale, whose ends stand on its left. Each change has its own, or later ones would be
    blank; its ends stand below it, in per cent of the row's. On the left of all, the image.

    Args:
        found: What `features_at` gave.
        path: PNG to write. The PDF lies beside it.
        channels: How many, the most varied over the tokens first.
    """
    chosen = found.channels(channels)
    n = found.n_iter
    ratios = [*[1.0] * (n + 2), 0.1, *[1.0] * n]  # the image, the pictures, a space, the changes
    side = min(_LARGEST, max(_SMALLEST, (DOUBLE - 0.8) / sum(ratios)))
    rows: list[tuple[str, Tensor]] = []
    for channel in chosen:
        rows.append((f"channel {channel}\n$x^a$", found.states[:, channel]))
        rows.append((f"channel {channel}\n$H(x^a)$", found.maps[:, channel]))
    heights = [min(max(values.shape[1] / values.shape[2], 0.25), 2.0) for _, values in rows]
    figure_height = side * sum(heights) + 0.19 * len(rows) + 0.7
    with print_figure(path, side * sum(ratios) + 0.8, figure_height) as figure:
        grid = figure.add_gridspec(len(rows), len(ratios), width_ratios=ratios, height_ratios=heights)
        _draw_picture(figure.add_subplot(grid[0:2, 0]), found)
        for row, (label, values) in enumerate(rows):
            end = float(values.abs().max())
            pictures = [figure.add_subplot(grid[row, 1 + a]) for a in range(n + 1)]
            changes = [figure.add_subplot(grid[row, 3 + n + a]) for a in range(n)]
            label_row(pictures[0], f"{label}\n±{end:.2g}")
            for a, (axes, value) in enumerate(zip(pictures, values, strict=True)):
                draw_signed(axes, value, end)
                if row == 0:
                    axes.set_title(f"$a = {a}$", fontsize=7, pad=3)
            for a, (axes, value) in enumerate(zip(changes, values.diff(dim=0), strict=True)):
                largest = float(value.abs().max())
                draw_signed(axes, value, largest)
                axes.set_xlabel(_per_cent(largest / end if end else 0.0), fontsize=SMALL, labelpad=1.5)
                if row == 0:
                    axes.set_title(rf"${a} \to {a + 1}$", fontsize=7, pad=3)
            if values.shape[1] == 1:  # a row of numbers, of which each is a stripe
                for axes in (*pictures, *changes):
                    axes.set_aspect("auto")
        explain_signed(figure, *_explanations(found))


def _explanations(found: Features) -> list[str]:
    states, maps = found.explanations
    return [
        states.replace("x^a", "$x^a$"),
        maps.replace("H(x^a)", "$H(x^a)$").replace("after a ", "after $a$ "),
        r"$a \to a + 1$: the change, in % of the ends of its row",
    ]


def _draw_picture(axes: Axes, found: Features) -> None:
    options: Any = dict(cmap="gray") if found.picture.shape[-1] == 1 else {}
    axes.imshow(found.picture.numpy(), vmin=0, vmax=1, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"block {found.block}", fontsize=7, pad=3)
    axes.set_xlabel(for_figure(found.name, _LONGEST), fontsize=SMALL, labelpad=1.5)


def _per_cent(share: float) -> str:
    return f"±{100 * share:.{2 if share >= 0.01 else 1}g} %"
