"""Draw charts that tell a number where one points, by Plotly. Lines differ in colour and in dashes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from imixer.escaping import for_plotly, middle_cut
from imixer.experiments.report.collect import IterationCurves, ReportedRun
from imixer.plotting import BLUE, COLORS, GRAY
from imixer.training.run.result import METRIC_NAMES

_COLORS = (*COLORS[:6], GRAY)
_BLOCK_OFFSET = 0.4  # of an iteration, over which the blocks are spread so that none hides another
_LONGEST = 30  # characters of a class on an axis
_ALL_NAMED = 40  # classes whose names all have room on an axis
_FEW_CLASSES = 20  # whose counts have room in a confusion matrix
_PANELS = 4  # side by side
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def _line_styles(count: int) -> list[tuple[str, str]]:
    return list(islice(zip(cycle(_COLORS), cycle(_DASHES), strict=False), count))


def learning_curves(runs: Sequence[ReportedRun]) -> go.Figure:
    """Draw training loss, validation loss and validation accuracy over the epochs, a line per run.

    The mIoU takes the place of the accuracy in runs of segmentation.
    """
    scored = " or ".join(dict.fromkeys(METRIC_NAMES[run.metric] for run in runs))
    panels = {"train_loss": "training loss", "val_loss": "validation loss", "val_acc": f"validation {scored}"}
    figure = make_subplots(1, 3, subplot_titles=list(panels.values()), horizontal_spacing=0.07)
    for run, style in zip(runs, _line_styles(len(runs)), strict=True):
        for column, name in enumerate(panels, 1):
            shown = run.metric if name == "val_acc" else name
            epochs, values = [row["epoch"] for row in run.rows], [row[shown] for row in run.rows]
            _add_line(figure, column, for_plotly(run.name), style, epochs, values, "epoch %{x}: %{y:.4g}")
    _count_epochs(figure, max(len(run.rows) for run in runs))
    figure.update_yaxes(tickformat=".0%", col=3)
    return _styled(figure)


def convergence_by_epoch(run: ReportedRun) -> go.Figure:
    """Draw fixed point residual, spectral norm and Lipschitz bound over the epochs, a line per block.

    Args:
        run: A run. The spectral norm in its `convergence.csv` is that before the normalisation.
    """
    panels = {"residual": "residual", "sigma": "spectral norm", "bound": "Lipschitz bound"}
    figure = make_subplots(1, 3, subplot_titles=list(panels.values()), horizontal_spacing=0.07)
    blocks = sorted({int(row["block"]) for row in run.convergence})
    for place, block in enumerate(blocks):
        rows = [row for row in run.convergence if row["block"] == block]
        style = _COLORS[place % len(_COLORS)], _DASHES[place // len(_COLORS) % len(_DASHES)]
        for column, name in enumerate(panels, 1):
            epochs, values = [row["epoch"] for row in rows], [row[name] for row in rows]
            _add_line(figure, column, f"block {block}", style, epochs, values, "epoch %{x}: %{y:.3g}")
    figure.update_yaxes(type="log", exponentformat="power", col=1)
    _count_epochs(figure, len(run.rows))
    return _styled(figure)


def iteration_steps(blocks: Sequence[dict[str, Any]]) -> go.Figure:
    """Draw Norm_a and cos_a over the iterations of one model, a line per block.

    A line is the mean over the images, its bars are their standard deviation.

    Args:
        blocks: Blocks as `imixer analyze convergence` writes them.
    """
    panels = {"norm": "Norm<sub>a</sub>", "cosine": "cos<sub>a</sub>"}
    figure = make_subplots(1, 2, subplot_titles=list(panels.values()), horizontal_spacing=0.09)
    for place, (block, style) in enumerate(zip(blocks, _line_styles(len(blocks)), strict=True)):
        offset = _BLOCK_OFFSET * ((place + 0.5) / len(blocks) - 0.5)
        for column, measure in enumerate(panels, 1):
            means, stds = ([each[key] for each in block[measure]] for key in ("mean", "std"))
            _add_line(
                figure,
                column,
                f"block {block['block']}",
                style,
                [a + offset for a in range(len(means))],
                means,
                "a = %{customdata[0]}: %{y:.5g} ± %{customdata[1]:.2g}",
                mode="lines+markers",
                error_y={"array": stds, "thickness": 1, "width": 0},
                customdata=list(enumerate(stds)),
            )
    most = max(len(block["norm"]) for block in blocks)
    figure.update_xaxes(title_text="iteration a", tick0=0, dtick=1 + most // 10, range=[-0.5, most - 0.5])
    figure.update_yaxes(type="log", exponentformat="power", col=1)
    return _styled(figure)


def compared_iterations(curves: IterationCurves) -> go.Figure:
    """Draw Norm_a or cos_a over the iterations of several models, a panel per block and a line per model.

    A line is the mean over the images. Where one points, the extremes are told too.

    Args:
        curves: Numbers of the models, and what to draw in each panel.
    """
    names = {"norm": "Norm<sub>a</sub>", "cosine": "cos<sub>a</sub>"}
    titles = [f"iMLP-{panel['block']}: {names[panel['measure']]}" for panel in curves.panels]
    rows = -(-len(titles) // _PANELS)
    columns = -(-len(titles) // rows)
    figure = make_subplots(rows, columns, subplot_titles=titles, horizontal_spacing=0.07, vertical_spacing=0.22 / rows)
    for place, panel in enumerate(curves.panels):
        at = {"row": 1 + place // columns, "col": 1 + place % columns}
        for model, (color, dash) in zip(curves.models, _line_styles(len(curves.models)), strict=True):
            values = model["blocks"][panel["block"]][panel["measure"]]
            figure.add_scatter(
                x=list(range(len(values))),
                y=[each["mean"] for each in values],
                name=model["name"],
                legendgroup=model["name"],
                showlegend=place == 0,
                mode="lines+markers",
                line={"color": color, "dash": dash},
                marker={
                    "symbol": ["diamond" if a == model["trained_n_iter"] else "circle" for a in range(len(values))],
                    "size": [12 if a == model["trained_n_iter"] else 5 for a in range(len(values))],
                },
                customdata=[[each["min"], each["max"]] for each in values],
                hovertemplate="a = %{x}: %{y:.5g}, %{customdata[0]:.5g} to %{customdata[1]:.5g}"
                f"<extra>{model['name']}</extra>",
                **at,
            )
        if panel["measure"] == "norm":
            figure.update_yaxes(type="log", exponentformat="power", **at)
        if place + columns >= len(titles):
            figure.update_xaxes(title_text="iteration a", **at)
    return _styled(figure).update_layout(height=130 + 230 * rows)


def energy_changes(mixings: Sequence[dict[str, Any]]) -> go.Figure:
    """Draw the change of energy per neuron in each mixing step, and the asymmetry of its couplings.

    Args:
        mixings: Mixing steps as `imixer analyze energy` writes them.
    """
    titles = ["change of energy, per neuron", "asymmetry of the couplings"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.09)
    for mixing, color in zip(("tokens", "channels"), _COLORS, strict=False):
        steps = [step for step in mixings if step["mixing"] == mixing]
        blocks = [step["block"] for step in steps]
        figure.add_scatter(
            x=blocks,
            y=[step["change"]["mean"] for step in steps],
            error_y={"array": [step["change"]["std"] for step in steps]},
            customdata=[[step["change"]["std"], step["verdict"], step["share_falling"]] for step in steps],
            name=f"mixing of {mixing}",
            mode="markers",
            marker={"color": color, "symbol": "circle" if mixing == "tokens" else "square", "size": 9},
            hovertemplate="block %{x}: %{y:.3g} ± %{customdata[0]:.2g}<br>falls on %{customdata[2]:.0%} of the images: "
            "%{customdata[1]}<extra>" + mixing + "</extra>",
            row=1,
            col=1,
        )
        for synapse, dash in zip(steps[0]["asymmetry"], cycle(_DASHES), strict=False):
            figure.add_scatter(
                x=blocks,
                y=[step["asymmetry"][synapse] for step in steps],
                name=f"{mixing}, {synapse}",
                mode="lines+markers",
                line={"color": color, "dash": dash},
                hovertemplate="block %{x}: %{y:.3f}<extra>" + f"{mixing}, {synapse}" + "</extra>",
                row=1,
                col=2,
            )
    figure.add_hline(0.5**0.5, line={"dash": "dot", "color": GRAY}, row=1, col=2)
    figure.update_yaxes(range=[0, 1], col=2)
    figure.update_xaxes(title_text="block", dtick=1 + len(mixings) // 40)
    return _styled(figure)


def confusion_matrix(names: Sequence[str], counts: Sequence[Sequence[int]], unit: str = "images") -> go.Figure:
    """Draw a confusion matrix: the share of the true class as colour, and counts where there is room.

    Args:
        names: Names of the classes.
        counts: Number of images of each true class (row) that were taken for each class (column).
        unit: What is counted.
    """
    totals, names = [max(sum(row), 1) for row in counts], _labels(names)
    axis = {"type": "category"} | ({"dtick": 1} if len(names) <= _ALL_NAMED else {})
    figure = go.Figure(
        go.Heatmap(
            x=list(names),
            y=list(names),
            z=[[count / total for count in row] for row, total in zip(counts, totals, strict=True)],
            customdata=counts,
            text=[[count or "" for count in row] for row in counts],
            texttemplate="%{text}" if len(names) <= _FEW_CLASSES else None,
            zmin=0,
            zmax=1,
            colorscale=[[0, _rgba(BLUE, 0)], [1, _rgba(BLUE, 0.8)]],
            showscale=False,
            hovertemplate=f"%{{y}} taken for %{{x}}: %{{customdata}} {unit}, %{{z:.1%}}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="predicted class", constrain="domain", constraintoward="left", **axis)
    figure.update_yaxes(title_text="true class", autorange="reversed", scaleanchor="x", **axis)
    return _styled(figure).update_layout(height=min(260 + 22 * len(names), 900))


def class_accuracies(scores: Sequence[dict[str, Any]]) -> go.Figure:
    """Draw the accuracy of each class; of a segmentation, its IoU.

    Args:
        scores: Scores as `imixer evaluate` writes them.
    """
    score_of, unit = ("iou", "pixels") if "iou" in scores[0] else ("accuracy", "images")
    share = "IoU %{y:.1%}," if score_of == "iou" else "%{y:.1%} of"
    figure = go.Figure(
        go.Bar(
            x=_labels([score["name"] for score in scores]),
            y=[score[score_of] for score in scores],
            customdata=[score[unit] for score in scores],
            marker_color=_COLORS[0],
            hovertemplate=f"%{{x}}: {share} %{{customdata:,}} {unit}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickformat=".0%", range=[0, 1], title_text="IoU" if score_of == "iou" else score_of)
    return _styled(figure)


def _rgba(color: str, alpha: float) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha:g})"


def _labels(names: Sequence[str]) -> list[str]:
    """Shorten the names of classes for an axis, unless two would become one."""
    short = [for_plotly(middle_cut(name, _LONGEST)) for name in names]
    return short if len(set(short)) == len(set(names)) else [for_plotly(name) for name in names]


def _add_line(
    figure: go.Figure,
    column: int,
    name: str,
    style: tuple[str, str],
    x: Sequence[float],
    y: Sequence[float],
    hover: str,
    **more: Any,
) -> None:
    """Add a line to a panel. Lines of one name are one in the legend."""
    color, dash = style
    line = {
        "mode": "lines+markers" if len(x) < 4 else "lines",
        "line": {"color": color, "dash": dash},
        "hovertemplate": f"{hover}<extra>{name}</extra>",
    }
    figure.add_scatter(x=x, y=y, name=name, legendgroup=name, showlegend=column == 1, row=1, col=column, **line | more)


def _count_epochs(figure: go.Figure, epochs: int) -> None:
    figure.update_xaxes(title_text="epoch", tick0=0, dtick=1 + epochs // 10)


def _styled(figure: go.Figure) -> go.Figure:
    """Make a figure transparent, so that the page's colours show, light or dark.

    The page sets the colours of text and grid.
    """
    figure.update_xaxes(title_standoff=5)
    figure.update_layout(
        template="none",
        height=360,
        margin={"l": 55, "r": 15, "t": 40, "b": 90 if len(figure.data) > 1 else 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    return figure
