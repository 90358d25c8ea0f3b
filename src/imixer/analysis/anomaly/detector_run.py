"""Make and judge runs that detect anomalies: `imixer train --task anomaly`, `imixer evaluate --anomaly`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import timm
import torch
from lightning.fabric.utilities.seed import seed_everything
from safetensors.torch import load_file, save
from torch import Tensor, nn

from imixer.analysis.anomaly.detect import (
    AnomalyScores,
    FeatureSource,
    LearnedNormal,
    judge_images,
    learn_normal,
    model_features,
    pixel_features,
    score_images,
)
from imixer.analysis.anomaly.detection_quality import DetectionQuality, best_threshold
from imixer.analysis.anomaly.detectors import EnergyDeviations, NormalFeatures
from imixer.analysis.anomaly.heat_maps import MAPS_OF, draw_anomalies, draw_judged, write_anomalies
from imixer.analysis.anomaly.samples import AnomalySamples, digit_samples, open_defect_folder, to_tensor
from imixer.analysis.images import pixels_of
from imixer.data.config import DataConfig
from imixer.data.names import DIGITS, is_named
from imixer.data.sources.decoding import pixel_format
from imixer.data.sources.image_files import expand_user, find_images, load_images
from imixer.errors import InputError, did_you_mean, in_short
from imixer.escaping import shell_word
from imixer.models.timm_tags import find_pretrained_cfg
from imixer.models.weight_files import model_folder
from imixer.plotting import drawn, save_figure
from imixer.progress import announce, with_progress
from imixer.reading import read_json
from imixer.training.devices import device_name
from imixer.training.finished_run import FinishedRun, choose_device
from imixer.training.initial_weights import named_place
from imixer.training.model import BuiltModel, build_model
from imixer.training.model_directory import save_model
from imixer.training.run.config import AnomalyConfig, ModelConfig, TrainConfig
from imixer.training.run.damage import damage, set_aside_damaged_model
from imixer.training.run.directory import RunDirectory, check_out, create_run, open_begun
from imixer.training.run.environment import environment
from imixer.training.run.parsing import changed_settings, load_config, save_config
from imixer.training.run.result import TrainingResult, read_result
from imixer.training.run.resume_rules import check_changes
from imixer.training.third_party_warnings import silence
from imixer.training.train import resolve_defaults
from imixer.writing import check_output_file, json_text, replacing, write_csv, write_text

DEFAULT_MODEL = "imixer_laptop_32.cifar10"
_NORMAL_DIGIT = 3
_USED = ("task", "anomaly.", "model.", "seed", "out", "accelerator")  # of the settings
_ACCELERATORS = ("auto", "cpu", "cuda", "gpu")
_UNUSED_OF_DIGITS = ("skip_bad", "value_range", "background")
_USED_OF_DATA = ("name", "image_size", "batch_size", "skip_bad", "value_range", "background")

Size = tuple[int, int]


@dataclass(frozen=True)
class DetectorOutcome:
    """Hold what a detector found on the images that it was judged by, and what was written.

    Args:
        scores: What every score says of the images, and its quality.
        score: Name of the detector's own score.
        files: The files that were written.
        unused: Settings that were chosen and have no effect, by dotted name.
    """

    scores: AnomalyScores
    score: str
    files: list[Path]
    unused: tuple[str, ...] = ()


def train_detector(config: TrainConfig) -> DetectorOutcome:
    """Learn what is normal as configured, judge the other images, and write the run directory.

    The model is not trained: features of normal images are stored. Nothing is written before all input has been
    checked.

    Args:
        config: The run's configuration, of task `anomaly`.

    Returns:
        What was found. `imixer.training.run.result.read_result` reads the result in numbers.

    Raises:
        InputError: If something in the configuration or the data is wrong, or the model gives no such features.
    """
    check_out(config.out)
    return _train(config, None)


def resume_detector(path: str, config: TrainConfig | None = None) -> DetectorOutcome | TrainingResult:
    """Finish a run that was stopped, from the beginning: it takes seconds. A finished run is left as it is.

    Args:
        path: The run's directory.
        config: The run's configuration, with changes to how and where it is computed. Default: no changes.

    Returns:
        What was found; of a finished run the result in numbers.

    Raises:
        InputError: If there is no such run, or the configuration changes what is computed.
    """
    run = open_begun(path)
    stored = load_config(run.config)
    check_changes(stored, stored if config is None else config, path)
    if run.finished and damage(run) is None:
        return read_result(run)
    return _train(config or stored, run)


def evaluate_detector(run: FinishedRun, data: str | None = None, batch_size: int | None = None) -> DetectorOutcome:
    """Find anomalies with a finished run, and write what came out into its outputs, over that of an earlier time.

    A run of task `anomaly` judges by what it has learned. Of a classification the features are judged: it learns from
    normal images first, with the default settings.

    Args:
        run: The run.
        data: Folder with `test/good` and `test/DEFECT`, and for a run of another task `train/good`; or `digits`.
            Default: the data of the run if it is of task `anomaly`, else digits.
        batch_size: Images at once. Default: that of the run.

    Raises:
        InputError: If the run is a segmentation, the data are not there or cannot be used, or the model gives no
            features.
    """
    if run.config.task == "segment":
        raise InputError(f"{run.name} is a segmentation, whose features are for its head alone; give a classification")
    config, own = run.config, run.config.task == "anomaly"
    options = config.anomaly if own else AnomalyConfig()
    name = data or (config.data.name if own else DIGITS)
    if name != DIGITS and not expand_user(name).is_dir():
        raise InputError(f"{name} is no folder; say with --data where the images to judge lie now")
    read = config.data
    read_alike = DataConfig(value_range=read.value_range, background=read.background, skip_bad=read.skip_bad)
    seen = replace(config.data if own else read_alike, name=name)
    size = _sides(config.data.image_size if own else None, run.input_size[1:])
    source = features_of(run, options, size)
    samples = _samples(seen, options, run.input_size[0], size, source.patch, config.seed, learn=not own)
    many: dict[str, Any] = dict(batch_size=batch_size or config.micro_batch, device=run.device)
    learned = load_normal(run.directory, options.neighbours) if own else _learn(samples, source, options, config, many)
    outputs = run.make_outputs()
    announce(f"judging {len(samples.test):,} images")
    scores = judge_images(samples, source, learned, **many)
    files = write_anomalies(scores, _settings(run.name, samples, options, size, config.seed), outputs)
    files += draw_anomalies(scores, outputs, options.score)
    return DetectorOutcome(scores, options.score, files)


@dataclass(frozen=True)
class JudgedImage:
    """Hold what a detector says of an image of which nothing is known.

    Args:
        image: The file.
        score: The detector's own score; higher is less normal.
        anomalous: Whether that is at or above the threshold with the largest F1 on the images that the detector was
            judged by.
    """

    image: str
    score: float
    anomalous: bool


def judge_files(run: FinishedRun, paths: Sequence[str], csv_file: str | None = None) -> tuple[list[JudgedImage], Path]:
    """Judge image files by a finished detector, and draw `prediction.png` with their heat maps.

    Args:
        run: The run, of task `anomaly`.
        paths: Image files and folders.
        csv_file: File to write the scores to, which must not exist. Default: none.

    Returns:
        What is said of each image, the least normal first; and the picture, which may not be there.

    Raises:
        InputError: If there are no images, none can be read, or the file of scores cannot be written.
    """
    if not paths:
        raise InputError(
            f"IMAGE is missing; name files or folders, or let `imixer evaluate {shell_word(run.name)}` judge its own"
        )
    if csv_file is not None:
        check_output_file(Path(csv_file), "csv")
    config, options = run.config, run.config.anomaly
    size = _sides(config.data.image_size, run.input_size[1:])
    source = features_of(run, options, size)
    threshold = read_result(run.directory).last["threshold"]
    files = find_images(paths)
    stored = pixel_format(config.data)
    loaded = ([each] for each in load_images(files, run.input_size[0], stored))
    read = {file: to_tensor(image, size) for file, image in with_progress(loaded, len(files), "reading images")}
    files, images = list(read), torch.stack(list(read.values()))
    learned = load_normal(run.directory, options.neighbours)
    picture = run.make_outputs().prediction
    many: dict[str, Any] = dict(batch_size=config.micro_batch, device=run.device)
    scores, maps = score_images(images, source, learned, **many)
    values = scores[options.score].tolist()
    order = sorted(range(len(files)), key=lambda place: -values[place])
    judged = [JudgedImage(str(files[place]), values[place], values[place] >= threshold) for place in order]
    if csv_file is not None:
        write_csv(Path(csv_file), [asdict(each) for each in judged])
    heat = maps.get(options.score, maps[MAPS_OF])
    titles = [f"{Path(each.image).name}: {each.score:.3g}" for each in judged]
    drawn(picture, lambda path: save_figure(draw_judged(images[order], heat[order], titles), path))
    return judged, picture


def load_normal(run: RunDirectory, neighbours: int) -> LearnedNormal:
    """Load what a run has learned of normal images.

    Args:
        run: The directory of the run.
        neighbours: Number of nearest neighbours.

    Raises:
        InputError: If the file is missing or damaged.
    """
    file = run.normal_features
    try:
        tensors = load_file(file)
        features = NormalFeatures.from_tensors(tensors, neighbours=neighbours)
        energies = tensors.get("energy_mean")
        return LearnedNormal(features, None if energies is None else EnergyDeviations(energies, tensors["energy_std"]))
    except Exception as error:  # safetensors, the system and torch each raise their own
        again = f"`imixer train --config {shell_word(run.config)}` learns it again, into another folder"
        raise InputError(f"{file} is missing or damaged ({in_short(error, 120)}); {again}") from error


def _save_normal(learned: LearnedNormal, file: Path) -> None:
    tensors = learned.features.tensors()
    if learned.energies is not None:
        tensors |= {"energy_mean": learned.energies.mean, "energy_std": learned.energies.std}
    with replacing(file) as path:
        path.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


def _train(config: TrainConfig, begun: RunDirectory | None) -> DetectorOutcome:
    silence()
    began = time.perf_counter()
    unused = _unused(config)
    config = _with_model(config)
    options = config.anomaly
    seed_everything(config.seed, workers=True, verbose=False)
    channels, stored = _own_size(config.model)
    built = build_model(
        config.model,
        replace(config.data, image_size=stored),
        native_size=None,
        in_chans=channels,
        num_classes=1,
    )
    device = choose_device("cuda" if config.accelerator == "gpu" else config.accelerator)
    model: Any = built.model.eval().to(device)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": built.input_size}  # its own, not that of its name
    size = _sides(config.data.image_size, built.input_size[1:])
    patch = _patch_side(model) if options.features == "model" else 1
    samples = _samples(config.data, options, channels, size, patch, config.seed)
    mean, std = _normalisation(built, samples.normal)
    source = _features(options, model, mean.to(device), std.to(device), channels, size)
    many: dict[str, Any] = dict(batch_size=config.micro_batch, device=device)
    learned = _learn(samples, source, options, config, many)
    scores = judge_images(samples, source, learned, **many)
    run = begun or create_run(config.out, samples.name, built.title)
    whole = resolve_defaults(config, built, samples.value_range)
    image_size = size[0] if size[0] == size[1] else size
    save_config(replace(whole, data=replace(whole.data, image_size=image_size)), run.config)
    write_text(run.environment, json_text({"run": uuid4().hex} | environment()))
    _save_normal(learned, run.normal_features)
    files = write_anomalies(scores, _settings(built.title, samples, options, size, config.seed), run)
    row = _metrics(scores, options.score, time.perf_counter() - began)
    write_csv(run.metrics, [row])
    result = TrainingResult(
        run=run,
        last=row,
        best=row,
        seconds=row["seconds"],
        epochs=1,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        model=built.title,
        data=samples.name,
        held_out=len(samples.test),
        skipped=samples.skipped,
        device=device_name(device),
    )
    result.write()
    set_aside_damaged_model(run)
    save_model(  # after all numbers: it is what makes a run finished
        built,
        model.state_dict(),
        run.model,
        class_names=("normal",),
        mean=mean.flatten().tolist(),
        std=std.flatten().tolist(),
        crop_pct=1.0,
        interpolation="bicubic",
    )
    files += draw_anomalies(scores, run, options.score)
    return DetectorOutcome(scores, options.score, [*files, run.normal_features], unused)


def _with_model(config: TrainConfig) -> TrainConfig:
    """Check what cannot be combined with the task, and give a configuration without any model the packaged one."""
    if config.devices > 1 or config.num_nodes > 1:
        raise InputError(
            f"devices is {config.devices} and num_nodes {config.num_nodes}, and task anomaly learns in seconds on one; "
            "leave them out"
        )
    if config.accelerator not in _ACCELERATORS:
        hint = did_you_mean(config.accelerator, _ACCELERATORS, 1)
        known = ", ".join(_ACCELERATORS)
        raise InputError(f"accelerator is {config.accelerator!r}, and task anomaly takes {known}{hint or '; give one'}")
    for name in ("choose", "finetune"):
        if value := getattr(config, name):
            raise InputError(f"{name} is {value}, and task anomaly trains no model; leave it out")
    name, normal = config.data.name, config.anomaly.normal
    if name != DIGITS and is_named(name):
        raise InputError(
            f"data.name is {name}, which has no defects; give {DIGITS}, or a folder with train/good, test/good and "
            "test/DEFECT"
        )
    if name != DIGITS and normal is not None:
        raise InputError(
            f"anomaly.normal is {normal}, which is about the digits, and data.name is {name}; leave one of them out"
        )
    model = config.model
    if model.name is None and not model.sources:
        model = replace(model, name=DEFAULT_MODEL, pretrained=True)
    # a single pass over the images, as other tasks count
    schedule = replace(config.schedule, warmup_epochs=0, cooldown_epochs=0)
    return replace(config, model=model, schedule=schedule, epochs=1, steps=None, budget=None)


def _unused(config: TrainConfig) -> tuple[str, ...]:
    """List the settings that were chosen and have no effect: no step is taken, digits are digits, pixels no levels."""
    used = (*_USED, *(f"data.{name}" for name in _USED_OF_DATA))
    idle = {f"data.{name}" for name in _UNUSED_OF_DIGITS} if config.data.name == DIGITS else set[str]()
    if config.anomaly.features == "pixels":
        idle.add("anomaly.levels")
    single_pass = {"epochs": 1, "schedule.warmup_epochs": 0}  # what a run's configuration has
    return tuple(
        name
        for name, value in changed_settings(config).items()
        if (name in idle or not name.startswith(used)) and single_pass.get(name) != value
    )


def _own_size(config: ModelConfig) -> tuple[int, Size | None]:
    """Return the channels, and the height and width, that the weights to start from were trained with."""
    if config.checkpoint and (file := model_folder(named_place(config.checkpoint)) / "config.json").is_file():
        size = read_json(file).get("pretrained_cfg", {}).get("input_size")
        if isinstance(size, list) and len(size) == 3:
            return size[0], (size[1], size[2])
    name = config.name or ""
    if timm.is_model(name.partition(".")[0]) and (cfg := find_pretrained_cfg(name)) is not None:
        return cfg.input_size[0], None
    return 3, None


def _patch_side(model: nn.Module) -> int:
    info: Any = getattr(model, "feature_info", None)
    return int(info[0]["reduction"]) if info else 1


def _normalisation(built: BuiltModel, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C, 1, 1): those of the weights to start from, or of the normal images."""
    channels = built.input_size[0]
    given = [built.preparation.get(name) for name in ("mean", "std")]
    if all(value and len(value) == channels for value in given):
        mean, std = (torch.tensor(value, dtype=torch.float32) for value in given)
    else:
        pixels = normal.transpose(0, 1).flatten(1)
        mean, std = pixels.mean(1), pixels.std(1, correction=0)
        std = torch.where(std > 0, std, 1.0)
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)


def _sides(image_size: int | Size | None, own: Size) -> Size:
    if image_size is None:
        return own
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


def _samples(
    data: DataConfig,
    options: AnomalyConfig,
    channels: int,
    size: Size,
    patch: int,
    seed: int,
    *,
    learn: bool = True,
) -> AnomalySamples:
    """Open or make the images."""
    if data.name == DIGITS:
        normal = _NORMAL_DIGIT if options.normal is None else options.normal
        return digit_samples(channels, size, normal=normal, seed=seed)
    announce(f"reading the images in {data.name}")
    return open_defect_folder(
        data.name,
        channels,
        size,
        smallest=patch,
        skip_bad=data.skip_bad,
        learn=learn,
        pixels=pixel_format(data),
    )


def _features(
    options: AnomalyConfig, model: nn.Module, mean: Tensor, std: Tensor, channels: int, size: Size
) -> FeatureSource:
    if options.features == "pixels":
        source = pixel_features(channels, size)
    else:
        levels = None if options.levels is None else tuple(options.levels)
        source = model_features(model, mean=mean, std=std, size=size, levels=levels)
    if options.score == "block_energy" and source.energies is None:
        raise InputError(
            "anomaly.score is block_energy, which asks for a Mixer at its own size as anomaly.features; give another "
            "score, or leave data.image_size out"
        )
    return source


def features_of(finished: FinishedRun, options: AnomalyConfig, size: Size) -> FeatureSource:
    """Take features from a run's model, or from pixels, for images of a size.

    Args:
        finished: The run.
        options: Which features, and which score they must serve.
        size: Height and width in pixels.

    Raises:
        InputError: If the model gives no such features.
    """
    pixels = pixels_of(finished)
    return _features(options, finished.model, pixels.mean, pixels.std, finished.input_size[0], size)


def _learn(
    samples: AnomalySamples,
    source: FeatureSource,
    options: AnomalyConfig,
    config: TrainConfig,
    many: Mapping[str, Any],
) -> LearnedNormal:
    announce(f"learning from {len(samples.normal):,} normal images")
    return learn_normal(
        samples.normal, source, memory=options.memory, neighbours=options.neighbours, seed=config.seed, **many
    )


def _settings(model: str, samples: AnomalySamples, options: AnomalyConfig, size: Size, seed: int) -> dict[str, Any]:
    return dict(
        model=model,
        data=samples.name,
        score=options.score,
        features=options.features,
        size=list(size),
        neighbours=options.neighbours,
        seed=seed,
    )


def _metrics(scores: AnomalyScores, score: str, seconds: float) -> dict[str, Any]:
    """Return the row of `metrics.csv`.

    Loss is the share of pairs of a good image and a defect that are in the wrong order, accuracy that of images on the
    right side of the threshold with the largest F1.
    """
    quality: DetectionQuality = scores.quality[score]
    values, defective = scores.images[score].double().numpy(), scores.samples.defective.numpy()
    threshold = best_threshold(values, defective)
    right = (values >= threshold) == defective
    row = {
        "epoch": 1,
        "val_loss": 1 - quality.image_auroc,
        "val_acc": float(right.mean()),
        "val_auroc": quality.image_auroc,
        "val_f1": quality.image_f1,
        "val_pixel_auroc": quality.pixel_auroc,
        "val_pro": quality.pro,
        "threshold": threshold,
        "seconds": round(seconds, 2),
    }
    return {name: value for name, value in row.items() if value is not None}
