"""Write down, draw and show anomalies."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no display, no global state
from rich.console import Console
from torch import Tensor

from imixer.analysis.anomaly.detect import AnomalyScores
from imixer.analysis.anomaly.detection_quality import DetectionQuality
from imixer.analysis.anomaly.detectors import DETECTORS
from imixer.analysis.anomaly.samples import GOOD
from imixer.escaping import for_figure
from imixer.plotting import SMALL, drawn, save_figure
from imixer.tables import Grid, markdown, on_screen
from imixer.writing import write_csv, write_json, write_text

_PER_KIND = 3  # images of each kind in the overview
_MOST_KINDS = 8
MAPS_OF = "memory_energy"  # whose maps are drawn


def quality_grid(scores: AnomalyScores) -> Grid:
    """Make the table of all scores: a row each, in per cent."""
    kinds = sorted({kind for kind in scores.samples.kinds if kind != GOOD})
    header = ("score", "image AUROC", "image F1", "pixel AUROC", "pixel F1", "PRO", *kinds)
    return Grid(header, tuple(_row(name, quality, kinds) for name, quality in scores.quality.items()), 1)


def _row(name: str, quality: DetectionQuality, kinds: list[str]) -> tuple[str, ...]:
    numbers = (quality.image_auroc, quality.image_f1, quality.pixel_auroc, quality.pixel_f1, quality.pro)
    every = [*numbers, *(quality.by_kind[kind] for kind in kinds)]
    return (DETECTORS[name].label, *("-" if value is None else f"{100 * value:.1f}" for value in every))


def write_anomalies(scores: AnomalyScores, settings: dict[str, Any], folder: Path) -> list[Path]:
    """Write the numbers, the table, a row per image, and heat maps.

    `anomaly.json`, `anomaly.md`, `anomaly.csv`; `heat_maps.png`, an overview; and in the folder `heat_maps` the map of
    each image as a gray PNG, black at the lowest score of all and white at the highest, by kind and number.

    Args:
        scores: What was found.
        settings: Settings, for the JSON file.
        folder: Folder to write into.

    Returns:
        The files, and the folder of the maps.
    """
    samples = scores.samples
    counts = {kind: samples.kinds.count(kind) for kind in dict.fromkeys(samples.kinds)}
    numbers = {
        **settings,
        "normal_images": len(samples.normal),
        "images": counts,
        "skipped": samples.skipped,
        "stored": scores.stored,
        "beta": scores.beta,
        "scores": {name: asdict(quality) for name, quality in scores.quality.items()},
    }
    files = [folder / f"anomaly.{suffix}" for suffix in ("json", "md", "csv")]
    write_json(files[0], numbers, non_finite="null")
    write_text(files[1], markdown(quality_grid(scores)))
    columns = {name: values.tolist() for name, values in scores.images.items()}
    rows = [
        {"image": samples.names[i], "kind": kind, **{name: values[i] for name, values in columns.items()}}
        for i, kind in enumerate(samples.kinds)
    ]
    write_csv(files[2], rows)
    overview = folder / "heat_maps.png"
    if drawn(overview, lambda path: save_figure(draw_heat_maps(scores), path)):
        files.append(overview)
    files.append(_write_maps(scores, folder / "heat_maps"))
    return files


def _write_maps(scores: AnomalyScores, folder: Path) -> Path:
    from PIL import Image

    maps = scores.maps[MAPS_OF]
    low, high = float(maps.min()), float(maps.max())
    gray = (maps - low).div(max(high - low, 1e-12)).mul(255).round().byte().numpy()
    folder.mkdir()
    done: dict[str, int] = {}
    for kind, values in zip(scores.samples.kinds, gray, strict=True):
        done[kind] = done.get(kind, 0) + 1
        inside = folder / kind.replace(" ", "_")
        inside.mkdir(exist_ok=True)
        Image.fromarray(values).save(inside / f"{done[kind]:03d}.png")
    return folder


def draw_heat_maps(scores: AnomalyScores) -> Figure:
    """Draw the least normal images of each kind: the image, its map, and the outline of its mask."""
    samples, maps, ranks = scores.samples, scores.maps[MAPS_OF], scores.images[MAPS_OF]
    kinds = list(dict.fromkeys(samples.kinds))[:_MOST_KINDS]
    low, high = np.percentile(maps.numpy(), [1, 99.5])
    figure = Figure(figsize=(1.15 * 2 * _PER_KIND + 0.6, 1.25 * len(kinds) + 0.5), layout="constrained")
    grid = figure.subplots(len(kinds), 2 * _PER_KIND, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, kind in zip(grid, kinds, strict=True):
        own = [i for i, each in enumerate(samples.kinds) if each == kind]
        for column, i in enumerate(sorted(own, key=lambda i: -float(ranks[i]))[:_PER_KIND]):
            image, heat = row[2 * column : 2 * column + 2]
            image.imshow(_shown(samples.test[i]), cmap="gray", vmin=0, vmax=1)
            heat.imshow(maps[i].numpy(), cmap="magma", vmin=low, vmax=high)
            heat.set_title(f"{float(ranks[i]):.3g}", fontsize=SMALL)
            mask = None if samples.masks is None else samples.masks[i]
            if mask is not None and mask.any():
                heat.contour(mask.float().numpy(), [0.5], colors="white", linewidths=0.8)
        row[0].set_ylabel(for_figure(kind, 16), fontsize=8)
    figure.suptitle(
        f"The least normal images of each kind, and their {DETECTORS[MAPS_OF].label}; white: the defect", fontsize=9
    )
    return figure


def _shown(image: Tensor) -> np.ndarray:
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    return pixels.clamp(0, 1).numpy()


def show_anomalies(scores: AnomalyScores, files: list[Path], console: Console) -> None:
    """Print the table, what it is of, and the files.

    Args:
        scores: What was found.
        files: Files that were written.
        console: Console to print on.
    """
    samples = scores.samples
    console.print(on_screen(quality_grid(scores), ""))
    defects = int(samples.defective.sum())
    good = len(samples.kinds) - defects
    skipped = f"; {samples.skipped} unreadable images left out" if samples.skipped else ""
    console.print(
        f"in per cent; learned from {len(samples.normal)} normal images ({scores.stored:,} vectors stored), judged on "
        f"{good} good and {defects} defective ones{skipped}"
    )
    if missing := [DETECTORS[name].label for name in DETECTORS if name not in scores.images]:
        console.print(f"not measured, as the model has no such energy at this size: {', '.join(missing)}")
    if samples.masks is None:
        console.print("no ground_truth: pixels are not measured")
    console.print(f"written: {', '.join(map(str, files))}", soft_wrap=True)
