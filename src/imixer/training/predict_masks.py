"""Predict the class of every pixel of images with the segmentation of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imixer.data.sources.decoding import pixel_format
from imixer.data.sources.image_files import find_images, load_images
from imixer.data.sources.masks import background_class, mask_image, overlay
from imixer.escaping import slug, unlike
from imixer.plotting import drawn
from imixer.progress import announce, with_progress
from imixer.training.finished_run import FinishedRun
from imixer.training.mask_figures import MaskPanel, draw_masks
from imixer.training.mask_logits import MaskPredictor
from imixer.writing import replacing

_SHOWN = 16  # images in the picture
_HELD_OUT = 8


@dataclass(frozen=True)
class MaskPrediction:
    """The predicted classes of the pixels of one image.

    Args:
        image: The file of the image, or its place in the held-out set.
        mask: The PNG of the classes: indices, with a palette.
        overlay: The PNG of the image with the classes in colour over it.
        shares: The classes that were predicted, each with its share of the pixels, the largest first.
    """

    image: str
    mask: Path
    overlay: Path
    shares: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class _MaskSource:
    name: str
    image: Image.Image
    truth: NDArray[np.uint8] | None


def predict_masks(
    run: FinishedRun, images: Sequence[str] = (), data_path: str | None = None
) -> tuple[list[MaskPrediction], Path]:
    """Predict masks, and write them as index PNGs into `predictions/` of the run's outputs, and overlays below.

    Files that cannot be read are left out, of which a warning tells.

    Args:
        run: The run.
        images: Files, or folders of files, of any size. Default: eight of the held-out images, evenly spread.
        data_path: The place where the run's data lie now, if no images are given. Default: where they lay in training.

    Returns:
        The predictions, and the path of a picture of the first 16, which need not be there.

    Raises:
        InputError: If the data or any image at all cannot be read, or the logits are not finite.
    """
    files = find_images(images) if images else []
    held_out = [] if files else _held_out(run, data_path)
    names = [str(file) for file in files] or [source.name for source in held_out]
    outputs = run.make_outputs()
    folder = outputs.mask_predictions
    overlays = folder / "overlays"  # apart: an image may be called like an overlay of another
    overlays.mkdir(parents=True, exist_ok=True)
    stems = unlike([slug(Path(name).stem, empty="image") for name in names])
    predictor, palette, pixels = MaskPredictor(run), run.palette, pixel_format(run.config.data)
    announce(f"predicting {len(names):,} images")
    bare = background_class(run.class_names, palette)
    predictions: list[MaskPrediction] = []
    panels: list[MaskPanel] = []
    stem_of = dict(zip(names, stems, strict=True))
    loaded = (_MaskSource(str(file), image, None) for file, image in load_images(files, run.input_size[0], pixels))
    for source in with_progress(([each] for each in (loaded if files else held_out)), len(names), "predicting images"):
        classes = predictor.classes([source.image])[0]
        mask, laid = (place / f"{stem_of[source.name]}.png" for place in (folder, overlays))
        coloured = overlay(source.image, classes, palette, bare)
        for file, picture in ((mask, mask_image(classes, palette)), (laid, coloured)):
            with replacing(file) as temporary:
                picture.save(temporary, format="PNG")
        counts = np.bincount(classes.ravel(), minlength=len(run.class_names))
        order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
        shares = tuple((run.class_names[number], float(counts[number] / classes.size)) for number in order)
        predictions.append(MaskPrediction(source.name, mask, laid, shares))
        if len(panels) < _SHOWN:
            panels.append(MaskPanel(source.image, classes, source.truth, Path(source.name).name))
    predictor.tell_unsolved()
    drawn(outputs.prediction, lambda path: draw_masks(panels, run.class_names, palette, path))
    return predictions, outputs.prediction


def _held_out(run: FinishedRun, data_path: str | None) -> list[_MaskSource]:
    val = run.masked_data(data_path).val
    places = sorted({i * len(val) // _HELD_OUT for i in range(_HELD_OUT)})
    return [_MaskSource(f"held-out {place}", *val[place]) for place in places]
