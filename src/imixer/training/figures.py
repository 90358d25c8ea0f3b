"""Draw the figures of a run: learning curves, confusion matrix, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from imixer.escaping import for_figure
from imixer.plotting import BLUE, GRAY, GREEN, ORANGE, legend_below, save_figure
from imixer.training.run.result import best_by, best_row

_MANY_CLASSES = 30
_LONGEST_NAME = 28  # characters of a class on an axis
_WORST_COLUMNS = 4


def draw_learning_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
        rows: The metrics of each epoch, as in `metrics.csv`.
        path: The PNG to write.
    """
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(12, 4.0), layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)
    marker = "o" if len(rows) < 3 else None
    losses.plot(epochs, [row["train_loss"] for row in rows], color=ORANGE, ls="--", marker=marker, label="training")
    losses.plot(epochs, [row["val_loss"] for row in rows], color=BLUE, marker=marker, label="validation")
    losses.set(ylabel="cross entropy (nats)", title="Loss (training: with smoothing and mixing)")
    metric = best_by(rows[-1])
    name, label = ("Accuracy", "top-1") if metric == "val_acc" else ("mIoU", "mIoU")
    accuracies.plot(epochs, [row[metric] for row in rows], color=BLUE, marker=marker, label=label)
    if metric != "val_acc":
        pixels = [row["val_acc"] for row in rows]
        accuracies.plot(epochs, pixels, color=GREEN, ls=":", marker=marker, label="accuracy of pixels")
    if "val_acc_top5" in rows[0]:
        top5 = [row["val_acc_top5"] for row in rows]
        accuracies.plot(epochs, top5, color=GREEN, ls=":", marker=marker, label="top-5")
    accuracies.set(ylabel=f"validation {name if name == 'mIoU' else 'accuracy'}")
    accuracies.set(title=f"{name}, {rows[-1][metric]:.2%} at the end{_best(rows)}")
    accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
    rates.plot(epochs, [row["lr"] for row in rows], color=BLUE, marker=marker)
    rates.set(ylabel="learning rate", title="Learning rate at the epoch's end")
    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    legend_below(losses, columns=2)
    legend_below(accuracies, columns=2)
    save_figure(figure, path, dpi=120)


def _best(rows: Sequence[dict[str, Any]]) -> str:
    best = best_row(rows)
    return "" if best["epoch"] == rows[-1]["epoch"] else f"\nbest {best[best_by(best)]:.2%} after epoch {best['epoch']}"


def draw_confusion_matrix(
    counts: np.ndarray, class_names: Sequence[str], path: Path, title: str = "Held-out images", unit: str = "images"
) -> None:
    """Draw a confusion matrix: the share of each true class as colour, the count of images as a number.

    Args:
        counts: Counts of images (classes, classes), a row per true class.
        class_names: The names of the classes in the order of the rows.
        path: The PNG to write.
        title: The name of the images.
        unit: What is counted.
    """
    n = len(class_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    beside = 0.08 * max(min(len(name), _LONGEST_NAME) for name in class_names) if n <= _MANY_CLASSES else 0.0
    side = min(3.4 + 0.32 * n, 12.0) + beside  # inches: names take as much on either axis
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", format=PercentFormatter(1.0), shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{for_figure(title, 40)}, {counts.sum():,} {unit}")
    if n <= _MANY_CLASSES:
        names = [for_figure(name, _LONGEST_NAME) for name in class_names]
        axes.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(n), names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "black" if shares[row, column] > 0.5 else "white"
            many = f"{shares[row, column]:.0%}" if unit == "pixels" else str(counts[row, column])
            axes.text(column, row, many, ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path, dpi=120)


@dataclass(frozen=True)
class WorstImage:
    """An image that a model is far from recognising.

    Args:
        image: The image.
        name: Its name.
        truth: Its true class.
        predicted: The most probable class.
        confidence: The probability of that.
    """

    image: Image.Image
    name: str
    truth: str
    predicted: str
    confidence: float


def draw_worst_images(worst: Sequence[WorstImage], wrong: int, images: int, path: Path) -> None:
    """Draw the images with the largest loss, each with its true class and what it was taken for.

    Args:
        worst: The images, the largest loss first.
        wrong: The number of all images that were not recognised.
        images: The number of all images.
        path: The PNG to write.
    """
    columns = min(_WORST_COLUMNS, len(worst))
    lines = -(-len(worst) // columns)
    figure = Figure(figsize=(max(2.6 * columns, 5.2), 2.8 * lines + 0.5), layout="constrained")
    cells = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, each in zip(cells, worst, strict=False):
        _show_image(axes, each.image)
        right = each.truth == each.predicted
        axes.set_title(
            f"true: {for_figure(each.truth, 24)}\npredicted: {for_figure(each.predicted, 16)} {each.confidence:.0%}",
            fontsize=9,
            color=GREEN if right else ORANGE,
        )
        axes.text(0.5, -0.02, for_figure(each.name, 26), transform=axes.transAxes, ha="center", va="top", fontsize=7)
    shown = f"the {len(worst)} with the largest loss" if len(worst) < images else "all, the largest loss first"
    right_ones = ", green: recognised" if any(each.truth == each.predicted for each in worst) else ""
    figure.suptitle(f"{wrong:,} of {images:,} images not recognised; {shown}{right_ones}", fontsize=10)
    save_figure(figure, path, dpi=110)


def _show_image(axes: Axes, image: Image.Image) -> None:
    axes.imshow(image, cmap="gray" if image.mode == "L" else None, vmin=0, vmax=255)
    axes.set_axis_off()


def draw_predictions(
    images: Sequence[Image.Image],
    probabilities: Sequence[Sequence[float]],
    labels: Sequence[Sequence[str]],
    titles: Sequence[str],
    truths: Sequence[str | None],
    path: Path,
) -> None:
    """Draw each image beside bars of its most probable classes, the true one in green if it is known.

    Args:
        images: The images.
        probabilities: For each image, the probabilities of its most probable classes, falling.
        labels: For each image, the names of these classes.
        titles: For each image, its title.
        truths: For each image, its true class, or None.
        path: The PNG to write.
    """
    columns = 2 if len(images) > 1 else 1
    lines = -(-len(images) // columns)
    figure = Figure(figsize=(6.4 * columns, 2.1 * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, 2 * columns, squeeze=False, width_ratios=[1, 1.6] * columns)
    cells: list[tuple[Axes, Axes]] = [(row[2 * c], row[2 * c + 1]) for row in grid for c in range(columns)]
    for (picture, bars), *_ in zip(cells[len(images) :]):
        picture.set_axis_off()
        bars.set_axis_off()
    for (picture, bars), image, chances, names, title, truth in zip(
        cells, images, probabilities, labels, titles, truths, strict=False
    ):
        _show_image(picture, image)
        missed = "" if truth == names[0] else ", missed"
        verdict = "" if truth is None else f"\ntrue: {for_figure(truth, 28 - len(missed))}{missed}"
        picture.set_title(for_figure(title, 28) + verdict, fontsize=9, loc="left")
        colors = [GREEN if name == truth else BLUE if truth is None else GRAY for name in names]
        bars.barh(range(len(names)), chances, color=colors)
        bars.set_yticks(range(len(names)), [for_figure(name, 22) for name in names])
        bars.invert_yaxis()
        bars.set_xlim(0, 1.18)
        bars.set_xticks([0, 0.5, 1])
        bars.xaxis.set_major_formatter(PercentFormatter(1.0))
        bars.set_xlabel("probability", fontsize=9)
        bars.spines[["top", "right"]].set_visible(False)
        for place, chance in enumerate(chances):
            bars.text(chance + 0.02, place, f"{chance:.1%}", va="center", fontsize=8)
    save_figure(figure, path, dpi=110)
