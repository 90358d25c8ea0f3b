"""Charts that answer when one points at them, by Plotly. Colours are Okabe and Ito's; runs differ by dashes too."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any, Dict, List, Sequence, Tuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from imixer.experiments.report.collect import Run

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def _styles(count: int) -> List[Tuple[str, str]]:
    return list(islice(zip(cycle(_COLORS), cycle(_DASHES), strict=False), count))


def learning_curves(runs: Sequence[Run]) -> go.Figure:
    """Training loss, validation loss and validation accuracy over the epochs, one line per run."""
    panels = {"train_loss": "training loss", "val_loss": "validation loss", "val_acc": "validation accuracy"}
    figure = make_subplots(1, 3, subplot_titles=list(panels.values()), horizontal_spacing=0.07)
    for run, (color, dash) in zip(runs, _styles(len(runs)), strict=True):
        for column, name in enumerate(panels, 1):
            figure.add_scatter(
                x=[row["epoch"] for row in run.rows],
                y=[row[name] for row in run.rows],
                name=run.name,
                legendgroup=run.name,
                showlegend=column == 1,
                mode="lines+markers" if len(run.rows) < 4 else "lines",
                line={"color": color, "dash": dash},
                hovertemplate="epoch %{x}: %{y:.4g}<extra>" + run.name + "</extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(tickformat=".0%", col=3)
    return _finished(figure)


def convergence(run: Run) -> go.Figure:
    """Residual of the fixed point equation, largest norm before normalisation, and bound, per block over the epochs."""
    panels = {
        "residual": "residual",
        "sigma": "largest norm, before normalisation",
        "bound": "bound of F's Lipschitz constant",
    }
    figure = make_subplots(1, 3, subplot_titles=list(panels.values()), horizontal_spacing=0.07)
    blocks = sorted({int(row["block"]) for row in run.convergence})
    for place, block in enumerate(blocks):
        rows = [row for row in run.convergence if row["block"] == block]
        for column, name in enumerate(panels, 1):
            figure.add_scatter(
                x=[row["epoch"] for row in rows],
                y=[row[name] for row in rows],
                name=f"block {block}",
                legendgroup=str(block),
                showlegend=column == 1,
                mode="lines+markers" if len(rows) < 4 else "lines",
                line={"color": _COLORS[place % len(_COLORS)], "dash": _DASHES[place // len(_COLORS) % len(_DASHES)]},
                hovertemplate="epoch %{x}: %{y:.3g}" + f"<extra>block {block}</extra>",
                row=1,
                col=column,
            )
    figure.update_yaxes(type="log", exponentformat="power", col=1)
    figure.update_xaxes(title_text="epoch")
    return _finished(figure)


def per_class(run: Run) -> go.Figure:
    """Accuracy of each class."""
    scores: List[Dict[str, Any]] = run.evaluation["per_class"]
    figure = go.Figure(
        go.Bar(
            x=[score["name"] for score in scores],
            y=[score["accuracy"] for score in scores],
            customdata=[score["images"] for score in scores],
            marker_color=_COLORS[0],
            hovertemplate="%{x}: %{y:.1%} of %{customdata} images<extra></extra>",
        )
    )
    figure.update_yaxes(tickformat=".0%", range=[0, 1], title_text="accuracy")
    return _finished(figure)


def _finished(figure: go.Figure) -> go.Figure:
    """Transparent, so that the page's colours, light or dark, show; the page sets those of text and grid."""
    figure.update_layout(
        template="none",
        height=340,
        margin={"l": 55, "r": 15, "t": 40, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -0.25},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    return figure
