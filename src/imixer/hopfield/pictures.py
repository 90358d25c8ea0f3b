"""Figures of what a network did: states and energies in time, and the way of a retrieval as an animation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imixer.extras import require_extra
from imixer.hopfield.drawing import BLUE, INK, ORANGE, checked_path

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

MOST_LINES = 12  # neurons or samples of which a figure draws a line each


def plot_states(
    times: Tensor, states: Mapping[str, Tensor], held: Mapping[str, Tensor], batch: Sequence[int], sample: int = 0
) -> Figure:
    """Draw neurons in time, a panel per layer; clamped ones are dashed.

    Args:
        times: (T,).
        states: Layer name -> x (T, *batch, ...).
        held: Layer name -> mask of clamped neurons, (*batch, ...).
        batch: Shape of the batch; empty if there is none.
        sample: Which sample of the flattened batch.

    Raises:
        ValueError: If there is no such sample.
    """
    count = math.prod(batch)
    if not 0 <= sample < count:
        raise ValueError(f"sample is {sample}, and there are {count}; give 0 to {count - 1}")
    require_extra("train", "a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(states), 3.2), layout="constrained")
    for axes, (name, x) in zip(figure.subplots(1, len(states), squeeze=False)[0], states.items(), strict=True):
        lines = x.detach().reshape(len(times), count, -1)[:, sample]
        free = torch.zeros(lines.shape[1], dtype=torch.bool)
        clamped = held[name].reshape(count, -1)[sample] if name in held else free
        shown = torch.linspace(0, lines.shape[1] - 1, min(MOST_LINES, lines.shape[1])).round().long().unique()
        for i in shown.tolist():
            axes.plot(times.tolist(), lines[:, i].tolist(), ls="--" if clamped[i] else "-", lw=1.2)
        left_out = "" if len(shown) == lines.shape[1] else f", {len(shown)} of {lines.shape[1]}"
        axes.set(title=f"{name}{left_out}", xlabel="time")
    return figure


def plot_energy(times: Tensor, energy: Tensor, rises: Sequence[tuple[int, int, float]], title: str) -> Figure:
    """Draw the energy in time, a line per sample, and mark where it rose.

    Args:
        times: (T,).
        energy: (T, ...).
        rises: Frame, sample and size of each rise.
        title: What is to be said of it.
    """
    require_extra("train", "a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    lines = energy.detach().flatten(1) if energy.dim() > 1 else energy.detach()[:, None]
    for i in range(min(MOST_LINES, lines.shape[1])):
        axes.plot(times.tolist(), lines[:, i].tolist(), color=BLUE, lw=1.2)
    marked = [(float(times[frame]), float(lines[frame, i])) for frame, i, _ in rises if i < MOST_LINES]
    if marked:
        at, heights = zip(*marked, strict=True)
        axes.scatter(at, heights, color=ORANGE, zorder=3, s=18, label="rises")
        axes.legend(frameon=False)
    axes.set_title(title, fontsize=9, loc="left", wrap=True)
    axes.set(xlabel="time", ylabel="energy")
    return figure


def animate(frames: Tensor, energies: Tensor, path: str | PathLike[str], frames_per_second: int = 4) -> None:
    """Write states from frame to frame, and their energies, as an animated GIF.

    Args:
        frames: (T, B, *shape): vectors, images (H, W), or (C, H, W), of which the mean over C is shown.
        energies: (T, B).
        path: File to write, which ends in .gif.
        frames_per_second: Speed.

    Raises:
        ValueError: If the file's name does not end in .gif, it cannot be written, or the speed is not positive.
    """
    require_extra("train", "an animation")
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = checked_path(path, ".gif", "an animation is a GIF")
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second is {frames_per_second}; give a positive number")
    pictures = frames.detach()[:, :MOST_LINES].float().cpu()
    if pictures.dim() == 3:
        pictures = pictures[:, :, None]
    pictures = pictures.flatten(2, -3).mean(2) if pictures.dim() > 4 else pictures
    count = pictures.shape[1]
    figure = Figure(figsize=(max(3.2, 1.1 * count), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, count)
    low, high = float(pictures.min()), float(pictures.max())
    shown = []
    for i in range(count):
        axes = figure.add_subplot(grid[0, i])
        axes.set_axis_off()
        shown.append(axes.imshow(pictures[0, i].numpy(), vmin=low, vmax=high, cmap="gray", aspect="auto"))
    below = figure.add_subplot(grid[1, :])
    below.plot(energies.detach()[:, :count].cpu().numpy(), color=BLUE, lw=1)
    below.set(xlabel="step", ylabel="energy")
    here = below.axvline(0, color=INK, lw=1)

    def draw(t: int) -> list[Artist]:
        for i, image in enumerate(shown):
            image.set_data(pictures[t, i].numpy())
        here.set_xdata([t, t])
        return [*shown, here]

    FuncAnimation(figure, draw, frames=len(pictures)).save(path, writer=PillowWriter(fps=frames_per_second))
