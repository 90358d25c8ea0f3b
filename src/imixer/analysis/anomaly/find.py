"""Make a run of `imixer anomaly`: open the images and the model, find anomalies, write down, draw."""

from __future__ import annotations

from pathlib import Path

from imixer.analysis.anomaly.detect import (
    AnomalyScores,
    FeatureSource,
    detect_anomalies,
    model_features,
    pixel_features,
)
from imixer.analysis.anomaly.heat_maps import write_anomalies
from imixer.analysis.anomaly.samples import digit_samples, open_defect_folder
from imixer.analysis.images import pixels_of
from imixer.data.randomness import check_seed
from imixer.errors import InputError
from imixer.progress import announce
from imixer.training.finished_run import FinishedRun, WhichWeights, load_run
from imixer.training.run.directory import check_out, create_run

_LARGEST = 2048  # pixels a side


def find_anomalies(
    run: str,
    folder: str | None = None,
    *,
    normal: int | None = None,
    features: str = "model",
    levels: tuple[int, ...] | None = None,
    memory: int = 1000,
    neighbours: int = 3,
    size: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    skip_bad: bool = False,
    out: str | None = None,
    device: str = "auto",
    checkpoint: WhichWeights = "last",
) -> tuple[AnomalyScores, list[Path]]:
    """Learn from normal images, find anomalies in others, and write numbers and heat maps.

    Args:
        run: Directory of a run or of a packaged model, whose features are compared.
        folder: Folder with `train/good`, `test/good`, `test/DEFECT` and perhaps `ground_truth/DEFECT`. Default: digits.
        normal: Digit that is normal, for the digits. Default: 3.
        features: `model`, or `pixels` to compare squares of pixels instead.
        levels: Levels of the model to take features from. Default: those at a third and at two thirds of its depth.
        memory: Largest number of feature vectors to store.
        neighbours: Number of nearest neighbours.
        size: Side in pixels that images get. Default: the size that the model was trained at.
        batch_size: Images at once.
        seed: Seed of the draw of what is stored, and of the digits' split and defects.
        skip_bad: Leave out images that cannot be read, and count them.
        out: Folder to make. Default: the next free `runs/<data>-anomaly-<number>`.
        device: `cpu`, `cuda` or `auto`.
        checkpoint: Whose weights to take: those of the `last` epoch, or of the `best`.

    Returns:
        What was found, and the files that were written.

    Raises:
        InputError: If the run, the images or an option is impossible.
    """
    if features not in ("model", "pixels"):
        raise InputError(f"features is {features!r}; choose model or pixels")
    if folder is not None and normal is not None:
        raise InputError(f"normal is {normal}, which is about the digits, and {folder} is given; leave out one of them")
    if size is not None and not 1 <= size <= _LARGEST:
        raise InputError(f"size is {size}; give pixels a side, 1 to {_LARGEST:,}")
    check_seed(seed)
    check_out(out)
    finished = load_run(run, device, checkpoint)
    in_chans, height, width = finished.input_size
    sides = (height, width) if size is None else (size, size)
    source = features_of(finished, features, sides, levels)
    if folder is None:
        samples = digit_samples(in_chans, sides, normal=3 if normal is None else normal, seed=seed)
    else:
        announce(f"reading the images in {folder}")
        samples = open_defect_folder(folder, in_chans, sides, smallest=source.patch, skip_bad=skip_bad)
    announce(f"learning from {len(samples.normal)} normal images")
    scores = detect_anomalies(
        samples, source, memory=memory, neighbours=neighbours, seed=seed, batch_size=batch_size, device=finished.device
    )
    made = create_run(out, samples.name, "anomaly").path
    settings = dict(
        model=finished.name, data=samples.name, features=features, size=list(sides), neighbours=neighbours, seed=seed
    )
    return scores, write_anomalies(scores, settings, made)


def features_of(
    finished: FinishedRun, features: str, size: tuple[int, int], levels: tuple[int, ...] | None = None
) -> FeatureSource:
    """Take features from a run's model, or from `pixels`, for images of a size.

    Raises:
        InputError: If the model gives no such features.
    """
    if features == "pixels":
        return pixel_features(finished.input_size[0], size)
    pixels = pixels_of(finished)
    return model_features(finished.model, mean=pixels.mean, std=pixels.std, size=size, levels=levels)
