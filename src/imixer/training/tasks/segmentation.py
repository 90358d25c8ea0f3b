"""The task of telling the class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from imixer.data.image_data import ImageSet, MaskedData
from imixer.data.masked_batches import build_masked_batches
from imixer.data.sampler import BatchShard
from imixer.data.sources.open_masked import open_masked
from imixer.errors import InputError, in_short
from imixer.models.segmenter import names_among_features
from imixer.plotting import drawn
from imixer.training.figures import draw_confusion_matrix, draw_learning_curves
from imixer.training.initial_weights import SEGMENTER, find_start
from imixer.training.model import BuiltModel, build_model_for, default_name
from imixer.training.run.config import TrainConfig
from imixer.training.run.confusion import write_confusion
from imixer.training.run.directory import RunDirectory
from imixer.training.segmentation_metrics import SegmentationMetrics
from imixer.training.tasks.losses import SegmentationLoss

_FROM_DATA = ("num_classes", "in_chans", "img_size")


class Segmentation:
    """One class for each pixel: cross entropy and Dice, mIoU, and a confusion matrix of pixels.

    Choose it by `task: segment`.
    """

    def open(self, config: TrainConfig) -> MaskedData:
        """Open images with masks, see `open_masked`."""
        return open_masked(config.data, config.masks, lambda native: _patch_side(config, native))

    def build_model(self, config: TrainConfig, data: ImageSet) -> BuiltModel:
        """Build a `Segmenter` on the timm model that the configuration names, with its weights to start from.

        Raises:
            InputError: If the backbone cannot be built, has no features of the levels asked for, or an image is smaller
                than one of its patches.
        """
        plain = build_model_for(config, data)
        _require_larger_than_a_patch(plain, cast(MaskedData, data))
        return with_head(plain, config)

    def build_batches(
        self,
        data: MaskedData,
        config: TrainConfig,
        input_size: tuple[int, int, int],
        *,
        device: torch.device,
        shard: BatchShard,
    ) -> tuple[Any, Any]:
        """Build batches of images and masks that are augmented together."""
        return build_masked_batches(
            data,
            config.data,
            config.masks,
            input_size,
            seed=config.seed,
            device=device,
            shard=shard,
            held_out_batch=config.micro_batch,
        )

    def loss(self, data: MaskedData, config: TrainConfig) -> SegmentationLoss:
        """Build the cross entropy, weighted by classes as configured, and Dice."""
        return SegmentationLoss(config.smoothing, config.segment.dice, class_weights(config, data))

    def validation(
        self, data: MaskedData, config: TrainConfig, input_size: tuple[int, int, int]
    ) -> SegmentationMetrics:
        """Build loss, mIoU, the accuracy of pixels and their confusion matrix."""
        return SegmentationMetrics(len(data.class_names), input_size[1:], config.masks.overlap)

    def write_numbers(self, run: RunDirectory, confusion: Tensor, data: MaskedData) -> None:
        """Write the confusion matrix of pixels."""
        write_confusion(confusion.tolist(), data.class_names, run.confusion_counts)

    def draw(self, run: RunDirectory, rows: Sequence[dict[str, Any]], confusion: Tensor, data: MaskedData) -> None:
        """Draw learning curves and the confusion matrix of pixels."""
        drawn(run.learning_curves, lambda path: draw_learning_curves(rows, path))
        drawn(
            run.confusion_matrix,
            lambda path: draw_confusion_matrix(
                confusion.numpy(), data.class_names, path, title="Held-out masks", unit="pixels"
            ),
        )


def with_head(plain: BuiltModel, config: TrainConfig) -> BuiltModel:
    """Build the `Segmenter` that a configuration names on a model of timm, with the weights that this starts from.

    Args:
        plain: The model, built for as many classes as pixels have.
        config: Gives the head, and whether the model starts from weights.

    Raises:
        InputError: If the model has no features of the levels asked for.
    """
    args: dict[str, Any] = {
        "backbone": plain.name,
        "backbone_args": {name: value for name, value in plain.args.items() if name not in _FROM_DATA},
        "head": config.segment.head,
        "head_dim": config.segment.head_dim,
        "levels": config.segment.levels,
        **{name: plain.args.get(name) for name in _FROM_DATA},
    }
    args = {name: value for name, value in args.items() if value is not None}
    try:
        model = timm.create_model(SEGMENTER, **args)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        levels = f" at segment.levels {config.segment.levels}" if config.segment.levels else ""
        raise InputError(
            f"{plain.name} gives no features to segment by{levels} ({in_short(error, 120)}); give "
            "another model.name, or leave segment.levels out"
        ) from error
    if config.model.sources:
        _take_weights(model.get_submodule("backbone"), plain)
    return replace(plain, model=model, name=SEGMENTER, args=args)


def class_weights(config: TrainConfig, data: MaskedData) -> tuple[float, ...] | None:
    """Return the weight of each class in the cross entropy; None if all are alike.

    `balanced` weighs a class by the inverse square root of its share of the training pixels, so that the mean weight of
    the classes is 1. Classes without a pixel get the weight of the rarest.

    Args:
        config: The run's configuration.
        data: The data.

    Raises:
        InputError: If the configuration has another number of weights than there are classes.
    """
    given = config.segment.class_weights
    if given is None:
        return None
    if given == "balanced":
        counts = torch.tensor(data.pixels, dtype=torch.float64)
        weights = counts.clamp(min=float(counts[counts > 0].min())).rsqrt()
        return tuple((weights / weights.mean()).tolist())
    if len(given) != len(data.class_names):
        raise InputError(
            f"segment.class_weights has {len(given)} numbers, and {data.name} {len(data.class_names)} classes; give "
            "one for each class, or balanced"
        )
    return tuple(map(float, given))


def _take_weights(backbone: nn.Module, plain: BuiltModel) -> None:
    """Copy the weights of a whole model into the one that gives its features."""
    own, weights = backbone.state_dict(), plain.model.state_dict()
    original = names_among_features(weights)
    taken = {name: weights[original[name]] for name in own if name in original}
    if missing := own.keys() - taken.keys():
        raise InputError(f"the weights of {plain.name} do not fit its features: {min(missing)} is not among them")
    backbone.load_state_dict(taken)


def _patch_side(config: TrainConfig, native: tuple[int, int] | None) -> int:
    """Return the side in pixels of a patch of the model that a configuration means for images of a size."""
    if config.model.from_mixer:
        return 1  # which names the model; images are looked at again when it is built
    start = find_start(config.model)
    wanted, own = config.data.image_size, config.model.name or start.name
    name = own or default_name((wanted, wanted) if isinstance(wanted, int) else wanted or native)
    if not timm.is_model(name.partition(".")[0]):
        return 1
    options = (start.args if name == start.name else {}) | config.model.overrides()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            info: Any = timm.create_model(name, **options).feature_info
    except (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return 1  # what is wrong is said when it is built
    return int(info[0]["reduction"])


def _require_larger_than_a_patch(plain: BuiltModel, data: MaskedData) -> None:
    """Refuse images of which a model would see less than one patch."""
    info: Any = getattr(plain.model, "feature_info", None) or [{"reduction": 1}]
    patch = int(info[0]["reduction"])
    if data.smallest is None:
        return
    name, height, width = data.smallest
    if min(height, width) < patch:
        raise InputError(
            f"image {name} has {height}x{width} pixels, less than a patch of {patch}x{patch} of {plain.name}; remove "
            "it, or take a model of smaller patches"
        )
