"""Load a finished run: its configuration, its model, its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from imixer.data.image_data import ImageData, check_channels
from imixer.data.sources.open import open_dataset
from imixer.data.transforms import eval_transform
from imixer.errors import InputError
from imixer.escaping import few_names
from imixer.training.finite_checks import require_finite_weights
from imixer.training.model_directory import load_model
from imixer.training.run.config import TrainConfig
from imixer.training.run.damage import model_damage
from imixer.training.run.directory import RunDirectory, open_run
from imixer.training.run.parsing import load_config
from imixer.training.third_party_warnings import silence


@dataclass(frozen=True)
class FinishedRun:
    """A finished run in memory, with its model ready for images. `load_run` makes it.

    Choose it where images go through the model as in validation. For the numbers of a run, see `read_result`; for the
    model alone, `timm.create_model("local-dir:RUN/model", pretrained=True)` will do.

    Args:
        directory: The directory of the run.
        config: The configuration of the run.
        model: The model, in evaluation mode.
        device: The device that the model is on.
    """

    directory: RunDirectory
    config: TrainConfig
    model: nn.Module
    device: torch.device

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
            InputError: If the data are not there, or have other classes or channels.
        """
        config = self.config.data
        if data_path is not None:
            named = config.name != "digits" and not Path(config.name).is_absolute()  # then it lies in a root
            config = replace(config, root=data_path) if named else replace(config, name=data_path)
        data = open_dataset(config)
        if tuple(data.class_names) != self.class_names:
            raise InputError(
                f"the data have the classes {few_names(data.class_names)}, but {self.directory.path} was trained on "
                f"{few_names(self.class_names)}; give the data it was trained on with --data"
            )
        check_channels(data, self.input_size)
        cfg = self.pretrained_cfg
        return replace(data, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))


def load_run(path: str, device: str = "auto") -> FinishedRun:
    """Load a finished run.

    Args:
        path: The run's directory.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.

    Raises:
        InputError: If there is no finished run, there is no such device, or the model is damaged or not finite.
    """
    silence()
    run = open_run(path)
    config = load_config(run.config)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA device here; use auto or cpu")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if (problem := model_damage(run)) is not None:
        raise InputError(f"{problem}; `imixer train --resume {path}` writes it again from the checkpoints")
    model = load_model(run.model)
    require_finite_weights(model, run.path)
    return FinishedRun(run, config, model.to(chosen), chosen)
