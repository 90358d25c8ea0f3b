"""Load a finished run: its configuration, its model, its data. A packaged model is a run that is only read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import nn

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData, ImageSet, MaskedData, check_channels
from imixer.data.names import BUILT_IN, is_named, timm_prefix
from imixer.data.sources.decoding import pixel_format
from imixer.data.sources.image_files import expand_user
from imixer.data.sources.mask_folder import has_masks
from imixer.data.sources.mask_sets import own_masks
from imixer.data.sources.masked_pairs import StoredMasks
from imixer.data.sources.masks import coding_of, default_palette
from imixer.data.sources.open import open_dataset, relocated
from imixer.data.sources.open_masked import open_masked, relocated_masks
from imixer.data.sources.storage import is_remote, local_path
from imixer.data.transforms import eval_transform
from imixer.errors import InputError
from imixer.escaping import few_names, middle_cut, shell_word
from imixer.training.best_weights import WhichWeights, load_best_weights
from imixer.training.finite_checks import require_finite_weights
from imixer.training.model_directory import load_model
from imixer.training.run.config import TrainConfig
from imixer.training.run.damage import model_damage
from imixer.training.run.directory import RunDirectory, open_run
from imixer.training.run.parsing import load_config
from imixer.training.run.result import read_result
from imixer.training.same_data import check_held_out
from imixer.training.third_party_warnings import silence
from imixer.weights import is_packaged
from imixer.writing import check_output_folder

_DataT = TypeVar("_DataT", bound=ImageSet)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run in memory, with its model ready for images. `load_run` makes it.

    Choose it where images go through the model as in validation. For the numbers of a run, see `read_result`; for the
    model alone, `timm.create_model("local-dir:RUN/model", pretrained=True)` will do.

    Args:
        directory: The directory that the run is read from. Outputs go into the one that `make_outputs` makes.
        config: The configuration of the run.
        model: The model, in evaluation mode.
        device: The device that the model is on.
        checkpoint: Whose weights the model has: those of the `last` epoch or of the `best`.
    """

    directory: RunDirectory
    config: TrainConfig
    model: nn.Module
    device: torch.device
    checkpoint: WhichWeights = "last"

    @property
    def packaged(self) -> bool:
        """Whether it is a packaged model, whose directory is not written to."""
        return is_packaged(self.directory.path)

    @property
    def name(self) -> str:
        """The directory of the run, or the name of the packaged model, for messages."""
        return self.directory.path.name if self.packaged else str(self.directory.path)

    @property
    def outputs(self) -> RunDirectory:
        """The directory that outputs go into, which may not be there.

        It is that of the run; its folder `best` for the weights of the best epoch; and for a packaged model, the folder
        of its name in the current one.

        Raises:
            InputError: If that of a packaged model is a run of its own.
        """
        if not self.packaged:
            return self.directory if self.checkpoint == "last" else RunDirectory(self.directory.best)
        outputs = RunDirectory(Path(self.name))
        if outputs.config.exists():
            raise InputError(f"{self.name} is a run here, and results of the packaged model go there; rename the run")
        return outputs

    def make_outputs(self) -> RunDirectory:
        """Make the directory that outputs go into, if it is not there.

        Returns:
            What `outputs` says.

        Raises:
            InputError: If the folder cannot be made or written to, or is a run of its own.
        """
        outputs = self.outputs
        try:
            outputs.path.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the folder {outputs.path} cannot be made here, {error.strerror}; it takes what is written"
            ) from error
        check_output_folder(outputs.path, self.name)
        return outputs

    def epoch_metrics(self) -> dict[str, Any]:
        """Read the metrics of the epoch whose weights the model has.

        Raises:
            InputError: If `result.json` is missing or damaged, or the best epoch is asked for and not in it.
        """
        result = read_result(self.directory)
        metrics = result.last if self.checkpoint == "last" else result.best
        if metrics is None:
            raise InputError(f"{self.directory.result} does not say which epoch was the best; take the last")
        return metrics

    def portable_config(self) -> TrainConfig:
        """Return the configuration without the places where the run and its files lay on the machine that trained."""
        data, model = self.config.data, self.config.model
        name = data.name
        if timm_prefix(name) is not None:
            prefix, _, path = name.partition("/")
            name = f"{prefix}/{Path(path).name}" if _is_place(path) else name
        elif not is_named(name, self.config.task):
            folder = Path(name).name
            name = f"./{folder}" if folder in BUILT_IN else folder  # which is not the built-in data set
        return replace(
            self.config,
            out=None,
            data=replace(data, name=name, root=None, cache_dir=None, download=False),
            model=replace(
                model, checkpoint=_without_place(model.checkpoint), from_mixer=_without_place(model.from_mixer)
            ),
        )

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The configuration that timm keeps with the model: names of classes, input size, normalisation."""
        cfg: Any = self.model.pretrained_cfg
        return cfg

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return tuple(self.pretrained_cfg["label_names"])

    @property
    def input_size(self) -> tuple[int, int, int]:
        """The size (in_chans, height, width) of the input."""
        channels, height, width = self.pretrained_cfg["input_size"]
        return channels, height, width

    @cached_property
    def transform(self) -> Callable[[Image], torch.Tensor]:
        """The transform of validation, from an image to a tensor (in_chans, height, width)."""
        cfg = self.pretrained_cfg
        return eval_transform(
            self.input_size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["crop_pct"], cfg["interpolation"]
        )

    def untrained(self) -> nn.Module:
        """Build the run's model anew, with weights drawn by the run's seed, in evaluation mode on the run's device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return load_model(self.directory.model, trained=False).to(self.device)

    def data(self, data_path: str | None = None) -> ImageData:
        """Open the run's data, to be normalised as in training.

        Args:
            data_path: The place where the data lie now. Default: where they lay in training.

        Raises:
            InputError: If the data are not there, or have other classes or channels, or would hold out other images
                than in training, or the run gives an image no class.
        """
        self.require_classes()
        return self._as_held_out(open_dataset(self._data_config(data_path)))

    def require_classes(self) -> None:
        """Check that the run gives each image a class, as `data` does too: its model takes any image without a word.

        Raises:
            InputError: If the run is a segmentation or detects anomalies.
        """
        if self.config.task != "classify":
            kind = {"segment": "a segmentation", "anomaly": "a detector of anomalies"}[self.config.task]
            raise InputError(
                f"{self.name} is {kind}, and this is for runs with a class for each image; `imixer evaluate` "
                "and `imixer predict` take it"
            )

    def require_known_to_others(self) -> None:
        """Check that what the run has learned is all in its model, which other programs can compute.

        Raises:
            InputError: If the run detects anomalies, by features of normal images that it keeps beside the model.
        """
        if self.config.task == "anomaly":
            raise InputError(
                f"{self.name} is a detector of anomalies, whose features of normal images are no part of its model; "
                "`imixer predict` judges images by it, and a copy of its folder does so elsewhere"
            )

    def masked_data(self, data_path: str | None = None, test: str | None = None) -> MaskedData:
        """Open the images and masks of a segmentation's run, to be normalised as in training.

        Args:
            data_path: The place where the data lie now. Default: where they lay in training.
            test: A folder of other images with masks that mean the same, all of which are then held out.

        Raises:
            InputError: If the data are not there, or have other classes or channels, or would hold out other images
                than in training, or the run is no segmentation.
        """
        if self.config.task != "segment":
            raise InputError(f"{self.name} is no segmentation: it was trained without masks")
        own, masks = is_named(self.config.data.name, "segment"), self.config.masks
        if masks.palette is None and (not own or test is not None):
            masks = replace(own_masks(self.config.data.name, masks), classes=list(self.class_names))
        if test is None:
            return self._as_held_out(open_masked(self._data_config(data_path), masks))
        place = test if is_remote(test) else str(expand_user(local_path(test)).absolute())  # so it is no built-in name
        if not is_remote(test) and not os.path.isdir(place):
            raise InputError(f"test: no folder {middle_cut(test, 80)}; correct the path")
        if not is_remote(test) and has_masks(Path(place)):  # columns are of the shards that the run was trained on
            masks = replace(masks, image_column=None, mask_column=None)
        data = open_masked(replace(self.config.data, name=place, root=None), masks, whole=True)
        if isinstance(data.val, StoredMasks):
            data.val.in_chans, data.val.pixels = self.input_size[0], pixel_format(self.config.data)
        return self._as_in_training(replace(data, name=test, in_chans=self.input_size[0]))

    def image_set(self, data_path: str | None = None) -> ImageSet:
        """Open the run's data, whatever its task, to be normalised as in training.

        Args:
            data_path: The place where the data lie now. Default: where they lay in training.

        Raises:
            InputError: If the data are not there, or have other classes or channels, or would hold out other images
                than in training.
        """
        return self.masked_data(data_path) if self.config.task == "segment" else self.data(data_path)

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The colour of each class of a segmentation, (red, green, blue)."""
        return coding_of(self.config.masks).palette or default_palette(self.class_names)

    def _data_config(self, data_path: str | None) -> DataConfig:
        config = self.config.data
        if self.packaged and data_path is None and config.name not in BUILT_IN:
            raise InputError(f"{self.name} comes without its images, {config.name}; say with --data where they lie")
        if data_path is not None:
            move = relocated_masks if self.config.task == "segment" else relocated
            config = move(config, data_path)
        return config

    def _as_held_out(self, data: _DataT) -> _DataT:
        """Check that data hold out what they did in training, beside what `_as_in_training` does."""
        data = self._as_in_training(data)
        if self.directory.result.is_file():
            check_held_out(read_result(self.directory).held_out_draw, data, self.name)
        return data

    def _as_in_training(self, data: _DataT) -> _DataT:
        """Check that data are of the run's classes and channels, and normalise them as in training."""
        if tuple(data.class_names) != self.class_names:
            raise InputError(
                f"the data have the classes {few_names(data.class_names)}, but {self.name} was trained on "
                f"{few_names(self.class_names)}; give the data it was trained on with --data"
            )
        check_channels(data, self.input_size)
        cfg = self.pretrained_cfg
        return replace(data, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))


def _without_place(start: str | None) -> str | None:
    """Return weights to start from as a hub's id, or by their name without the folders where they lay."""
    if start is None or start.startswith("hf-hub:"):
        return start
    kind, colon, path = start.rpartition(":")
    return f"{kind}{colon}{Path(path).name}"


def _is_place(path: str) -> bool:
    """Whether what follows a prefix of timm is a place on this machine, and not the name of a data set."""
    return path.startswith(("/", ".", "~")) or os.path.isdir(path)


def load_run(path: str, device: str = "auto", checkpoint: WhichWeights = "last") -> FinishedRun:
    """Load a finished run.

    Args:
        path: The run's directory, or that of a packaged model, which `imixer.weights.find_packaged` finds.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.
        checkpoint: Whose weights to load: those of the `last` epoch, or of the `best` on the held-out images.

    Raises:
        InputError: If there is no finished run, there is no such device, the model is damaged or not finite, or the
            weights of the best epoch were not kept, as in a packaged model.
    """
    silence()
    run = open_run(path)
    if checkpoint == "best" and is_packaged(run.path):
        raise InputError(f"checkpoint is best, and {run.path.name} is packaged with one set of weights; leave it out")
    config = load_config(run.config)
    chosen = choose_device(device)
    if (problem := model_damage(run)) is not None:
        raise InputError(f"{problem}; `imixer train --resume {shell_word(path)}` writes it again from the checkpoints")
    model = load_model(run.model)
    if checkpoint == "best":
        load_best_weights(model, run)
    require_finite_weights(model, run.path)
    return FinishedRun(run, config, model.to(chosen), chosen, checkpoint)


def choose_device(name: str) -> torch.device:
    """Choose the device to compute on.

    Args:
        name: `cpu`, `cuda`, or `auto`: CUDA where there is any.

    Raises:
        InputError: If CUDA is asked for, and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA device here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
