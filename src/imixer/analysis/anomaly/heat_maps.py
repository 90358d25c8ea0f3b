"""Write down, draw and show anomalies."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
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
from imixer.escaping import for_figure, slug, unlike
from imixer.plotting import SMALL, drawn, save_figure
from imixer.tables import Grid, markdown, on_screen
from imixer.training.run.directory import RunDirectory
from imixer.writing import make_folder, write_csv, write_json, write_text

_PER_KIND = 3  # images of each kind in the overview
_MOST_KINDS = 8
_MOST_JUDGED = 16
MAPS_OF = "memory_energy"  # whose maps are drawn by default
_LONGEST = 80  # letters of an image's name in that of its map


def quality_grid(scores: AnomalyScores) -> Grid:
    """Make the table of all scores: a row each, in per cent."""
    kinds = sorted({kind for kind in scores.samples.kinds if kind != GOOD})
    header = ("score", "image AUROC", "image F1", "pixel AUROC", "pixel F1", "PRO", *kinds)
    return Grid(header, tuple(_row(name, quality, kinds) for name, quality in scores.quality.items()), 1)


def _row(name: str, quality: DetectionQuality, kinds: list[str]) -> tuple[str, ...]:
    numbers = (quality.image_auroc, quality.image_f1, quality.pixel_auroc, quality.pixel_f1, quality.pro)
    every = [*numbers, *(quality.by_kind[kind] for kind in kinds)]
    return (DETECTORS[name].label, *("-" if value is None else f"{100 * value:.1f}" for value in every))


def write_anomalies(scores: AnomalyScores, settings: dict[str, Any], outputs: RunDirectory) -> list[Path]:
    """Write the numbers, the table and a row per image, over those of an earlier time.

    They are `anomaly.json`, `anomaly.md` and `anomaly.csv`.

    Args:
        scores: What was found.
        settings: Settings, for the JSON file.
        outputs: Directory to write into.

    Returns:
        The files.
    """
    samples = scores.samples
    counts = {kind: samples.kinds.count(kind) for kind in dict.fromkeys(samples.kinds)}
    numbers = {
        **settings,
        "normal_images": len(samples.normal) or None,  # none where only others were judged
        "images": counts,
        "skipped": list(samples.skipped),
        "stored": scores.stored,
        "beta": scores.beta,
        "scores": {name: asdict(quality) for name, quality in scores.quality.items()},
    }
    files = [outputs.anomalies, *(outputs.anomalies.with_suffix(suffix) for suffix in (".md", ".csv"))]
    write_json(files[0], numbers, non_finite="null")
    write_text(files[1], markdown(quality_grid(scores)))
    columns = {name: values.tolist() for name, values in scores.images.items()}
    rows = [
        {"image": samples.names[i], "kind": kind, **{name: values[i] for name, values in columns.items()}}
        for i, kind in enumerate(samples.kinds)
    ]
    write_csv(files[2], rows)
    return files


def draw_anomalies(scores: AnomalyScores, outputs: RunDirectory, score: str = MAPS_OF) -> list[Path]:
    """Draw heat maps, over those of an earlier time, or log why that failed.

    They are `heat_maps.png`, an overview, and in the folder `heat_maps` the map of each image as a gray PNG, black at
    the lowest score of all and white at the highest, by kind, the least normal image of a kind first.

    Args:
        scores: What was found.
        outputs: Directory to write into.
        score: Score whose maps are drawn. One that is of whole images has none: then the memory's energy.

    Returns:
        What was drawn: the overview, and the folder of the maps.
    """
    shown, maps = score if score in scores.maps else MAPS_OF, outputs.path / "heat_maps"
    shutil.rmtree(maps, ignore_errors=True)
    draws: dict[Path, Callable[[Path], None]] = {
        outputs.heat_maps: lambda path: save_figure(draw_heat_maps(scores, shown), path),
        maps: lambda path: make_folder(path, lambda folder: _fill_maps(scores, shown, folder)),
    }
    return [path for path, draw in draws.items() if drawn(path, draw)]


def _fill_maps(scores: AnomalyScores, score: str, folder: Path) -> None:
    from PIL import Image

    maps = scores.maps[score]
    low, high = float(maps.min()), float(maps.max())
    gray = (maps - low).div(max(high - low, 1e-12)).mul(255).round().byte().numpy()
    by_kind = _by_kind(scores, score)
    folders = unlike([slug(kind, empty="defect") for kind in by_kind])
    for name_of_kind, places in zip(folders, by_kind.values(), strict=True):
        inside = folder / name_of_kind
        inside.mkdir(exist_ok=True)
        for rank, place in enumerate(places, 1):
            name = slug(Path(scores.samples.names[place]).stem, empty="image")
            Image.fromarray(gray[place]).save(inside / f"{rank:03d}_{name[:_LONGEST]}.png")


def _by_kind(scores: AnomalyScores, score: str) -> dict[str, list[int]]:
    """List the places of the images of each kind, the least normal first."""
    ranks, kinds = scores.images[score].tolist(), scores.samples.kinds
    places = sorted(range(len(kinds)), key=lambda i: -ranks[i])
    return {kind: [i for i in places if kinds[i] == kind] for kind in dict.fromkeys(kinds)}


def draw_heat_maps(scores: AnomalyScores, score: str = MAPS_OF) -> Figure:
    """Draw the least normal images of each kind: the image, its map, and the outline of its mask.

    Args:
        scores: What was found.
        score: Score whose maps are drawn.
    """
    samples, maps, ranks = scores.samples, scores.maps[score], scores.images[score]
    by_kind = dict(list(_by_kind(scores, score).items())[:_MOST_KINDS])
    low, high = np.percentile(maps.numpy(), [1, 99.5])
    figure = Figure(figsize=(1.15 * 2 * _PER_KIND + 0.6, 1.25 * len(by_kind) + 0.5), layout="constrained")
    grid = figure.subplots(len(by_kind), 2 * _PER_KIND, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, (kind, places) in zip(grid, by_kind.items(), strict=True):
        for column, i in enumerate(places[:_PER_KIND]):
            image, heat = row[2 * column : 2 * column + 2]
            image.imshow(_shown(samples.test[i]), cmap="gray", vmin=0, vmax=1)
            heat.imshow(maps[i].numpy(), cmap="magma", vmin=low, vmax=high)
            heat.set_title(f"{float(ranks[i]):.3g}", fontsize=SMALL)
            mask = None if samples.masks is None else samples.masks[i]
            if mask is not None and mask.any() and not mask.all():
                heat.contour(mask.float().numpy(), [0.5], colors="white", linewidths=0.8)
        row[0].set_ylabel(for_figure(kind, 16), fontsize=8)
    figure.suptitle(
        f"The least normal images of each kind, and their {DETECTORS[score].label}; white: the defect", fontsize=9
    )
    return figure


def draw_judged(images: Tensor, maps: Tensor, titles: Sequence[str]) -> Figure:
    """Draw images of which nothing is known beside their heat maps, the first 16 of them.

    Args:
        images: The images (M, C, H, W).
        maps: Their maps (M, H, W).
        titles: Title of each.
    """
    shown = min(len(images), _MOST_JUDGED)
    columns = min(4, shown)
    lines = -(-shown // columns)
    low, high = np.percentile(maps.numpy(), [1, 99.5])
    figure = Figure(figsize=(2.4 * columns + 0.4, 1.4 * lines + 0.2), layout="constrained")
    grid = figure.subplots(lines, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place in range(shown):
        line, column = divmod(place, columns)
        image, heat = grid[line, 2 * column], grid[line, 2 * column + 1]
        image.imshow(_shown(images[place]), cmap="gray", vmin=0, vmax=1)
        image.set_title(for_figure(titles[place], 24), fontsize=SMALL)
        heat.imshow(maps[place].numpy(), cmap="magma", vmin=low, vmax=high)
    return figure


def _shown(image: Tensor) -> np.ndarray:
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    return pixels.clamp(0, 1).numpy()


def show_judged(judged: Sequence[tuple[str, float, bool]], picture: Path, console: Console) -> None:
    """Print what a detector says of images.

    Args:
        judged: File, score, and whether it is an anomaly, of each image.
        picture: The file they were drawn to, which need not be there.
        console: Console to print on.
    """
    rows = tuple((image, "anomaly" if anomalous else "normal", f"{score:.4g}") for image, score, anomalous in judged)
    console.print(on_screen(Grid(("image", "", "score"), rows, 2), ""))
    if picture.exists():
        left_out = f", the first {_MOST_JUDGED} of {len(judged):,} images" if len(judged) > _MOST_JUDGED else ""
        console.print(f"picture: {picture}{left_out}", soft_wrap=True)


def show_anomalies(scores: AnomalyScores, score: str, files: Sequence[Path], console: Console) -> None:
    """Print the table, what it is of, and the files.

    Args:
        scores: What was found.
        score: Name of the detector's own score.
        files: Files that were written.
        console: Console to print on.
    """
    samples = scores.samples
    console.print(on_screen(quality_grid(scores), ""))
    defects = int(samples.defective.sum())
    good = len(samples.kinds) - defects
    learned = f"learned from {len(samples.normal):,} normal images ({scores.stored:,} vectors stored), "
    console.print(
        f"in per cent; {learned if len(samples.normal) else ''}judged on {good:,} good and {defects:,} defective images"
    )
    console.print(f"the detector's own score: {DETECTORS[score].label}")
    for note in samples.notes:
        console.print(note, soft_wrap=True)
    if samples.skipped:
        noun = "file" if len(samples.skipped) == 1 else "files"
        console.print(f"skipped {len(samples.skipped):,} {noun}, the first {samples.skipped[0]}", soft_wrap=True)
    if missing := [DETECTORS[name].label for name in DETECTORS if name not in scores.images]:
        console.print(f"not measured, as there is no such energy of these features at this size: {', '.join(missing)}")
    if samples.masks is None:
        console.print("no ground_truth: pixels are not measured")
    console.print(f"written: {', '.join(map(str, files))}", soft_wrap=True)
